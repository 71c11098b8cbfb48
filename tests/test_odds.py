"""Odds and softmax from outside: properties that hold for any card."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from racing_core.errors import BadInput
from racing_core.odds import fair_odds, has_market, implied, log_softmax, overround, power, softmax


@st.composite
def cards(draw, values):
    "A few races of 1 to 20 runners: (numbers per runner, race codes)."
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=6))
    n = sum(sizes)
    return np.array(draw(st.lists(values, min_size=n, max_size=n))), np.repeat(
        np.arange(len(sizes)), sizes
    )


ODDS = st.floats(1.01, 1000)
UTILITY = st.floats(-500, 500)


def reshuffled(race: np.ndarray, seed: int) -> np.ndarray:
    "A permutation of the rows that stays within races."
    return np.lexsort((np.random.default_rng(seed).random(len(race)), race))


@given(cards(ODDS), st.floats(0.2, 3))
def test_prices_sum_to_one_and_keep_their_order(card, exponent):
    odds, race = card
    for p in (implied(odds, race), power(implied(odds, race), race, exponent)):
        np.testing.assert_allclose(np.bincount(race, p), 1)
        assert (np.diff(p[np.lexsort((odds, race))])[np.diff(race) == 0] <= 1e-15).all()


@given(cards(ODDS))
def test_fair_odds_have_no_overround(card):
    odds, race = card
    p = implied(odds, race)
    np.testing.assert_allclose(np.bincount(race, 1 / fair_odds(p)), 1)
    np.testing.assert_allclose(overround(odds, race)[race] * p, 1 / odds)


@given(cards(UTILITY), st.floats(-1e6, 1e6))
def test_softmax_ignores_a_shift(card, shift):
    u, race = card
    p = softmax(u, race)
    np.testing.assert_allclose(np.bincount(race, p), 1)
    np.testing.assert_allclose(softmax(u + shift, race), p, atol=1e-8, rtol=1e-6)
    np.testing.assert_allclose(np.exp(log_softmax(u, race)), p)


@given(cards(UTILITY), st.integers(0, 99))
def test_softmax_follows_the_runners(card, seed):
    u, race = card
    order = reshuffled(race, seed)
    np.testing.assert_allclose(softmax(u[order], race), softmax(u, race)[order], rtol=1e-12)


@given(cards(UTILITY))
def test_races_do_not_touch_each_other(card):
    u, race = card
    alone = np.concatenate(
        [softmax(u[race == r], np.zeros((race == r).sum(), int)) for r in range(race[-1] + 1)]
    )
    np.testing.assert_array_equal(softmax(u, race), alone)


@given(cards(ODDS), st.data())
def test_one_missing_price_closes_its_race_only(card, data):
    odds, race = card
    gap = data.draw(st.integers(0, len(odds) - 1))
    odds[gap] = np.nan
    assert has_market(odds, race).tolist() == [r != race[gap] for r in range(race[-1] + 1)]
    with pytest.raises(BadInput, match=f"row {gap}, race {race[gap]}"):
        implied(odds, race)


@pytest.mark.parametrize("bad", [1.0, 0.0, -3.0, np.inf])
def test_impossible_odds_name_their_row(bad):
    with pytest.raises(BadInput, match="row 2, race 1"):
        overround([2.0, 2.0, bad], [0, 0, 1])


@pytest.mark.parametrize(
    "race", [[0, 1, 0], [0, 2, 2], [1, 1, 1], [-1, 0, 0], [0.0, 0.0, 1.0], [0, 0]]
)
def test_bad_race_codes_are_refused(race):
    with pytest.raises(BadInput, match="race codes"):
        softmax([0.0, 1.0, 2.0], np.array(race))
