"""Broken files: an error that names the place, or a quarantined race; never half a race, never a changed store."""

from pathlib import Path

import polars as pl
import pytest
from hkjc_files import HEAD, meeting, runner, write

from racing_core.config import Home
from racing_core.data.ingest import ingest
from racing_core.data.store import Store
from racing_core.errors import BadInput


@pytest.fixture
def home(tmp_path) -> Home:
    "A home whose store already holds one good meeting."
    home = Home(tmp_path / "home", "")
    ingest("hkjc", write(tmp_path / "good.csv", meeting(date="2019-12-29")), home)
    return home


def snapshot(home: Home) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in home.root.rglob("*") if p.is_file()}


def parquet(path: Path) -> Path:
    pl.read_csv(write(path.with_suffix(".csv"), meeting()), infer_schema=False).write_parquet(path)
    path.with_suffix(".csv").unlink()
    return path


def truncated(path: Path):
    path = parquet(path / "results.parquet")
    path.write_bytes(path.read_bytes()[:-200])


REFUSED = {
    "wrong columns": (
        lambda d: (d / "results.csv").write_text("date,place\n2020-01-01,1\n"),
        "horse_no",
    ),
    "bad encoding": (lambda d: write(d / "results.csv", meeting(), "big5"), "UTF-8"),
    "utf-16": (lambda d: write(d / "results.csv", meeting(), "utf-16"), "results.csv"),
    "truncated parquet": (truncated, "results.parquet"),
    "text called parquet": (lambda d: write(d / "results.parquet", meeting()), "results.parquet"),
    "empty file": (lambda d: (d / "results.csv").write_bytes(b""), "results.csv"),
    "header only": (lambda d: write(d / "results.csv", []), "no rows"),
    "too many cells": (
        lambda d: write(d / "results.csv", [*meeting(), runner(3, 1) + ",1,2,3"]),
        "results.csv",
    ),
    "no file at all": (lambda d: None, "results"),
    "a date that is none": (
        lambda d: write(d / "results.csv", [*meeting(), runner(3, 1, date="2020-02-31")]),
        "row 7",
    ),
    "an unknown venue": (
        lambda d: write(d / "results.csv", [*meeting(), runner(3, 1, venue="巴黎")]),
        "row 7",
    ),
    "a broken side file": (
        lambda d: (
            write(d / "results.csv", meeting()),
            (d / "dividends.csv").write_text("date\n2020-01-01\n"),
        ),
        "dividends.csv",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_used_is_refused_and_the_store_stays(case, home, tmp_path):
    make, word = REFUSED[case]
    (folder := tmp_path / "new").mkdir()
    make(folder)
    before = snapshot(home)
    with pytest.raises(BadInput, match=word):
        ingest("hkjc", folder, home)
    assert snapshot(home) == before


SPOILT = {
    "two distances in a race": (dict(distance_m=1400), "distance_m", "1400"),
    "two goings in a race": (dict(going="軟地"), "going", "soft"),
    "a position with no number": (dict(horse_no=""), "runner_no", None),
    "a position with no horse": (dict(horse_name=""), "horse_id", None),
    "a number twice": (dict(horse_no=1), "race_id+runner_no", "hkjc:2020-01-01:ST:2 1"),
    "an unknown result": (dict(place="XX"), "place", "XX"),
    "a going nobody knows": (dict(going="泥"), "going", "泥"),
    "a weight in words": (dict(actual_wt_lbs="heavy"), "actual_wt_lbs", "heavy"),
    "a weight of nothing": (dict(actual_wt_lbs=0), "weight_kg", "0.0"),
    "a time of an hour": (dict(finish_time="61:00.00"), "time_s", "3660.0"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_faulty_row_sets_its_race_aside_whole(case, home, tmp_path):
    change, column, got = SPOILT[case]
    file = write(
        tmp_path / "results.csv", [*meeting(1), runner(2, 1), runner(2, 2), runner(2, 3, **change)]
    )
    account = ingest("hkjc", file, home)
    store = Store(home, "hkjc")
    assert (account.races, account.quarantined, account.starters) == (1, 3, 3)
    assert store.starts(since="2020-01-01")["race_id"].unique().to_list() == [
        "hkjc:2020-01-01:ST:1"
    ]
    fault = store.read("quarantine").filter(pl.col("column") == column, pl.col("row") == 6)
    assert fault.select("file", "race_id", "got").row(0) == (
        "results.csv",
        "hkjc:2020-01-01:ST:2",
        got,
    )
    assert fault["expected"].item()
    assert len(store.read("races", until="2020-01-01")) == 2


@pytest.mark.parametrize("odds", ["0", "1", "evens", "-3", "inf"])
def test_a_price_that_cannot_be_is_lost_alone(odds, home, tmp_path):
    account = ingest(
        "hkjc", write(tmp_path / "results.csv", [*meeting(1), runner(1, 4, win_odds=odds)]), home
    )
    starts = Store(home, "hkjc").starts(since="2020-01-01")
    assert account.starters == 4
    assert starts["odds"].to_list() == [2.5, 3.5, 4.5, None]
    assert Store(home, "hkjc").read("quarantine").select("row", "got").row(0)[0] == 4


def test_a_race_without_a_winner_is_set_aside(home, tmp_path):
    account = ingest(
        "hkjc", write(tmp_path / "results.csv", [*meeting(1), runner(2, 2), runner(2, 3)]), home
    )
    assert (account.races, account.quarantined) == (1, 2)


def test_a_mended_race_leaves_the_quarantine(home, tmp_path):
    file = write(tmp_path / "results.csv", [*meeting(1), runner(1, 4, place="XX")])
    assert ingest("hkjc", file, home).races == 0
    assert len(Store(home, "hkjc").read("quarantine")) == 1
    assert ingest("hkjc", write(file, meeting(1)), home).races == 1
    assert Store(home, "hkjc").read("quarantine").is_empty()


def test_one_parquet_or_a_folder_of_meetings_is_the_same(tmp_path):
    days = ["2019-12-29", "2020-01-01", "2020-01-05"]
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "results").mkdir(parents=True)
    write(tmp_path / "all.csv", [line for d in days for line in meeting(date=d)])
    pl.read_csv(tmp_path / "all.csv", infer_schema=False).write_parquet(
        tmp_path / "a" / "results.parquet"
    )
    for d in days:
        pl.read_csv(write(tmp_path / "day.csv", meeting(date=d)), infer_schema=False).write_csv(
            tmp_path / "b" / "results" / f"{d}.csv"
        )
    stores = []
    for part in "ab":
        home = Home(tmp_path / f"home_{part}", "")
        ingest("hkjc", tmp_path / part, home)
        stores.append(Store(home, "hkjc"))
    assert stores[0].fingerprint == stores[1].fingerprint
    assert len(stores[0].starts()) == 18


def test_files_of_one_name_in_many_folders_are_told_apart(home, tmp_path):
    for d in ("2020-01-01", "2020-01-05"):
        (tmp_path / "all" / d).mkdir(parents=True)
        write(
            tmp_path / "all" / d / "results.csv", [*meeting(1, date=d), runner(1, 4, d, win_odds=1)]
        )
    account = ingest("hkjc", tmp_path / "all", home)
    faults = Store(home, "hkjc").read("quarantine")
    assert (account.races, account.starters) == (2, 8)
    assert faults["file"].to_list() == ["2020-01-01/results.csv", "2020-01-05/results.csv"]


def test_duplicates_are_counted_once_each(home, tmp_path):
    account = ingest(
        "hkjc", write(tmp_path / "results.csv", [*meeting(), *meeting(), meeting()[0]]), home
    )
    assert (account.rows_read, account.duplicates, account.starters) == (13, 7, 6)
    assert (
        account.rows_read
        == account.duplicates + account.quarantined + account.non_runners + account.starters
    )


def test_an_unknown_source_is_refused(home, tmp_path):
    with pytest.raises(BadInput, match="hkjc"):
        ingest("hkj", tmp_path, home)


def test_the_header_of_the_made_files_is_what_the_adapter_needs():
    from racing_core.data.hkjc import KINDS

    assert HEAD.split(",") == KINDS["results"].split()
