"""What is kept stays as it was: whatever it is called, whoever else writes, reads or is killed meanwhile."""

import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import polars as pl
import pytest
from hkjc_files import meeting
from hkjc_files import write as write_csv
from test_data_store import season
from test_together import together

from racing_core.app.main import main
from racing_core.config import Home, home, replacing, valid_name, write_whole
from racing_core.data.store import Store, add, sources, write
from racing_core.errors import Tampered
from racing_core.schema import WEATHER, conform

ELSEWHERE = ["../../x", ".", "..", "a/b", "../store", ".hidden", "a\\..\\b/..", "x\n"]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_name_that_leads_elsewhere_is_refused_and_strangers_files_stay(name, tmp_path):
    mine = [tmp_path / "x" / "tables" / "mine.parquet", tmp_path / "home" / "a" / "mine.parquet"]
    for file in mine:
        write_whole(file, b"a user's own")
    csv = write_csv(tmp_path / "a.csv", meeting(date="2019-05-01"))
    before = sorted(tmp_path.rglob("*"))
    assert main(["ingest", "hkjc", str(csv), "--name", name, "--home", str(tmp_path / "home")]) == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_an_absolute_name_is_refused(tmp_path):
    csv = write_csv(tmp_path / "a.csv", meeting(date="2019-05-01"))
    place = tmp_path / "elsewhere"
    asked = ["ingest", "hkjc", str(csv), "--name", str(place), "--home", str(tmp_path / "home")]
    assert main(asked) == 2 and not place.exists()


@pytest.mark.parametrize("name", ["hkjc", "20240131-ab12cd34ef", "gb_aw", "日本", "été", "v1.2"])
def test_names_of_today_stay_valid(name):
    assert valid_name(name) == name


def test_the_sweep_removes_what_the_store_wrote_and_nothing_else(tmp_path):
    store = Store(Home(tmp_path, ""), "made")
    write(store, season({0: (3, 2.0)}))
    theirs = [
        store.folder / "prices" / "mine.parquet",
        store.folder / "prices" / "2019.parquet",
        store.folder / "notes" / "notes.part",
        store.folder / "notes.txt",
    ]
    ours = [
        store.folder / "prices" / "2018-0123456789abcdef.parquet",
        store.folder / "prices" / ".2018-0123456789abcdef.parquet.12ab34cd.part",
        store.folder / ".manifest.json.12ab34cd.part",
    ]
    for file in theirs + ours:
        write_whole(file, b"left")
    write(store, season({0: (4, 2.0)}))
    assert all(f.exists() for f in theirs) and not any(f.exists() for f in ours)


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_data_store import season
from racing_core.config import Home
from racing_core.data.store import Store, write
store = Store(Home(Path(sys.argv[1]), ""), "made")
print("ready", flush=True)
edition = 1
while True:
    edition = 3 - edition
    write(store, season({day: (edition + 1, 10.0 * edition) for day in range(0, 800, 40)}))
