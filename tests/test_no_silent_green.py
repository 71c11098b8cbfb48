"""No job ends green with nothing done: every one says what it should have made, and fails where it made nothing."""

import contextlib
import json
import shutil
from datetime import date

import polars as pl
import pytest
from test_data_http import Loopback

from racing_core.app import main as cli
from racing_core.app.counts import Counts, behind, of_window
from racing_core.config import Home
from racing_core.config import home as home_of
from racing_core.data.store import Store


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Home:
    "A home with a small world and no model."
    home = home_of(tmp_path_factory.mktemp("home"), env={})
    assert cli.main(["--home", str(home.root), "simulate", "--races", "60"]) == 0
    shutil.copytree(home.store / "simulated", home.store / "mine")
    return home


@pytest.fixture
def service(monkeypatch):
    "A service that has keys, an address, and nothing to say."
    with contextlib.closing(Loopback()) as server:
        for path, name in (("/v1/results", "results"), ("/v1/racecards/pro", "racecards")):
            server.routes[path] = {name: [], "total": 0}
        told = dict.fromkeys(("RACING_API_USER", "RACING_API_PASSWORD"), "a long key")
        told |= {"RACING_API_PLAN": "pro", "RACING_API_URL": server.url}
        told |= {"WEATHERAPI_KEY": "a long key", "WEATHERAPI_URL": server.url}
        for name, value in told.items():
            monkeypatch.setenv(name, value)
        yield server


FILES = {
    "empty.csv": "",
    "head.csv": "race_id,date,course,horse_name,position\n",
    "nobody.json": json.dumps(
        dict(jurisdiction="GB", date="2030-01-01", course="A", race_no=1)
        | dict(surface="turf", distance_m=1600, runners=[])
    ),
    "gone.csv": "country,date,course,race,surface,distance,no,horse,non_runner\n"
    "GB,2030-01-01,A,1,turf,1m,1,Ann,yes\n",
}
CASES = {  # what is fed: (command, exit code, words of the sentence)
    "a folder without files": ("ingest hkjc {tmp}/none", 2, "nothing to read"),
    "a head without rows": ("ingest racebase {tmp}/head.csv", 2, "rows"),
    "no results in a week": (
        "fetch results --since 2026-08-01 --until 2026-08-08",
        1,
        "no races, expected 1",
    ),
    "no cards": ("fetch card", 1, "no races, expected 1"),
    "weather of days without races": (
        "fetch weather --source mine --since 2026-01-01 --until 2026-01-03",
        1,
        "no races, expected 1",
    ),
    "a source without columns of its own": ("leaks --source simulated", 1, "no columns"),
    "a head for a map, no rows": ("map {tmp}/empty.csv --out {tmp}/x.toml", 2, ""),
    "features of nothing": ("features build --source none --out {tmp}/f", 2, "nothing is stored"),
    "a backtest of nothing": ("backtest --source none --test-from 2020-01-01", 2, "nothing"),
    "a backtest after the store's end": (
        "backtest --source simulated --test-from 2031-01-01",
        2,
        "",
    ),
    "a contest of nothing": ("contest --source none --test-from 2020-01-01", 2, "nothing"),
    "training on nothing": ("train --source none", 2, "nothing is stored"),
    "training before the first day": (
        "train --source simulated --until 2001-01-01 --out {tmp}/b",
        2,
        "nothing to train on",
    ),
    "the main job without results": ("run --source hkjc", 2, "nothing is stored"),
    "the main job on an empty folder": ("run --source hkjc --data {tmp}/none", 2, "nothing"),
    "no card": ("predict {tmp}/none.json", 2, "no such card"),
    "a card that is empty": ("predict {tmp}/empty.csv", 2, "card"),
    "a card without runners": ("predict {tmp}/nobody.json", 2, "runners"),
    "a card whose runners are gone": ("predict {tmp}/gone.csv", 2, "nobody is left to run"),
    "bets on a card without runners": ("bets {tmp}/nobody.json", 2, "runners"),
    "freezing a card without runners": ("freeze {tmp}/nobody.json", 2, "runners"),
    "nobody to ask about": ("score", 2, "nobody"),
    "frozen forecasts that are none": ("score-frozen", 1, "no settled forecasts"),
    "a series that is none": ("score-frozen --series 0123", 2, "no such series"),
    "parity without a bundle": ("parity", 2, "there is no champion yet"),
    "serving nothing": ("serve --port 1 --bundle none", 2, "no such bundle"),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_to_work_on_is_a_failure_with_a_sentence(case, home, service, tmp_path, capsys):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "none").mkdir()
    command, code, sentence = CASES[case]
    argv = command.format(tmp=tmp_path).split()
    capsys.readouterr()
    assert cli.main(["--home", str(home.root), *argv, "--json"]) == code
    said = capsys.readouterr()
    assert "racing: " in said.err and sentence in said.err
    told = json.loads(said.out)
    assert told.get("error") or [c for c in told["counts"] if c["complaint"]]


MADE = {  # command: what it counts
    "simulate --races 60": {"races"},
    "features build --source simulated --out {tmp}/f.parquet": {"starters"},
    "map {tmp}/own.csv --out {tmp}/own.toml --force": {"columns"},
    "doctor": {"checks in order"},
}


@pytest.mark.parametrize("command", MADE)
def test_a_job_that_works_says_expected_and_actual(command, home, tmp_path, capsys):
    (tmp_path / "own.csv").write_text("race_id,date,horse\n1,2024-01-01,Ann\n", encoding="utf-8")
    argv = ["--home", str(home.root), *command.format(tmp=tmp_path).split()]
    capsys.readouterr()
    assert cli.main([*argv, "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert {c["what"] for c in counts} == MADE[command]
    assert all(c["actual"] > 0 and c["complaint"] is None for c in counts)
    assert cli.main(argv) == 0
    assert f"{counts[0]['what']}: {counts[0]['actual']:,} of " in capsys.readouterr().out


def test_what_was_fetched_before_is_no_failure(home, service, capsys):
    argv = ["--home", str(home.root), "fetch", "results", "--since", "2026-08-08"]
    assert cli.main([*argv, "--until", "2026-08-08"]) == 0
    assert "races: 0 of 0 (days before 2026-08-08 were fetched earlier)" in capsys.readouterr().out


def test_a_store_that_ends_before_the_window_is_told(home):
    last = Store(home, "simulated").read("races")["date"].max()
    assert behind(home, "simulated", last) == behind(home, "simulated", None) == ""
    late = date(last.year + 1, 1, 1)
    said = of_window(dict(races=5, left_out={"no winner": 2}), home, "simulated", late)
    assert (said.expected, said.actual, said.complain()) == (7, 5, None)
    assert f"the store of simulated ends on {last}" in said.why and "2 no winner" in said.why


def test_fewer_without_a_reason_is_a_failure_too():
    assert Counts("cards", 5, 4).complain() and Counts("cards", 4, 5).complain()
    assert Counts("cards", 5, 4, "one was abandoned").complain() is None
    assert Counts("cards", 5, 0, "all were abandoned").complain()
    assert pl.Series([Counts("cards", 5, 5).complain()]).null_count() == 1
