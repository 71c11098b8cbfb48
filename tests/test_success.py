"""Targets and slices from outside: no verdict is bought by knowing nothing, no missing figure is an error, and every race is counted."""

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from racing_core.betting import backtest as betting
from racing_core.betting.backtest import OPTIMISTIC
from racing_core.lab import targets as su
from racing_core.metrics import brier, summary, uniform
from racing_core.odds import softmax
from racing_core.pages import targets as pages

SOUND = dict(
    bets=900,
    roi=0.31,
    roi_ci=[0.1, 0.5],
    sharpe=1.9,
    max_drawdown=0.1,
    label="paid at a later price",
)
FAST = dict(latency_ms=20.0, size_mb=1.5, training_min=2.0)


def season(races=300, seed=0):
    "Probabilities, shares of the win, positions, races, days."
    rng = np.random.default_rng(seed)
    race = np.repeat(np.arange(races), rng.integers(5, 15, races))
    utility = rng.normal(size=len(race))
    order = np.lexsort((-(utility + rng.gumbel(size=len(race))), race))
    position = np.empty(len(race))
    position[order] = np.arange(len(race)) - np.searchsorted(race, race) + 1
    return (
        softmax(utility, race),
        (position == 1).astype(float),
        position,
        race,
        np.datetime64("2024-01-01") + race // 8,
    )


def states(*args) -> dict:
    return {r["name"]: r["state"] for r in su.success(*args)}


@pytest.fixture(scope="module")
def boards():
    p, win, *rest = season()
    return {
        name: summary(q, win, *rest)
        for name, q in (("model", p), ("market", p), ("uniform", uniform(rest[1])), ("oracle", p))
    }


def test_what_was_asked_for_is_all_there():
    wanted = {t.name: (t.wanted, t.at_most) for t in su.TARGETS}
    assert wanted == {
        "ndcg@1": (0.975, False),
        "ndcg@4": (0.98, False),
        "ndcg@10": (0.97, False),
        "ece": (0.05, True),
        "brier": (0.15, True),
        "top1": (0.89, False),
        "roi": (0.25, False),
        "sharpe": (1.5, False),
        "drawdown": (0.15, True),
        "latency_ms": (150, True),
        "size_mb": (500, True),
        "training_min": (240, True),
    }
    assert all(t.means and t.title for t in su.TARGETS)


def test_knowing_nothing_meets_no_target(boards):
    "The uniform as the model, a punter who never bets: everything that is met is vacuous."
    idle = dict(bets=0, roi=None, roi_ci=None, sharpe=None, max_drawdown=0.0, label=OPTIMISTIC)
    found = states(dict(model=boards["uniform"], uniform=boards["uniform"]), 0.08, idle)
    assert (
        "met" not in found.values()
        and found["ece"] == found["brier"] == "vacuous"
        and found["roi"] == found["drawdown"] == "no figure"
    )


def test_a_clairvoyant_meets_what_can_be_met(boards):
    p, win, position, race, day = season()
    sure = softmax(-20 * position, race)
    found = states(
        dict(boards, model=summary(sure, win, position, race, day)),
        brier(0 * win, win),
        SOUND,
        FAST,
    )
    assert [k for k, v in found.items() if v == "vacuous"] == ["ece", "brier", "drawdown"]
    assert all(v == "met" for k, v in found.items() if k not in ("ece", "brier", "drawdown")), found


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (dict(bets=99), "only 99 bets"),
        (dict(roi_ci=[-0.01, 0.7]), "holds zero"),
        (dict(label=OPTIMISTIC), "optimistic"),
    ],
    ids=["few", "interval", "price"],
)
def test_a_return_that_proves_nothing_is_vacuous(more, why):
    rows = {r["name"]: r for r in su.success({}, None, SOUND | more)}
    assert (
        rows["roi"]["state"] == rows["sharpe"]["state"] == "vacuous" and why in rows["roi"]["why"]
    )
    assert states({}, None, SOUND | more | dict(roi=0.2))["roi"] == "not met", (
        "a target that is missed is missed"
    )


figure = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=False, width=32))


ndcg = st.dictionaries(st.sampled_from(["linear@1", "linear@4"]), figure)
a_board = st.fixed_dictionaries({}, optional=dict(ece=figure, brier=figure, top1=figure, ndcg=ndcg))
interval = st.one_of(st.none(), st.tuples(st.floats(-1, 1), st.floats(-1, 1)))
some_bets = st.fixed_dictionaries(
    {},
    optional=dict(
        bets=st.integers(0, 200), roi=figure, roi_ci=interval, sharpe=figure, max_drawdown=figure
    ),
)
use = st.dictionaries(st.sampled_from(["latency_ms", "size_mb"]), figure)