"""


def test_a_read_is_of_one_version_while_another_process_writes(tmp_path):
    "The size of a field tells the edition in the runners, its odds in the prices."
    store = Store(Home(tmp_path, ""), "made")
    editions = {}
    for edition in (1, 2):
        write(store, season(dict.fromkeys(range(0, 800, 40), (edition + 1, 10.0 * edition))))
        editions[store.fingerprint] = edition
    here = str(Path(__file__).parent)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), here], stdout=subprocess.PIPE, text=True
    )
    try:
        assert writer.stdout.readline() == "ready\n"
        seen = set()
        for _ in range(150):
            starts, data = store.at_once(lambda s: (s.starts(), s.fingerprint))
            edition = editions[data]
            assert len(starts) == 20 * (edition + 1)
            assert (starts["odds"] // 10).unique().to_list() == [edition]
            assert (store.starts()["odds"] // 10).n_unique() == 1
            seen.add(edition)
        assert writer.poll() is None and seen == {1, 2}
    finally:
        writer.kill()
        writer.communicate()


DAMAGE = [
    "cut",
    "empty",
    "replaced",
    "missing",
    "manifest cut",
    "manifest of another",
    "no manifest",
]


def damage(store: Store, how: str) -> Path:
    "Spoil a store; the file that has to be named."
    file = sorted(store.folder.glob("prices/*.parquet"))[0]
    manifest = store.folder / "manifest.json"
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-20])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "replaced":
        file.write_bytes(sorted(store.folder.glob("runners/*.parquet"))[0].read_bytes())
    elif how == "missing":
        file.unlink()
    elif how == "manifest cut":
        manifest.write_bytes(manifest.read_bytes()[:-20])
    elif how == "manifest of another":
        facts = json.loads(manifest.read_text())
        facts["tables"]["prices"] = {"2018": f"../../{file.name}"}
        manifest.write_text(json.dumps(facts))
    else:
        manifest.unlink()
    return file if "manifest" not in how else manifest


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_store_is_named_by_whoever_meets_it(how, tmp_path):
    store = Store(Home(tmp_path, ""), "made")
    write(store, season({0: (3, 2.0), 400: (3, 2.0)}))
    victim = damage(store, how)
    for meet in (store.starts, lambda: write(store, season({1: (2, 2.0), 401: (2, 2.0)}))):
        with pytest.raises(Tampered, match=f"{victim.parent.name}/{victim.name}"):
            meet()


def sky(race_ids: list[str], word: str = "rain") -> pl.DataFrame:
    rows = {"race_id": race_ids, "sky": word, "origin": "weatherapi"}
    return conform(pl.DataFrame(rows), WEATHER)


def test_weather_does_not_write_back_what_was_corrected_meanwhile(tmp_path):
    store = Store(Home(tmp_path, ""), "made")
    write(store, season({1: (3, 2.5), 400: (2, 3.0)}))
    asked = store.read("races")
    write(store, season({1: (4, 7.0)}))
    assert add(store, "weather", sky(["made:1", "made:400"]), asked, {"races": 2})
    starts = store.starts()
    assert starts.filter(race_id="made:1")["odds"].to_list() == [8.0, 9.0, 10.0, 11.0]
    assert set(starts["sky"]) == {"rain"} and len(starts) == 6
    assert not add(store, "weather", sky(["made:1"]), asked, {})


def test_weather_of_a_race_that_has_become_another_is_passed_over(tmp_path):
    store = Store(Home(tmp_path, ""), "made")
    write(store, season({1: (3, 2.5), 400: (2, 3.0)}))
    asked = store.read("races").with_columns(date=pl.lit(date(2001, 1, 1)))
    assert not add(store, "weather", sky(["made:1"]), asked, {"races": 1})
    assert store.read("weather").is_empty()


def test_no_cursor_of_a_fetch_is_lost(tmp_path):
    place = home(tmp_path / "home", env={})
    code = (
        "from racing_core.data.fetch import _advance\n"
        "from racing_core.data.store import Store\n# go\n"
        "for i in range(10):\n"
        "    day = date(2026, 1, 1 + i)\n"
        "    _advance(Store(place, 'made'), f'results {me}-{i}', day, day)\n"
    )
    together(code, place)
    cursors = json.loads((place.store / "made" / "fetch.json").read_text())
    assert len(cursors) == 60


KILLED = """
import os, signal, sys
from pathlib import Path
import racing_core.config as config
left = [int(sys.argv[2])]
def step(real):
    def call(*args, **more):
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return real(*args, **more)
    return call
os.rename, os.replace = step(os.rename), step(os.replace)
config._exchange, config._flush = step(config._exchange), step(config._flush)
config.shutil.rmtree = step(config.shutil.rmtree)
with config.replacing(Path(sys.argv[1])) as draft:
    (draft / "note").write_text("new")
"""


@pytest.mark.parametrize("steps", range(4))
def test_a_folder_is_never_gone_whenever_its_writer_is_killed(steps, tmp_path):
    place = tmp_path / "kept"
    with replacing(place) as draft:
        (draft / "note").write_text("old")
    script = [sys.executable, "-c", KILLED, str(place), str(steps)]
    killed = subprocess.run(script, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert (place / "note").read_text() == ("new" if steps == 3 else "old")
    assert len(list(tmp_path.iterdir())) == 2, "the leftover is there, and hides"
    with replacing(place) as draft:
        (draft / "note").write_text("next")
    assert (place / "note").read_text() == "next"
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_a_draft_of_a_living_writer_is_not_swept(tmp_path):
    place = tmp_path / "kept"
    with replacing(place) as slow:
        with replacing(place) as quick:
            (quick / "note").write_text("quick")
        (slow / "note").write_text("slow")
    assert (place / "note").read_text() == "slow" and len(list(tmp_path.iterdir())) == 1


def test_leftovers_are_offered_as_no_source(tmp_path):
    where = Home(tmp_path, "")
    write(Store(where, "made"), season({0: (2, 2.0)}))
    for left in (".world-0123abcd/store/simulated", ".made-old-0123abcd"):
        write_whole(where.store / left / "manifest.json", "{}")
    assert sources(where) == ["made"]
