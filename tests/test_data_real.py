"""The adapters on real results: every row is accounted for, and the figures are exact."""

import json
import subprocess
import sys

import polars as pl
import pytest

from racing_core.config import Home
from racing_core.data.ingest import ingest
from racing_core.data.store import Store

MEASURED = """
import json, resource, sys
from pathlib import Path
from racing_core.config import Home
from racing_core.data.ingest import ingest
account = ingest("hkjc", sys.argv[1], Home(Path(sys.argv[2]), "")).as_dict()
print(json.dumps(account | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


@pytest.fixture(scope="module")
def hong_kong(shared_data, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, str(shared_data / "hkjc"), str(home)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(run.stdout), Home(home, "")


def test_hong_kong_reconciles(hong_kong):
    account, _ = hong_kong
    got = {
        k: account[k]
        for k in (
            "rows_read",
            "duplicates",
            "non_runners",
            "starters",
            "races",
            "dead_heats_first",
            "quarantined",
        )
    }
    assert got == dict(
        rows_read=81053,
        duplicates=1228,
        non_runners=1429,
        starters=78396,
        races=6439,
        dead_heats_first=16,
        quarantined=0,
    )
    assert (
        account["rows_read"]
        == account["duplicates"]
        + account["quarantined"]
        + account["non_runners"]
        + account["starters"]
    )
    assert account["peak_mb"] < 2000


def test_hong_kong_twice_is_once(hong_kong, shared_data):
    _, home = hong_kong
    before = {p: p.read_bytes() for p in home.root.rglob("*") if p.is_file()}
    assert not ingest("hkjc", shared_data / "hkjc", home).changed
    assert {p: p.read_bytes() for p in home.root.rglob("*") if p.is_file()} == before


def test_hong_kong_is_plausible(hong_kong):
    starts = Store(hong_kong[1], "hkjc").starts()
    assert len(starts) == 78396
    assert (
        starts["distance_m"].null_count()
        == starts["class_level"].null_count()
        == starts["weight_kg"].null_count()
        == 0
    )
    overround = starts.group_by("race_id").agg(
        over=pl.when(pl.col("odds").is_not_null().all()).then((1 / pl.col("odds")).sum())
    )["over"]
    assert overround.null_count() == 0
    assert overround.mean() == pytest.approx(1.228, abs=0.005)
    winners = starts.filter(pl.col("position") == 1, pl.col("status") == "finished")
    assert len(winners) == 6439 + 16
    assert winners["margin_lengths"].eq(0).all()


def test_a_missing_rating_tells_nothing_about_a_runner(hong_kong):
    starts = Store(hong_kong[1], "hkjc").starts()
    unknown = starts.group_by("race_id").agg(pl.col("rating").is_null().mean())["rating"]
    assert set(unknown.unique()) == {0.0, 1.0}
    assert unknown.mean() < 0.04
    spread = (
        starts.filter(pl.col("rating").is_not_null())
        .sort("race_id", "runner_no")
        .select((pl.col("rating").diff().over("race_id") <= 0).all())
    )
    assert spread.item()
    opened = starts.filter(pl.col("race_id") == "hkjc:2023-09-10:ST:4")
    assert opened["rating"].max() == 118  # told by form records whose years have two digits


def test_dividends_are_what_the_odds_said(hong_kong):
    store = Store(hong_kong[1], "hkjc")
    win = (
        store.read("dividends")
        .filter(pl.col("pool") == "win")
        .with_columns(runner_no=pl.col("combination").cast(pl.Int16))
    )
    paid = win.join(store.read("prices"), on=["race_id", "runner_no"])
    assert len(paid) > 6400
    assert ((paid["dividend"] - paid["odds"]).abs() < 1.0).mean() > 0.99


def test_japan_reconciles(shared_data, tmp_path):
    home = Home(tmp_path, "")
    account = ingest("netkeiba", shared_data / "netkeiba", home)
    assert (account.rows_read, account.races, account.quarantined, account.duplicates) == (
        49149,
        3573,
        0,
        0,
    )
    starts = Store(home, "netkeiba").starts()
    assert len(starts) == account.starters
    assert starts["class_level"].null_count() == 0
    assert starts.filter(pl.col("status") == "finished")["margin_lengths"].null_count() == 0
    finished = starts.filter(pl.col("status") == "finished", pl.col("margin_lengths") < 30)
    behind_s = pl.col("time_s") - pl.col("time_s").min().over("race_id")
    assert finished.select(pl.corr(behind_s, "margin_lengths")).item() > 0.95
    assert not ingest("netkeiba", shared_data / "netkeiba", home).changed
