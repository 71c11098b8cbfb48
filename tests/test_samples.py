"""The cards that ship: they belong to the world that `make run` makes, and a forecast of them has history."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from racing_core.app import samples
from racing_core.features.matrix import History
from racing_core.serving.cardfile import read_cards
from racing_core.serving.contract import card_frame
from racing_core.serving.guard import known, stranger_warnings, time_warnings
from racing_core.simulate import simulate

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "sample"
NAMES = ("card.json", "card.csv", "card_manual.json")


@pytest.fixture(scope="module")
def world():
    "What `make run` makes when nobody says otherwise."
    return simulate(4000, seed=0).starts()


@pytest.fixture(scope="module")
def history(world) -> History:
    return History.learn(world)


def test_the_shipped_cards_are_what_the_world_gives(world):
    made = samples.samples(world)
    assert set(made) == {f.name for f in SAMPLE.iterdir()} == set(NAMES)
    differ = [n for n in NAMES if (SAMPLE / n).read_text(encoding="utf-8") != made[n]]
    assert not differ, f"the world has changed: `make samples` writes {differ} anew"


@pytest.mark.parametrize("name", NAMES)
def test_everybody_on_a_shipped_card_has_a_past(name, world, history):
    (card,), left_out = read_cards(str(SAMPLE / name))
    frame, odds = card_frame(card)
    assert not left_out and len(frame) > 5 and odds is not None
    assert known(frame, history, "horse", "horse_id").all()
    assert not stranger_warnings(frame, history)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_card_is_of_the_day_after_the_world_ends(name, world):
    (card,), _ = read_cards(str(SAMPLE / name))
    last = world["date"].max()
    tomorrow = last + timedelta(1)
    assert card.date == tomorrow and not time_warnings(card.date, last, tomorrow)


def test_the_main_job_makes_that_world_by_default():
    from inspect import signature

    from racing_core.app.house import run
    from racing_core.app.mainjob import Job

    for call in (run, Job):
        asked = signature(call).parameters
        assert (asked["races"].default, asked["seed"].default) == (4000, 0)


def test_the_typed_cards_hold_every_notation():
    text = (SAMPLE / "card.csv").read_text() + (SAMPLE / "card_manual.json").read_text()
    rows = json.loads((SAMPLE / "card_manual.json").read_text())["runners"]
    assert any("/" in r["odds"] for r in rows) and any(r["odds"].startswith("+") for r in rows)
    assert all(word in text for word in ("evens", "st ", "lb", "kg", "yes"))
