"""A bundle, its manifest and the titles are believed when they prove it: forged, cut, gone or at once."""

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from test_together import PROCESSES, together, toy

from racing_core.app.main import main
from racing_core.config import Home, home, write_whole
from racing_core.data.ingest import ingest_world
from racing_core.errors import BadInput, Tampered
from racing_core.models.trees import SoftmaxTrees
from racing_core.pipeline import Pipeline
from racing_core.release import bundle, registry
from racing_core.release.training import train
from racing_core.simulate import simulate

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    where = Home(tmp_path_factory.mktemp("home"), "")
    ingest_world(simulate(races=600, seed=31), where)
    trees = {"lightgbm_softmax": SoftmaxTrees(trees=20, min_rows=40)}
    train(where, "simulated", where.root / "made", NOW, make=lambda: Pipeline(trees, {}))
    return where.root / "made"


@pytest.fixture
def copy(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "copy"))


def edit(folder: Path, seal: bool = False, **facts) -> None:
    "Change a manifest, with the version that then vouches for it or without."
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text()) | facts
    manifest = {k: v for k, v in manifest.items() if v is not ...}
    file.write_text(json.dumps(bundle.sealed(manifest) | facts if seal else manifest))


@pytest.mark.parametrize(
    "facts",
    [
        dict(version="../../../x"),
        dict(version="20240101-0123456789"),
        dict(trained_until="9999-12-31"),
        dict(source="../x"),
        dict(metrics={"r2": 9}),
        dict(features=["rating"]),
        dict(trained_from=...),
        dict(files=...),
        dict(made=...),
        dict(schema_version=...),
        dict(schema_version="3"),
        dict(more=1),
        dict(files={"pipeline/pipeline.json": "x"}),
        dict(trained_from=7),
    ],
    ids=str,
)
def test_an_edited_manifest_is_refused(copy, facts, tmp_path):
    edit(copy, **facts)
    before = sorted(tmp_path.rglob("*"))
    for meet in (bundle.manifest_of, bundle.read):
        with pytest.raises(Tampered, match="manifest"):
            meet(copy)
    assert main(["promote", str(copy), "--to", "champion", "--home", str(tmp_path / "h")]) == 4
    assert (
        sorted(p for p in tmp_path.rglob("*") if "h" not in p.relative_to(tmp_path).parts) == before
    )


@pytest.mark.parametrize(
    "facts",
    [
        dict(source="hkjc", trained_until="9999-12-31"),
        dict(source="hkjc", trained_until=(NOW + timedelta(9)).date().isoformat()),
        dict(trained_from="2999-01-01"),
        dict(remembers_from="2999-01-01"),
        dict(version="../../../x"),
    ],
    ids=str,
)
def test_a_forged_version_vouches_for_no_impossible_day_or_place(copy, facts):
    edit(copy, seal=True, **facts)
    with pytest.raises(Tampered, match="manifest"):
        bundle.read(copy)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"7", b"\xff", b"[" * 100_000, b" " * (bundle.MOST + 1)], ids=len
)
def test_what_is_no_manifest_is_refused(copy, text):
    (copy / "manifest.json").write_bytes(text)
    with pytest.raises(Tampered, match="unreadable manifest"):
        bundle.manifest_of(copy)


def test_another_format_is_told_before_what_it_lacks(copy):
    (copy / "manifest.json").write_text(json.dumps(dict(schema_version=2, files={}, phase="moon")))
    with pytest.raises(BadInput, match="another format.*racing train"):
        bundle.read(copy)


READ = """
import sys
from pathlib import Path
from racing_core.release.bundle import read
from racing_core.errors import Tampered
for folder in sys.argv[1:]:
    try:
        read(Path(folder))
    except Tampered as e:
        print("refused", e)
"""


