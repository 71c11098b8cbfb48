"""The store: what goes in comes out, twice is once, and a killed writer leaves the old store whole."""

import signal
import subprocess
import sys
import threading
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest
from hkjc_files import meeting
from hkjc_files import write as write_csv
from hypothesis import given, settings
from hypothesis import strategies as st

from racing_core.config import Home
from racing_core.data.base import Parsed, Quarantine
from racing_core.data.ingest import ingest
from racing_core.data.store import Store, sources, write
from racing_core.errors import BadInput, Tampered
from racing_core.schema import PRICES, RACES, RESULTS, RUNNERS, WEATHER, conform


def season(cards: dict[int, tuple[int, float]]) -> Parsed:
    "Races by day number since 2018-12-20: (runners, price of number 1)."
    ids = {d: f"made:{d}" for d in cards}
    days = {
        "race_id": pl.Series(ids.values(), dtype=pl.String),
        "date": pl.Series([date(2018, 12, 20) + timedelta(d) for d in cards], dtype=pl.Date),
    }
    race = pl.DataFrame(days).with_columns(
        source=pl.lit("made"),
        jurisdiction=pl.lit("SIM"),
        course=pl.lit("ST"),
        race_no=1,
        going=pl.lit("good"),
    )
    lines = [
        (ids[d], n, price + n) for d, (size, price) in cards.items() for n in range(size, 0, -1)
    ]
    rows = pl.DataFrame(
        lines, {"race_id": pl.String, "runner_no": pl.Int16, "odds": pl.Float64}, orient="row"
    )
    rows = rows.with_columns(
        horse_id=pl.format("h{}", "runner_no"), position="runner_no", status=pl.lit("finished")
    )
    tables = {
        "races": conform(race, RACES),
        "runners": conform(rows.select("race_id", "runner_no", "horse_id"), RUNNERS),
        "results": conform(rows.select("race_id", "runner_no", "status", "position"), RESULTS),
        "prices": conform(
            rows.select(
                "race_id", "runner_no", "odds", moment=pl.lit("close"), kind=pl.lit("tote")
            ),
            PRICES,
        ),
    }
    return Parsed(tables, Quarantine().faults, {})


cards = st.dictionaries(
    st.integers(0, 800), st.tuples(st.integers(1, 5), st.sampled_from([1.5, 3.0, 8.0])), max_size=12
)


@settings(deadline=None, max_examples=15)
@given(st.lists(cards, min_size=1, max_size=3))
def test_round_trip_whatever_comes_in_which_order(tmp_path_factory, parts):
    home = Home(tmp_path_factory.mktemp("home"), "")
    store, expected = Store(home, "made"), {}
    for part in parts:
        changed = write(store, season(part))
        assert changed == any(expected.get(d) != card for d, card in part.items())
        expected |= part
        assert not write(store, season(part))
    if not expected:
        return
    whole = season(expected)
    for name, df in whole.tables.items():
        key = ["race_id", "runner_no"] if "runner_no" in df.columns else ["race_id"]
        assert store.read(name).sort(key).equals(df.sort(key)), name
    again = Store(Home(tmp_path_factory.mktemp("home"), ""), "made")
    write(again, whole)
    assert again.fingerprint == store.fingerprint
    middle = date(2018, 12, 20) + timedelta(sorted(expected)[len(expected) // 2])
    early, late = store.starts(until=middle), store.starts(since=middle)
    assert (early["date"] < middle).all()
    assert (late["date"] >= middle).all()
    assert pl.concat([early, late]).equals(store.starts())


def test_a_range_of_dates_leaves_other_years_alone(tmp_path):
    store = Store(Home(tmp_path, ""), "made")
    write(store, season({0: (3, 2.0), 100: (3, 2.0), 500: (3, 2.0)}))
    for file in store.folder.glob("*/2018-*.parquet"):
        file.write_bytes(b"not to be opened")
    assert store.starts(since="2019-01-01")["race_id"].n_unique() == 2
    untouched = {p.name: p.stat().st_mtime_ns for p in store.folder.glob("*/201[89]-*.parquet")}
    with pytest.raises(Tampered, match=r"races/2018-.*parquet"):
        store.read("races")
    for file in store.folder.glob("*/2018-*.parquet"):
        file.unlink()
    manifest = store.manifest
    assert {t: sorted(files) for t, files in manifest["tables"].items()} == {
        t: ["2018", "2019", "2020"] for t in ("prices", "races", "results", "runners")
    }
    assert {
        p.name: p.stat().st_mtime_ns for p in store.folder.glob("*/2019-*.parquet")
    }.items() <= untouched.items()


KILLED = """
import os, signal, sys
from pathlib import Path
from racing_core.config import Home
import racing_core.data.store as store
from racing_core.data.ingest import ingest
real, left = os.replace, [int(sys.argv[3])]
def replace(a, b):
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    real(a, b)
os.replace = replace
ingest("hkjc", sys.argv[1], Home(Path(sys.argv[2]), ""))
"""


@pytest.mark.parametrize("step", [0, 2, 5])
def test_a_writer_killed_halfway_leaves_the_old_store_whole(step, tmp_path):
    home = Home(tmp_path / "home", "")
    ingest("hkjc", write_csv(tmp_path / "a.csv", meeting(date="2019-05-01")), home)
    store = Store(home, "hkjc")
    before, manifest = store.starts(), store.manifest
    file = write_csv(tmp_path / "b.csv", [*meeting(date="2019-05-08"), *meeting(date="2020-05-01")])
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(file), str(home.root), str(step)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert store.manifest == manifest
    assert store.starts().equals(before)
    assert ingest("hkjc", file, home).changed
    assert store.starts()["race_id"].n_unique() == 6
    named = {f for files in store.manifest["tables"].values() for f in files.values()}
    assert {p.name for p in store.folder.glob("*/*") if p.is_file()} == named


def test_two_writers_lose_nothing(tmp_path):
    home = Home(tmp_path, "")
    threads = [
        threading.Thread(target=write, args=(Store(home, "made"), season({d: (2, 2.0)})))
        for d in range(8)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert Store(home, "made").starts()["race_id"].n_unique() == 8


def test_what_is_not_stored_is_asked_for_by_name(tmp_path):
    home = Home(tmp_path, "")
    write(Store(home, "made"), season({0: (2, 2.0)}))
    assert sources(home) == ["made"]
    with pytest.raises(BadInput, match="made"):
        Store(home, "maid").starts()
    with pytest.raises(BadInput, match="not a date"):
        Store(home, "made").starts(since="yesterday")
    assert not Path(home.store / "maid").exists()


def test_weather_fetched_later_outlives_another_ingest(tmp_path):
    store, results = Store(Home(tmp_path, ""), "made"), season({1: (3, 2.5), 400: (2, 3.0)})
    write(store, results)
    rain = conform(
        pl.DataFrame(
            {
                "race_id": ["made:1", "made:400"],
                "sky": ["rain", "fine"],
                "origin": ["weatherapi"] * 2,
            }
        ),
        WEATHER,
    )
    write(store, Parsed(results.tables | {"weather": rain}, Quarantine().faults, {}))
    assert write(store, season({1: (4, 2.5), 400: (2, 3.0)})), "a runner more"
    assert (
        store.starts().select("race_id", "sky").unique().sort("race_id").rows()
        == [("made:1", "rain"), ("made:400", "fine")]
        and len(store.starts()) == 6
    )