@settings(max_examples=150, deadline=None)
@given(a_board, some_bets, use, st.booleans())
def test_a_figure_that_is_not_there_is_no_error(board, bets, use, all_of_them):
    rows = su.success(
        (
            dict.fromkeys(("model", "market", "uniform", "oracle"), board)
            if all_of_them
            else dict(model=board)
        ),
        None,
        bets,
        use,
    )
    assert [r["name"] for r in rows] == [t.name for t in su.TARGETS] and {
        r["state"] for r in rows
    } <= set(su.STATES)
    for r in rows:
        assert (r["state"] == "no figure") == (r["model"] is None or np.isnan(r["model"]))
    assert pages.targets_page(rows).count("<tr") == len(rows) + 1


def test_a_run_without_bets_has_no_figure():
    p, win, _, race, day = season(40)
    path = betting.run(p, np.full(len(p), 1.01), win, race, day)
    money = betting.figures(path)
    found = states({}, None, money)
    assert found["roi"] == found["sharpe"] == found["drawdown"] == "no figure"


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), parts=st.integers(1, 5), least=st.integers(1, 80))
def test_every_race_is_in_a_slice_or_counted_as_hidden(seed, parts, least):
    p, win, _, race, day = season(150, seed)
    part = np.random.default_rng(seed).integers(0, parts, 150).astype(str)[race]
    rows, hidden = su.slices(p, uniform(race), win, race, day, {"part": part}, least)
    assert sum(r["races"] for r in rows) + hidden["part"]["races"] == 150
    assert all(r["races"] >= least for r in rows) and len(rows) + hidden["part"]["parts"] == len(
        set(part)
    )
    assert all(
        r["delta_r2"] == pytest.approx(r["r2"] - r["market"])
        and r["delta_r2_ci"][0] <= r["delta_r2_ci"][1]
        for r in rows
    )
    json.dumps([rows, hidden])


def test_a_slice_by_hand():
    p, win, position, race, day = season(240)
    part = np.where(race % 2 == 0, "even", "odd")
    rows, _ = su.slices(p, uniform(race), win, race, day, {"parity": part})
    even = part == "even"
    code = np.unique(race[even], return_inverse=True)[1]
    alone = summary(p[even], win[even], position[even], code, day[even])
    (row,) = (r for r in rows if r["part"] == "even")
    assert (
        row["r2"] == pytest.approx(alone["r2"])
        and row["market"] == pytest.approx(0)
        and row["delta_r2_ci"] == pytest.approx(alone["r2_ci"])
    )


def test_winners_by_odds_against_those_expected():
    p, win, _, race, day = season(2000, 3)
    rows, hidden = su.by_odds(p, p, win, 0.85 / p + 1.0, day)
    assert sum(r["starters"] for r in rows) + hidden["starters"] == len(p)
    assert sum(r["won"] for r in rows) == pytest.approx(2000, abs=hidden["starters"])
    assert all(r["ratio"] == pytest.approx(r["won"] / r["expected"]) for r in rows)
    assert sum(r["ratio_ci"][0] <= 1 <= r["ratio_ci"][1] for r in rows) >= len(rows) - 1, (
        "calibrated at every price"
    )
    wrong, _ = su.by_odds(p**0.7, p, win, 0.85 / p + 1.0, day)
    assert wrong[-1]["ratio_ci"][1] < 1 < wrong[-1]["market_ratio_ci"][1]


def test_bands_by_hand():
    assert su.band(np.array([1.5, 2.0, 31.9, 900.0]), su.ODDS).tolist() == [
        "below 2",
        "2 to 4",
        "16 to 32",
        "32 and more",
    ]
    assert su.band(np.array([5, 8, 9, 14]), su.SIZES).tolist() == [
        "up to 8",
        "up to 8",
        "9 to 11",
        "14 and more",
    ]
    going = pl.Series(["good", "heavy", "good_to_soft", "fast", None])
    assert su.ground(going).tolist() == [
        "good or standard",
        "soft or muddy",
        "yielding",
        "firm or fast",
        "",
    ]


def test_the_page_says_what_it_leaves_out():
    p, win, _, race, day = season(400)
    labels = {
        "course": np.where(race < 330, "Ashbury", "Fen<wick>"),
        "race type": np.full(len(race), "flat"),
    }
    races, hidden = su.slices(p, uniform(race), win, race, day, labels)
    bands, few = su.by_odds(p, p, win, 1 / p + 1, day)
    whole = dict(total=400, races=races, hidden=hidden, odds=bands, odds_hidden=few)
    page = pages.slices_page(whole)
    assert (
        "course: 1 with 70 races" in page
        and "of one race type: flat" in page
        and "<wick>" not in page
    )
    rare, none = (
        pages.slices_page(whole | dict(odds_hidden=dict(parts=int(n > 0), starters=n)))
        for n in (88, 0)
    )
    assert "Left out: 88 starters" in rare and "starters at prices" not in none
    nothing = pages.slices_page(
        dict(total=40, races=[], hidden={"course": dict(parts=2, races=40)}, odds=[])
    )
    assert "course: 2 with 40 races" in nothing