def test_cut_trees_are_an_error_and_no_crash(made, tmp_path):
    "The hashes are right: whoever cut the text has sealed the bundle again."
    whole = next(made.rglob("trees.txt"))
    text, copies = whole.read_bytes(), []
    middle = len(text) // 2
    for cut in (text[:middle], text[:-40], text[:300], text[:middle] + text[middle + 150 :]):
        folder = Path(shutil.copytree(made, tmp_path / f"cut{len(copies)}"))
        (folder / whole.relative_to(made)).write_bytes(cut)
        files = json.loads((folder / "manifest.json").read_text())["files"]
        files[whole.relative_to(made).as_posix()] = bundle._digest(cut)
        edit(folder, files=files)
        edit(folder, seal=True)
        copies.append(str(folder))
    done = subprocess.run([sys.executable, "-c", READ, *copies], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused the trees are cut or damaged") == len(copies)
    assert copies[0] in done.stdout, "the bundle is named, not the copy that was read"


@pytest.mark.parametrize("name", ["pipeline/pipeline.json", "history/horse.parquet"])
def test_a_part_that_cannot_be_loaded_is_an_error_with_the_bundles_name(copy, name):
    (copy / name).write_bytes(b"{}")
    files = json.loads((copy / "manifest.json").read_text())["files"]
    edit(copy, files=files | {name: bundle._digest(b"{}")})
    edit(copy, seal=True)
    with pytest.raises(Tampered, match=f"cannot be loaded.*{copy.name}"):
        bundle.read(copy)


def test_a_bundle_takes_no_strangers_place(made, tmp_path):
    mine = write_whole(tmp_path / "letters" / "a.txt", "dear")
    with pytest.raises(BadInput, match="something else is there"):
        train(Home(made.parent, ""), "simulated", mine.parent, NOW)
    with pytest.raises(BadInput, match="something else is there"):
        train(Home(made.parent, ""), "simulated", mine, NOW)
    assert mine.read_text() == "dear"


def promoted(tmp_path, *names: str) -> tuple[Home, list[str]]:
    "A home with champions, the last standing."
    where = home(tmp_path / "home", env={})
    versions = [toy(tmp_path / name, name) for name in names]
    for name in names:
        registry.promote(where, tmp_path / name, "champion", NOW)
    return where, versions


def test_no_way_back_to_a_bundle_that_is_gone(tmp_path):
    where, (one, two) = promoted(tmp_path, "one", "two")
    shutil.rmtree(where.bundles / one)
    assert main(["rollback", "--home", str(where.root)]) == 2
    assert registry.aliases(where)["champion"] == two


def test_no_way_back_to_a_bundle_that_was_changed(tmp_path):
    where, (one, two) = promoted(tmp_path, "one", "two")
    write_whole(where.bundles / one / "stowaway", "x")
    with pytest.raises(Tampered, match="stowaway"):
        registry.rollback(where, NOW)
    assert registry.aliases(where)["champion"] == two


def test_a_damaged_copy_in_the_home_is_replaced_at_promotion(tmp_path):
    where, (one, _) = promoted(tmp_path, "one", "two")
    write_whole(where.bundles / one / "stowaway", "x")
    registry.promote(where, tmp_path / "one", "champion", NOW)
    assert bundle.manifest_of(registry.locate(where, "champion"))["version"] == one
    write_whole(where.bundles / one / "stowaway", "x")
    with pytest.raises(Tampered, match="stowaway"):
        registry.promote(where, one, "challenger", NOW)
    assert registry.aliases(where)["challenger"] is None


def test_a_title_is_of_the_manifest_that_was_promoted(tmp_path):
    where, (one, _) = promoted(tmp_path, "one", "two")
    registry.promote(where, one, "champion", NOW)
    file = where.bundles / one / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(made=dict(run="forged"))))
    assert bundle.manifest_of(file.parent)["version"] == one, "the version does not tell of it"
    with pytest.raises(Tampered, match="not the bundle that was promoted"):
        registry.locate(where, "champion")


def test_damaged_titles_are_told_by_every_command_that_asks_for_them(tmp_path, capsys):
    where, (one, two) = promoted(tmp_path, "one", "two")
    file = where.bundles / "aliases.json"
    whole = json.loads(file.read_text())
    damage = [
        "",
        "[]",
        json.dumps(whole)[:-9],
        json.dumps(whole | dict(champion="../../x")),
        json.dumps(whole | dict(champion=one)),
        json.dumps(whole | dict(log=whole["log"][1:])),
        json.dumps(whole | dict(log=[whole["log"][1], whole["log"][0]])),
        json.dumps(whole | dict(log=7)),
    ]
    for text in damage:
        file.write_text(text)
        for command in (["promote", two, "--to", "champion"], ["rollback"]):
            assert main([*command, "--home", str(where.root)]) == 4, text
            assert "titles are damaged" in capsys.readouterr().err
        assert file.read_text() == text
    file.write_text(json.dumps(whole))
    assert registry.locate(where, "champion") == where.bundles / two


def test_titles_of_a_time_without_hashes_still_stand(tmp_path):
    where, (one, two) = promoted(tmp_path, "one", "two")
    file = where.bundles / "aliases.json"
    state = json.loads(file.read_text())
    for entry in state["log"]:
        del entry["hash"], entry["manifest"]
    file.write_text(json.dumps(state))
    assert registry.rollback(where, NOW)["champion"] == one
    log = registry.aliases(where)["log"]
    assert "hash" not in log[0] and log[-1]["hash"]
    state["log"][0]["at"] = "2001-01-01"
    file.write_text(json.dumps(registry.aliases(where) | dict(log=[state["log"][0], *log[1:]])))
    with pytest.raises(Tampered, match="titles are damaged"):
        registry.aliases(where)


def test_twelve_promotions_at_once_of_strangers_bundles_are_all_entered(tmp_path):
    "Every process copies bundles into the home; each version is promoted by two of them."
    where = home(tmp_path / "home", env={})
    for i in range(PROCESSES):
        toy(tmp_path / f"out{i}", f"v{i}")
    code = (
        "from racing_core.release.registry import promote\n# go\n"
        f"for i in (me, (me + 1) % {PROCESSES}):\n"
        "    promote(place, place.root.parent / f'out{i}', 'champion', datetime.now(UTC))\n"
    )
    together(code, where)
    log = registry.aliases(where)["log"]
    versions = {c["version"] for c in log}
    assert len(log) == 2 * PROCESSES and len(versions) == PROCESSES
    assert {p.name for p in where.bundles.iterdir() if p.is_dir()} == versions
