"""Targets and slices from outside: no verdict is bought by knowing nothing, and every race is counted."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from racing_core.betting import backtest as betting
from racing_core.betting.backtest import OPTIMISTIC
from racing_core.fields import uniform
from racing_core.intervals import Estimate
from racing_core.lab import slices as sl
from racing_core.lab import targets as su
from racing_core.metrics import Board, brier, summary
from racing_core.odds import softmax
from racing_core.pages import targets as pages
from racing_core.records import to_json

SOUND = su.Bankroll(
    label="paid at a later price",
    days=90,
    bets=900,
    turnover=900.0,
    profit=279.0,
    roi=Estimate(0.31, 0.1, 0.5),
    growth=0.4,
    max_drawdown=0.1,
    sharpe=1.9,
)
FAST = su.Operation(latency_ms=20.0, size_mb=1.5, training_min=2.0)


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
    return {v.target.name: v.state for v in su.success(*args)}


@pytest.fixture(scope="module")
def boards():
    p, win, *rest = season()
    return {
        name: summary(q, win, *rest)
        for name, q in (("model", p), ("price", p), ("uniform", uniform(rest[1])), ("oracle", p))
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
    idle = replace(SOUND, bets=0, roi=None, sharpe=None, max_drawdown=0.0, label=OPTIMISTIC)
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
        (dict(roi=Estimate(0.31, -0.01, 0.7)), "holds zero"),
        (dict(label=OPTIMISTIC), "optimistic"),
    ],
    ids=["few", "interval", "price"],
)
def test_a_return_that_proves_nothing_is_vacuous(more, why):
    bets = replace(SOUND, **more)
    found = {v.target.name: v for v in su.success({}, None, bets)}
    assert found["roi"].state == found["sharpe"].state == "vacuous" and why in found["roi"].why
    less = replace(bets, roi=bets.roi._replace(value=0.2))
    assert states({}, None, less)["roi"] == "not met", "a target that is missed is missed"


figure = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=False, width=32))


known = st.floats(allow_nan=True, allow_infinity=False, width=32)
names = st.sampled_from(["ece", "brier", "top1", "ndcg_linear@1", "ndcg_linear@4"])
a_board = st.dictionaries(names, known.map(Estimate)).map(lambda f: Board(1, 2, f))
interval = st.builds(Estimate, known, st.floats(-1, 1), st.floats(-1, 1))
some_bets = st.one_of(
    st.none(),
    st.builds(
        replace,
        st.just(SOUND),
        bets=st.integers(0, 200),
        roi=st.one_of(st.none(), interval),
        sharpe=figure,
        max_drawdown=known,
    ),
)
use = st.builds(su.Operation, figure, figure)


@settings(max_examples=150, deadline=None)
@given(a_board, some_bets, use, st.booleans())
def test_a_figure_that_is_not_there_is_no_error(board, bets, use, all_of_them):
    rows = su.success(
        (
            dict.fromkeys(("model", "price", "uniform", "oracle"), board)
            if all_of_them
            else dict(model=board)
        ),
        None,
        bets,
        use,
    )
    assert [v.target for v in rows] == list(su.TARGETS)
    assert {v.state for v in rows} <= set(su.STATES)
    for v in rows:
        assert (v.state == "no figure") == (v.model is None or np.isnan(v.model))
    assert pages.targets_page(rows).count("<tr") == len(rows) + 1


def test_a_run_without_bets_has_no_figure():
    p, win, _, race, day = season(40)
    money = su.Bankroll.of(betting.run(p, np.full(len(p), 1.01), win, race, day))
    assert money.bets == 0 and money.roi is None
    found = states({}, None, money)
    assert found["roi"] == found["sharpe"] == found["drawdown"] == "no figure"


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), parts=st.integers(1, 5), least=st.integers(1, 80))
def test_every_race_is_in_a_slice_or_counted_as_hidden(seed, parts, least):
    p, win, _, race, day = season(150, seed)
    part = np.random.default_rng(seed).integers(0, parts, 150).astype(str)[race]
    rows, hidden = sl.slices(p, uniform(race), win, race, day, {"part": part}, least)
    assert sum(r.races for r in rows) + hidden["part"].size == 150
    assert all(r.races >= least for r in rows)
    assert len(rows) + hidden["part"].parts == len(set(part))
    assert all(
        r.delta_r2.value == pytest.approx(r.r2 - r.market) and r.delta_r2.low <= r.delta_r2.high
        for r in rows
    )
    json.dumps(to_json([rows, hidden]))


def test_a_slice_by_hand():
    p, win, position, race, day = season(240)
    part = np.where(race % 2 == 0, "even", "odd")
    rows, _ = sl.slices(p, uniform(race), win, race, day, {"parity": part})
    even = part == "even"
    code = np.unique(race[even], return_inverse=True)[1]
    alone = summary(p[even], win[even], position[even], code, day[even])
    (row,) = (r for r in rows if r.part == "even")
    assert (
        row.r2 == pytest.approx(alone["r2"].value)
        and row.market == pytest.approx(0)
        and row.delta_r2 == pytest.approx(alone["r2"])
    )


def test_winners_by_odds_against_those_expected():
    p, win, _, race, day = season(2000, 3)
    rows, hidden = sl.by_odds(p, p, win, 0.85 / p + 1.0, day)
    assert sum(b.starters for b in rows) + hidden.size == len(p)
    assert sum(b.won for b in rows) == pytest.approx(2000, abs=hidden.size)
    assert all(b.ratio.value == pytest.approx(b.won / b.expected) for b in rows)
    assert sum(b.ratio.low <= 1 <= b.ratio.high for b in rows) >= len(rows) - 1, (
        "calibrated at every price"
    )
    wrong, _ = sl.by_odds(p**0.7, p, win, 0.85 / p + 1.0, day)
    assert wrong[-1].ratio.high < 1 < wrong[-1].market_ratio.high


def test_bands_by_hand():
    assert sl.band(np.array([1.5, 2.0, 31.9, 900.0]), sl.ODDS).tolist() == [
        "below 2",
        "2 to 4",
        "16 to 32",
        "32 and more",
    ]
    assert sl.band(np.array([5, 8, 9, 14]), sl.SIZES).tolist() == [
        "up to 8",
        "up to 8",
        "9 to 11",
        "14 and more",
    ]
    going = pl.Series(["good", "heavy", "good_to_soft", "fast", None])
    assert sl.ground(going).tolist() == [
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
    races, hidden = sl.slices(p, uniform(race), win, race, day, labels)
    whole = sl.Slices(400, races, hidden, *sl.by_odds(p, p, win, 1 / p + 1, day))
    page = pages.slices_page(whole)
    assert (
        "course: 1 with 70 races" in page
        and "of one race type: flat" in page
        and "<wick>" not in page
    )
    rare, none = (
        pages.slices_page(replace(whole, odds_hidden=sl.Hidden(int(n > 0), n))) for n in (88, 0)
    )
    assert "Left out: 88 starters" in rare and "starters at prices" not in none
    nothing = pages.slices_page(
        sl.Slices(40, [], {"course": sl.Hidden(2, 40)}, [], sl.Hidden(0, 0))
    )
    assert "course: 2 with 40 races" in nothing
