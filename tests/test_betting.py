"""Stakes, settlement and bankroll paths from outside: rules by hand, placebos, and what must hold for any bet."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from racing_core.betting import backtest, settlement, staking
from racing_core.errors import BadInput
from racing_core.odds import implied, softmax


def world(races=800, noise=0.0, takeout=0.175, seed=0):
    "True probabilities, market odds, winners, races and days."
    rng = np.random.default_rng(seed)
    race = np.repeat(np.arange(races), rng.integers(8, 13, races))
    utility = rng.normal(size=len(race))
    q = softmax(utility + rng.normal(0, noise, len(race)), race)
    return softmax(utility, race), np.maximum((1 - takeout) / q, 1.01), drawn(softmax(utility, race), race, rng), race, race // 8


def drawn(p, race, rng):
    "One winner per race with these chances."
    noisy = np.log(p) + rng.gumbel(size=len(p))
    win = np.zeros(len(p))
    win[np.lexsort((-noisy, race))[np.searchsorted(race, np.arange(race.max() + 1))]] = 1
    return win


chances = st.floats(0, 1)
prices = st.floats(1.01, 1000)


@given(st.lists(st.tuples(chances, prices), min_size=1, max_size=20))
def test_kelly_never_stakes_without_edge_nor_above_p(bets):
    p, odds = np.array(bets).T
    stake = staking.fractional_kelly(1)(p, odds)
    assert ((stake > 0) <= (p * odds > 1)).all()
    assert (stake <= p + 1e-12).all()
    growth = p * np.log1p(stake * (odds - 1) - 1e-15) + (1 - p) * np.log1p(-np.minimum(stake, 1 - 1e-12))
    assert (growth >= -1e-9).all()  # full Kelly does not shrink the bankroll in expectation


@given(prices, st.floats(0.01, 0.99), st.floats(-0.05, 0.05))
def test_kelly_maximises_log_growth(odds, p, off):
    def growth(f):
        return p * np.log1p(f * (odds - 1)) + (1 - p) * np.log1p(-f)

    best = staking.fractional_kelly(1)(np.array([p]), np.array([odds]))[0]
    assert growth(best) >= growth(np.clip(best + off, 0, 0.999)) - 1e-12


def test_controls_apply_in_order_whatever_the_strategy():
    p, odds = np.array([0.6, 0.35, 0.2]), np.array([2.0, 3.0, np.nan])
    assert staking.stakes(p, odds, staking.flat(0.5), (staking.cap(0.1),)).tolist() == [0.1, 0.1, 0]
    assert staking.stakes(p, odds, staking.flat(0.5), (staking.minimum_edge(0.1), staking.cap(0.1))).tolist() == [0.1, 0, 0]
    with pytest.raises(BadInput, match="impossible stake"):
        staking.stakes(p, odds, lambda p, odds: np.full(3, np.nan))


@pytest.mark.parametrize(
    ("stake", "odds", "win", "kw", "returned"),
    [
        (10, 3.0, 1, {}, 30),
        (10, 3.0, 0, {}, 0),
        (10, 3.0, 1 / 2, {}, 15),
        (12, 3.0, 1 / 3, {}, 12),
        (10, 1.5, 1 / 2, {}, 7.5),
        (10, 3.0, 1, {"commission": 0.05}, 29),
        (10, 1.5, 1 / 2, {"commission": 0.05}, 7.5),
        (10, np.nan, 0, {"non_runner": [True]}, 10),
        (10, 3.0, 1, {"non_runner": [True], "commission": 0.05}, 10),
        (0, np.nan, 0, {}, 0),
    ],
)
def test_settlement_by_the_rules(stake, odds, win, kw, returned):
    assert settlement.settle_win([stake], [odds], [win], **kw).tolist() == pytest.approx([returned])


@given(st.integers(1, 5), prices, st.floats(0.01, 1e6))
def test_backing_every_dead_heater_returns_the_stake_at_mean_odds(k, odds, stake):
    returned = settlement.settle_win(np.full(k, stake), np.full(k, odds), np.full(k, 1 / k))
    assert returned.sum() == pytest.approx(stake * odds)


def test_bets_that_cannot_be_settled_name_the_row():
    for stake, odds, win in [(-1, 2, 1), (np.nan, 2, 1), (1, 1, 1), (1, np.nan, 1), (1, 2, np.nan), (1, 2, 1.5)]:
        with pytest.raises(BadInput, match="row 1"):
            settlement.settle_win([1, stake], [2, odds], [0, win])


def test_the_market_finds_nothing_to_bet_on_in_itself():
    _, odds, win, race, day = world(noise=0.3)
    path = backtest.run(implied(odds, race), odds, win, race, day)
    assert path["bets"].sum() == 0
    assert backtest.figures(path)["roi"] is None


def test_backing_everything_loses_the_takeout():
    _, odds, win, race, _ = world(noise=0.3)
    r = backtest.bet_everything(odds, win, race)
    assert r["to_return_unit"] == pytest.approx(-0.175, abs=0.003)
    fair = backtest.bet_everything(*world(6000)[1:4])
    assert fair["unit_on_each"] == pytest.approx(-0.175, abs=0.05)


def test_shuffled_outcomes_leave_no_skill():
    p, odds, _, race, day = world(races=5000, noise=0.3)
    win = drawn(implied(odds, race), race, np.random.default_rng(9))
    f = backtest.figures(backtest.run(p, odds, win, race, day, staking.flat(0.001)))
    assert f["bets"] > 500
    assert f["roi_ci"][0] < -0.175 < f["roi_ci"][1]


def test_skill_pays_where_there_is_some():
    p, odds, win, race, day = world(noise=0.4)
    f = backtest.figures(backtest.run(p, odds, win, race, day, staking.flat(0.001)))
    assert f["roi_ci"][0] > 0
    assert f["growth"] > 0
    assert f["label"].startswith("optimistic")


def test_a_dead_heat_in_the_path():
    race, day = np.array([0, 0, 0]), np.array([7, 7, 7])
    path = backtest.run([0.5, 0.4, 0.1], [4.0, 4.0, 4.0], [0.5, 0.5, 0], race, day, staking.flat(0.1), (), bankroll=100)
    assert path.rows(named=True)[0] == pytest.approx({"day": 7, "races": 1, "bets": 2, "turnover": 20, "profit": 20, "bankroll": 120})


@given(st.integers(0, 1000), st.floats(0, 3), st.floats(0, 0.1))
@settings(max_examples=25, deadline=None)
def test_the_books_balance(seed, kelly, commission):
    p, odds, win, race, day = world(races=40, noise=0.6, seed=seed)
    path = backtest.run(p, odds, win, race, day, staking.fractional_kelly(kelly), (), commission=commission)
    before = np.append(10_000, path["bankroll"][:-1])
    assert path["bankroll"].to_numpy() == pytest.approx(before + path["profit"].to_numpy(), abs=1e-6)
    assert (path["bankroll"] >= 0).all()
    assert (path["turnover"].to_numpy() <= before * (1 + 1e-9)).all()
    moved = np.random.default_rng(seed).permutation(len(race))
    again = backtest.run(p[moved], odds[moved], win[moved], race[moved], day[moved], staking.fractional_kelly(kelly), (), commission=commission)
    assert again["bankroll"].to_numpy() == pytest.approx(path["bankroll"].to_numpy())
    f = backtest.figures(path)
    assert 0 <= f["max_drawdown"] <= 1


def test_paying_at_a_worse_price_than_chosen_is_possible():
    p, odds, win, race, day = world(noise=0.4)
    chosen = backtest.figures(backtest.run(p, odds, win, race, day, staking.flat(0.001)))
    paid = backtest.figures(backtest.run(p, odds, win, race, day, staking.flat(0.001), settle_odds=1 + 0.9 * (odds - 1)), label="settled at a later price")
    assert paid["roi"] < chosen["roi"]
    assert paid["label"] == "settled at a later price"


def test_the_deepest_fall_is_measured_from_the_peak_before_it():
    odds, race = np.full(3, 3.0), np.arange(3)
    path = backtest.run(np.full(3, 0.5), odds, [0, 1, 1], race, race, staking.flat(0.5), (), bankroll=100)
    assert path["bankroll"].to_list() == [50, 100, 200]
    f = backtest.figures(path)
    assert f["max_drawdown"] == 0.5
    assert f["growth"] == 1
    assert f["roi"] == pytest.approx(100 / (50 + 25 + 50))
