"""A shared place, folder or bucket: folders are there whole or not at all, and come back as they went."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from servers import SECRET, free_port

from racing_core.errors import BadInput, RacingError, Tampered
from racing_core.lab.depot import Depot, _inside


@pytest.fixture(params=["folder", "s3"])
def depot(request, tmp_path) -> Depot:
    "Both kinds of place, under the same tests."
    if request.param == "s3":
        return Depot(request.getfixturevalue("s3") + "/labs/one")
    return Depot((tmp_path / "shared").as_uri())


@pytest.fixture
def folder(tmp_path):
    "A run's folder, with names that people give."
    files = {
        "run.json": b"{}",
        "a/b c/é%20#?.svg": b"<svg/>",
        "empty": b"",
        "big": os.urandom(3 << 20),
    }
    for name, text in files.items():
        file = tmp_path / "run" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text)
    return tmp_path / "run"


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_comes_back_as_it_went(depot, folder, tmp_path):
    assert depot.names() == [] and not depot.has("one")
    depot.put(folder, "one")
    (folder / "run.json").write_bytes(b'{"state": "finished"}')
    depot.put(folder, "one")  # the later one counts
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "run.json").write_text("older")
    (tmp_path / "home" / "log").write_text("stays")
    depot.get("one", tmp_path / "home")
    got = contents(tmp_path / "home")
    assert {k: v for k, v in got.items() if k.name != "log"} == contents(folder)
    assert (tmp_path / "home" / "log").read_text() == "stays"
    assert depot.names() == ["one"]
    depot.remove("one")
    assert depot.names() == [] and not depot.has("one")
    with pytest.raises(BadInput, match="no such folder in the shared place: got 'one'"):
        depot.get("one", tmp_path / "x")


DYING = """
import os, sys
from racing_core.lab import depot
copy = depot._copy
def dies(source, sink):
    told = copy(source, sink)
    if source.name.endswith(sys.argv[3]):
        os.kill(os.getpid(), 9)
    return told
depot._copy = dies
depot.Depot(sys.argv[1]).put(sys.argv[2], "one")
"""


def test_who_dies_while_sending_leaves_nothing_by_that_name(depot, folder, tmp_path):
    argv = [sys.executable, "-c", DYING, depot.url, str(folder), "run.json"]
    assert subprocess.run(argv).returncode == -9
    assert depot.names() == [] and not depot.has("one")
    depot.put(folder, "one")
    assert subprocess.run(argv).returncode == -9
    depot.get("one", tmp_path / "home")  # the earlier one is whole
    assert contents(tmp_path / "home") == contents(folder)


def test_a_changed_file_takes_no_place(folder, tmp_path):
    depot = Depot(str(tmp_path / "shared"))
    depot.put(folder, "one")
    big = next((tmp_path / "shared").rglob("big"))
    for damage in (lambda: big.write_bytes(bytes(3 << 20)), big.unlink):
        damage()
        with pytest.raises(Tampered, match="not as it was put there"):
            depot.get("one", tmp_path / "home")
        assert contents(tmp_path / "home") == {}


def test_an_index_leads_nowhere_else(folder, tmp_path):
    depot = Depot(str(tmp_path / "shared"))
    depot.put(folder, "one")
    index = tmp_path / "shared" / "index" / "one.json"
    told = json.loads(index.read_text())
    for draft, path in (
        ("../..", "run.json"),
        (told["draft"], "../../gone"),
        (told["draft"], "/tmp/gone"),
    ):
        index.write_text(json.dumps({"draft": draft, "files": {path: told["files"]["run.json"]}}))
        with pytest.raises(Tampered, match="index of a shared folder is damaged"):
            depot.get("one", tmp_path / "home")
    for name in ("../one", "/one", ".one", "a/b", ""):
        for ask in (depot.has, lambda n: depot.put(folder, n), lambda n: depot.get(n, tmp_path)):
            with pytest.raises(BadInput, match="not a name"):
                ask(name)


@given(st.text(alphabet="a./\\\0", max_size=12) | st.text(max_size=12))
@example("../x")
def test_a_path_that_is_taken_stays_inside(path):
    if _inside(path):
        there = os.path.normpath(f"/depot/{path}")
        assert there == f"/depot/{path}" and there.startswith("/depot/")


@given(
    st.text(max_size=40) | st.from_regex(r"(s3|file|ftp|)://[a-z:@/?#.%0-9]{0,20}", fullmatch=True)
)
@example(f"s3://key:{SECRET}@bucket/x")
@example(f"s3://bucket/x?secret_key={SECRET}")
@example("s3://[")
@example("\0")
@example("~nobody-of-this-name/x")
def test_a_url_is_a_place_or_refused(url):
    try:
        place, said = Depot(url), ""
    except BadInput as e:
        place, said = None, str(e)
    assert SECRET not in said
    assert place is None or Depot(place.url) == place


@pytest.mark.parametrize(
    "url", ["s3://key:SECRET@bucket/x", "s3://bucket/x?secret_key=SECRET", "s3://b/../x", "x://y"]
)
def test_keys_and_tricks_in_a_url_are_refused(url):
    with pytest.raises(BadInput, match="not a shared place") as e:
        Depot(url.replace("SECRET", SECRET))
    assert SECRET not in str(e.value)


def test_a_place_that_is_away_is_told_after_some_tries(s3, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    depot = Depot(s3)
    with pytest.raises(RacingError, match="the shared place cannot be used") as e:
        depot.put(folder, "one")
    assert s3 in str(e.value) and "AWS_ENDPOINT_URL" in str(e.value) and SECRET not in str(e.value)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RacingError, match="must be mounted"):
        Depot(str(tmp_path / "file" / "x")).put(folder, "one")
