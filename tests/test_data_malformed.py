"""Broken files: an error that names the place, or a quarantined race; never half a race, never a changed store."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest
from hkjc_files import HEAD, meeting, runner, write

from racing_core.app import main as cli
from racing_core.config import Home
from racing_core.data import files
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


def packed(path: Path, cut: int = 0) -> Path:
    data = gzip.compress("\n".join([HEAD, *meeting()]).encode())
    path.write_bytes(data[: len(data) - cut])
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
    "utf-16 by name": (lambda d: write(d / "results.csv", meeting(), "utf-16"), "UTF-16"),
    "gzip called csv": (lambda d: packed(d / "results.csv"), "gzip"),
    "a workbook called csv": (lambda d: (d / "results.csv").write_bytes(b"PK\x03\x04 rest"), "zip"),
    "parquet called csv": (
        lambda d: parquet(d / "results.parquet").rename(d / "results.csv"),
        "parquet",
    ),
    "a cut gzip": (lambda d: packed(d / "results.csv.gz", cut=20), "results.csv.gz"),
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
    "a place of eleven digits": (dict(place="12345678901"), "place", "12345678901"),
    "a place in wide digits": (dict(place="３"), "place", "３"),
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


LOST = {
    "a going nobody knows": (dict(going="泥"), "going", "泥"),
    "a weight in words": (dict(actual_wt_lbs="heavy"), "actual_wt_lbs", "heavy"),
    "a weight of nothing": (dict(actual_wt_lbs=0), "weight_kg", "0.0"),
    "a weight beyond counting": (dict(actual_wt_lbs="1e308"), "weight_kg", None),
    "a time of an hour": (dict(finish_time="61:00.00"), "time_s", "3660.0"),
    "a margin nobody knows": (dict(lbw="a bit"), "lbw", "a bit"),
    "a draw in wide digits": (dict(draw="３"), "draw", "３"),
    "a running position of eleven digits": (dict(running_position="12345678901 3"), None, None),
    "a class nobody knows": (dict(race_class="第九班"), "race_class", "第九班"),
}


@pytest.mark.parametrize("case", LOST)
def test_an_optional_cell_that_is_not_understood_is_lost_alone(case, home, tmp_path):
    change, column, got = LOST[case]
    rows = [*meeting(1), runner(2, 1), runner(2, 2), runner(2, 3, **change)]
    account = ingest("hkjc", write(tmp_path / "results.csv", rows), home)
    assert (account.races, account.quarantined, account.starters) == (2, 0, 6)
    faults = Store(home, "hkjc").read("quarantine")
    if column:
        assert faults.select("row", "column").rows() == [(6, column)]
        assert got is None or faults["got"].item() == got
        assert list(account.values.values()) == [faults["got"].to_list()]


def test_a_reason_shows_at_most_three_of_its_values(home, tmp_path):
    rows = [runner(1, n, lbw=f"far {min(n, 4)}") for n in range(1, 7)]
    account = ingest("hkjc", write(tmp_path / "results.csv", rows), home)
    assert account.why == {"lbw: expected lengths like 1-1/4": 6}
    assert account.values == {"lbw: expected lengths like 1-1/4": ["far 1", "far 2", "far 3"]}


@pytest.mark.parametrize("odds", ["0", "evens", "-3", "inf"])
def test_a_price_that_cannot_be_is_lost_alone(odds, home, tmp_path):
    account = ingest(
        "hkjc", write(tmp_path / "results.csv", [*meeting(1), runner(1, 4, win_odds=odds)]), home
    )
    starts = Store(home, "hkjc").starts(since="2020-01-01")
    assert account.starters == 4
    assert starts["odds"].to_list() == [2.5, 3.5, 4.5, None]
    assert Store(home, "hkjc").read("quarantine").select("row", "got").row(0)[0] == 4


def test_the_shortest_favourite_keeps_its_race_a_market(home, tmp_path):
    rows = [runner(1, 1, win_odds=1), runner(1, 2), runner(2, 1), runner(2, 2, win_odds=1)]
    (folder := tmp_path / "day").mkdir()
    write(folder / "results.csv", rows)
    paid = "date,venue,race_no,pool,combination,dividend_hkd\n2020-01-01,沙田,1,獨贏,1,10.80\n"
    (folder / "dividends.csv").write_text(paid, encoding="utf-8")
    ingest("hkjc", folder, home)
    starts = Store(home, "hkjc").starts(since="2020-01-01")
    assert starts["odds"].to_list() == [1.08, 3.5, 2.5, 1.05]


def test_a_runner_without_place_number_and_time_did_not_run(home, tmp_path):
    nothing = dict(place="", horse_no="", draw="---", finish_time="---", win_odds="---")
    rows = [*meeting(1), runner(1, 9, **nothing)]
    account = ingest("hkjc", write(tmp_path / "results.csv", rows), home)
    assert (account.races, account.quarantined, account.non_runners) == (1, 0, 1)


@pytest.mark.parametrize("column", ["win_odds", "jockey", "actual_wt_lbs", "horse_no"])
@pytest.mark.parametrize("word", ["NR", "Non-Runner", "scr", "VOID"])
def test_a_word_for_a_non_runner_is_understood_where_it_stands(column, word, home, tmp_path):
    said = dict(place="", finish_time="---") | {column: word}
    rows = [*meeting(1), runner(1, 9, **said)]
    account = ingest("hkjc", write(tmp_path / "results.csv", rows), home)
    assert (account.races, account.quarantined, account.non_runners) == (1, 0, 1)
    assert Store(home, "hkjc").read("quarantine").is_empty()


@pytest.mark.parametrize("text", ["", HEAD, "\ufeff" + HEAD + "\n"])
def test_a_side_file_without_rows_is_told_and_stops_nothing(text, home, tmp_path):
    (folder := tmp_path / "day").mkdir()
    write(folder / "results.csv", meeting())
    for kind in ("commentary", "dividends", "form_records", "sectional_times"):
        (folder / f"{kind}.csv").write_text(text, encoding="utf-8")
    account = ingest("hkjc", folder, home)
    assert account.races == 2
    assert {n for n in account.notes if "no rows" in n} == {
        f"{kind}.csv: no rows"
        for kind in ("commentary", "dividends", "form_records", "sectional_times")
    }


def test_columns_that_nobody_reads_are_told(home, tmp_path):
    file = write(tmp_path / "results.csv", [f"{line},red" for line in meeting()])
    file.write_text(file.read_text(encoding="utf-8").replace(HEAD, HEAD + ",silks"), "utf-8")
    assert ingest("hkjc", file, home).notes == ["results.csv: columns not read: silks"]


def test_a_packed_file_that_swells_is_refused(home, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LARGEST", 1000)
    file = packed(tmp_path / "results.csv.gz")
    with pytest.raises(BadInput, match="too large"):
        ingest("hkjc", file, home)


def test_brackets_and_stars_in_a_path_are_letters(home, tmp_path):
    (folder := tmp_path / "results [1] *").mkdir()
    parquet(tmp_path / "results.parquet").rename(folder / "results[a].parquet")
    assert ingest("hkjc", folder, home).races == 2
    write(folder / "results[a].csv", meeting())
    (folder / "results[a].parquet").unlink()
    assert ingest("hkjc", folder, home).races == 2


def test_an_id_that_comes_back_for_another_race_is_refused(home, tmp_path):
    row = "{0},{1},{2},{3},{4},3.5,1m,{4}\n"
    head = "race_id,date,course,horse,position,odds,distance,number\n"
    days = [("13/02/2024", "Ascot"), ("14/02/2024", "Ayr")]
    made = []
    for i, (day, course) in enumerate(days):
        file = tmp_path / f"racebase{i}.csv"
        rows = [row.format(r, day, course, f"{course}{n}", n) for r in (1, 2) for n in (1, 2)]
        file.write_text(head + "".join(rows), encoding="utf-8")
        made.append(file)
    assert ingest("racebase", made[0], home).replaced == 0
    assert ingest("racebase", made[0], home).replaced == 2
    before = snapshot(home)
    with pytest.raises(BadInput, match="racebase:1 was Ascot 2024-02-13, now Ayr 2024-02-14"):
        ingest("racebase", made[1], home)
    assert snapshot(home) == before


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
            tmp_path / "all" / d / "results.csv", [*meeting(1, date=d), runner(1, 4, d, win_odds=0)]
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


def test_the_command_tells_what_it_set_aside_and_fails_where_nothing_is_kept(tmp_path, capsys):
    place = ["--home", str(tmp_path / "home")]
    good = write(tmp_path / "good.csv", [*meeting(1), runner(1, 4, lbw="a bit")])
    assert cli.main(["ingest", "hkjc", str(good), "--show-quarantine", *place]) == 0
    out = capsys.readouterr().out
    assert "1 rows: lbw: expected lengths like 1-1/4 (got `a bit`)" in out
    assert "good.csv, row 4, hkjc:2020-01-01:ST:1: lbw is a bit, expected lengths like 1-1/4" in out
    bad = write(tmp_path / "bad.csv", [runner(2, n, place="XX") for n in (1, 2)])
    assert cli.main(["ingest", "hkjc", str(bad), *place]) == 2
    told = capsys.readouterr()
    assert "no race was kept" in told.err and "`XX`" in told.out and "stored as" not in told.out
    assert cli.main(["ingest", "hkjc", str(bad), "--show-quarantine", "--json", *place]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert (answer["races"], answer["replaced"]) == (0, 0)
    assert ["XX"] in answer["values"].values() and "XX" in {f["got"] for f in answer["quarantine"]}
    assert cli.main(["ingest", "hkjc", str(good), "--json", *place]) == 0
    assert json.loads(capsys.readouterr().out)["replaced"] == 1
    run = ["run", "--source", "hkjc", "--data", str(bad), "--home", str(tmp_path / "other")]
    assert cli.main(run) == 2
    assert "no race was kept" in capsys.readouterr().err
