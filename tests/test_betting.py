"""Stakes, settlement and bankroll paths from outside: rules by hand, placebos, and what must hold for any bet."""

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
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
    return (
        softmax(utility, race),
        np.maximum((1 - takeout) / q, 1.01),
        drawn(softmax(utility, race), race, rng),
        race,
        race // 8,
    )


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
    stake = staking.fractional_kelly(1)(staking.Bets(p, odds))
    assert ((stake > 0) <= (p * odds > 1)).all()
    assert (stake <= p + 1e-12).all()
    growth = p * np.log1p(stake * (odds - 1) - 1e-15) + (1 - p) * np.log1p(
        -np.minimum(stake, 1 - 1e-12)
    )
    assert (growth >= -1e-9).all()  # full Kelly does not shrink the bankroll in expectation


@given(prices, st.floats(0.01, 0.99), st.floats(-0.05, 0.05))
def test_kelly_maximises_log_growth(odds, p, off):
    def growth(f):
        return p * np.log1p(f * (odds - 1)) + (1 - p) * np.log1p(-f)

    best = staking.fractional_kelly(1)(staking.Bets([p], [odds]))[0]
    assert growth(best) >= growth(np.clip(best + off, 0, 0.999)) - 1e-12


def test_controls_apply_in_order_whatever_the_strategy():
    bets = staking.Bets([0.6, 0.35, 0.2], [2.0, 3.0, np.nan])
    assert staking.stakes(bets, staking.flat(0.5), (staking.cap(0.1),)).tolist() == [0.1, 0.1, 0]
    assert staking.stakes(
        bets, staking.flat(0.5), (staking.minimum_edge(0.1), staking.cap(0.1))
    ).tolist() == [0.1, 0, 0]
    with pytest.raises(BadInput, match="impossible stake"):
        staking.stakes(bets, lambda bets: np.full(3, np.nan))


# a race: weights of the chances, and how far each price is from fair
fields = st.lists(st.tuples(st.floats(0.02, 1), st.floats(0.6, 1.3)), min_size=2, max_size=9)


def field(pairs):
    weight, generous = np.array(pairs).T
    p = weight / weight.sum()
    return p, np.maximum(generous / p, 1.01)


def log_growth(stake, p, odds):
    return float(p @ np.log(np.maximum(1 - stake.sum() + stake * odds, 1e-300)))


@given(fields)
@example([(1.0, 1.0), (1.0, 1.0)])
@settings(max_examples=60, deadline=None)
def test_simultaneous_kelly_is_the_convex_optimum(pairs):
    from scipy.optimize import minimize

    p, odds = field(pairs)
    race = np.zeros(len(p), int)
    found = staking.simultaneous_kelly(1)(staking.Bets(p, odds, race))
    assert (found >= 0).all()
    assert found.sum() <= 1 + 1e-9
    best = log_growth(found, p, odds)

    def loss(f):
        wealth = 1 - f.sum() + f * odds
        slope = p / wealth
        return -p @ np.log(wealth), slope.sum() - slope * odds

    bounds, whole = (
        [(0, 0.999)] * len(p),
        {"type": "ineq", "fun": lambda f: 0.999 - f.sum(), "jac": lambda f: -np.ones(len(f))},
    )
    solved = minimize(
        loss,
        np.full(len(p), 0.5 / len(p)),
        jac=True,
        method="SLSQP",
        bounds=bounds,
        constraints=whole,
        options=dict(ftol=1e-14, maxiter=500),
    )
    assert best >= -solved.fun - 1e-7
    if (
        found.sum() < 0.99 and (1 / odds).sum() > 1.05
    ):  # at fair odds a stake on everyone costs nothing: no single best
        assert solved.x == pytest.approx(found, abs=2e-3)


@given(st.lists(fields, min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_races_are_decided_one_by_one_however_many_stand_together(races):
    alone = [
        staking.simultaneous_kelly(0.5)(staking.Bets(*field(pairs), np.zeros(len(pairs), int)))
        for pairs in races
    ]
    p, odds = (np.concatenate(x) for x in zip(*map(field, races), strict=True))
    race = np.repeat(np.arange(len(races)), [len(x) for x in races])
    assert staking.simultaneous_kelly(0.5)(staking.Bets(p, odds, race)) == pytest.approx(
        np.concatenate(alone), abs=1e-9
    )


def test_simultaneous_kelly_leaves_the_unpriced_alone_and_one_bet_is_kelly():
    bets = staking.Bets([0.3, 0.5, 0.2], [4.0, np.nan, 6.0], np.zeros(3, int))
    stake = staking.simultaneous_kelly(1)(bets)
    assert stake[1] == 0 < stake[0]
    one = staking.Bets([0.3], [4.0])
    assert staking.simultaneous_kelly(1)(one) == pytest.approx(staking.fractional_kelly(1)(one))
    nothing = staking.Bets([0.5, 0.5], [1.8, 1.8], np.zeros(2, int))
    assert staking.simultaneous_kelly(1)(nothing).tolist() == [0, 0]


@given(fields, st.floats(0.001, 0.1))
def test_top_3_share_the_stake_of_the_race_by_their_chances(pairs, share):
    p, odds = field(pairs)
    stake = staking.top_3_bet_proportional(share)(staking.Bets(p, odds, np.zeros(len(p), int)))
    assert stake.sum() == pytest.approx(share)
    backed = stake > 0
    assert backed.sum() >= min(3, len(p))
    assert p[backed].min() >= p[~backed].max(initial=0)
    assert stake[backed] / p[backed] == pytest.approx(share / p[backed].sum())


def test_top_3_by_hand_on_the_bankroll_of_the_specification():
    p, race = np.array([0.1, 0.4, 0.2, 0.3, 1.0]), np.array([0, 0, 0, 0, 1])
    path = backtest.run(
        p,
        np.full(5, 3.0),
        [0, 1, 0, 0, 0],
        race,
        np.zeros(5, int),
        staking.top_3_bet_proportional(0.09),
        (),
        bankroll=10_000,
    )
    # 900 a race: 400 on the winner at 3.0, and everything lost in the other race
    assert path.rows(named=True)[0] == pytest.approx(
        {"day": 0, "races": 2, "bets": 4, "turnover": 1800, "profit": -600, "bankroll": 9400}
    )
    tied = staking.top_3_bet_proportional(0.1)(
        staking.Bets([0.25] * 4, [5.0] * 4, np.zeros(4, int))
    )
    assert tied.tolist() == pytest.approx([0.025] * 4)


@given(fields, st.floats(0.05, 0.3), st.floats(0, 0.04), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_isaacs_earns_most_in_the_pool(pairs, takeout, rebate, seed):
    p, odds = field(pairs)
    n = len(p)
    bets = staking.Bets(
        p,
        np.maximum((1 - takeout) * odds * (1 / odds).sum(), 1.001),
        np.zeros(n, int),
        pool=np.full(n, 50.0),
    )

    def profit(x):
        return float(p @ (x * staking.price_after(x, bets, takeout)) - (1 - rebate) * x.sum())

    best = staking.isaacs(takeout, rebate)(bets)
    assert (best >= 0).all()
    assert profit(best) >= -1e-9
    rng = np.random.default_rng(seed)
    for scale in (0.01, 0.3, 5):
        for _ in range(5):
            assert profit(np.maximum(best + rng.normal(0, scale, n), 0)) <= profit(best) + 1e-9


@given(st.floats(0.05, 0.9), st.floats(0.5, 2.5), st.floats(0.01, 100))
@settings(max_examples=60, deadline=None)
def test_kelly_in_a_pool_grows_fastest_at_the_price_that_is_left(p, generous, depth):
    odds = np.maximum(np.array([generous / p, 1 / (1 - p)]), 1.02)
    bets = staking.Bets([p, 1 - p], odds, np.zeros(2, int), pool=np.full(2, depth))
    best = staking.pool_kelly(1, 0.1)(bets)[0]

    def growth(x):
        return p * np.log(1 - x + x * staking.price_after(np.array([x, 0]), bets, 0.1)[0]) + (
            1 - p
        ) * np.log(1 - x)

    for off in (-0.01, -1e-3, 1e-3, 0.01):
        assert growth(best) >= growth(np.clip(best + off, 0, 0.9999)) - 1e-10
    alone = staking.fractional_kelly(1)(
        staking.Bets([p], [max(staking.price_after(np.zeros(2), bets, 0.1)[0], 1.001)])
    )[0]
    assert best <= alone + 1e-9


def test_no_stake_in_the_pool_moves_no_price():
    bets = staking.Bets(
        [0.5, 0.3, 0.2], [1.65, 2.75, 4.125], np.zeros(3, int), pool=np.full(3, 100.0)
    )
    assert staking.price_after(np.zeros(3), bets, 0.175) == pytest.approx(bets.odds)
    assert (
        staking.price_after(np.array([0, 0, 5.0]), bets)[2] < bets.odds[2]
    ) and staking.price_after(np.array([0, 0, 5.0]), bets)[0] > bets.odds[0]


def test_caps_scale_races_and_days_and_keep_proportions():
    day = np.array(["2020-01-01"] * 3 + ["2020-01-02"] * 2, dtype="datetime64[D]")
    bets = staking.Bets(
        [0.5] * 5,
        [3.0, 4, 5, 6, 7],
        np.array([0, 0, 1, 2, 2]),
        day,
        pool=np.array([10, 10, 1, 1, 1.0]),
    )
    want = np.array([0.1, 0.3, 0.2, 0.05, 0.05])
    assert staking.cap_race(0.2)(want, bets) == pytest.approx([0.05, 0.15, 0.2, 0.05, 0.05])
    assert staking.cap_day(0.3)(want, bets) == pytest.approx([0.05, 0.15, 0.1, 0.05, 0.05])
    assert staking.liquidity(0.02)(want, bets) == pytest.approx([0.1, 0.2, 0.02, 0.02, 0.02])
    with pytest.raises(BadInput, match="pool"):
        staking.liquidity()(want, staking.Bets([0.5] * 5, [3.0] * 5))
    with pytest.raises(BadInput, match="rebate"):
        staking.isaacs(0.1, 0.2)


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
    for stake, odds, win in [
        (-1, 2, 1),
        (np.nan, 2, 1),
        (1, 1, 1),
        (1, np.nan, 1),
        (1, 2, np.nan),
        (1, 2, 1.5),
    ]:
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
    path = backtest.run(
        [0.5, 0.4, 0.1],
        [4.0, 4.0, 4.0],
        [0.5, 0.5, 0],
        race,
        day,
        staking.flat(0.1),
        (),
        bankroll=100,
    )
    assert path.rows(named=True)[0] == pytest.approx(
        {"day": 7, "races": 1, "bets": 2, "turnover": 20, "profit": 20, "bankroll": 120}
    )


@given(st.integers(0, 1000), st.floats(0, 3), st.floats(0, 0.1))
@settings(max_examples=25, deadline=None)
def test_the_books_balance(seed, kelly, commission):
    p, odds, win, race, day = world(races=40, noise=0.6, seed=seed)
    path = backtest.run(
        p, odds, win, race, day, staking.fractional_kelly(kelly), (), commission=commission
    )
    before = np.append(10_000, path["bankroll"][:-1])
    assert path["bankroll"].to_numpy() == pytest.approx(
        before + path["profit"].to_numpy(), abs=1e-6
    )
    assert (path["bankroll"] >= 0).all()
    assert (path["turnover"].to_numpy() <= before * (1 + 1e-9)).all()
    moved = np.random.default_rng(seed).permutation(len(race))
    again = backtest.run(
        p[moved],
        odds[moved],
        win[moved],
        race[moved],
        day[moved],
        staking.fractional_kelly(kelly),
        (),
        commission=commission,
    )
    assert again["bankroll"].to_numpy() == pytest.approx(path["bankroll"].to_numpy(), abs=1e-6)
    f = backtest.figures(path)
    assert 0 <= f["max_drawdown"] <= 1


def test_own_money_in_the_pool_costs_the_bettor():
    p, odds, win, race, day = world(races=400, noise=0.4)
    pool = np.full(len(p), 200_000.0)

    def roi(**kw):
        return backtest.figures(
            backtest.run(p, odds, win, race, day, staking.fractional_kelly(0.25), **kw), n=1
        )["roi"]

    deep, small = roi(bankroll=1e4), roi(bankroll=1e4, pool=pool)
    large = roi(bankroll=1e7, pool=pool)
    guarded = roi(
        bankroll=1e7, pool=pool, controls=(staking.within_pool(), staking.liquidity(0.01))
    )
    assert deep > small > large
    assert guarded > large
    assert roi(bankroll=1e4, rebate=0.1) > deep


def test_the_ledger_is_the_path_bet_by_bet():
    p, odds, win, race, day = world(races=200, noise=0.4)
    path, bets = (
        call(p, odds, win, race, day, strategy=staking.flat(0.01), commission=0.02)
        for call in (backtest.run, backtest.ledger)
    )
    assert len(bets) == path["bets"].sum()
    by_day = (
        bets.group_by("day")
        .agg(staked=pl.col("stake").sum(), back=pl.col("returned").sum())
        .sort("day")
    )
    with_bets = path.filter(pl.col("bets") > 0)
    assert by_day["staked"].to_numpy() == pytest.approx(with_bets["turnover"].to_numpy())
    assert (by_day["back"] - by_day["staked"]).to_numpy() == pytest.approx(
        with_bets["profit"].to_numpy()
    )
    assert np.asarray(odds)[bets["row"]] == pytest.approx(bets["odds"].to_numpy())
    bands = backtest.by_odds(bets)
    assert bands["bets"].sum() == len(bets)
    assert bands["won"].sum() == pytest.approx(bets["win"].sum())
    lone = bands.filter(pl.col("bets") > 0).row(0, named=True)
    inside = bets.filter(pl.col("odds") >= lone["from"], pl.col("odds") < lone["to"])
    assert lone["roi"] == pytest.approx(inside["returned"].sum() / inside["stake"].sum() - 1)


def test_sharpe_and_losing_runs_by_hand():
    day = np.array(["2020-01-01", "2020-07-01", "2020-12-30", "2020-12-31"], dtype="datetime64[D]")
    race = np.arange(4)
    path = backtest.run(
        np.array([0.5, 0.5, 0.5, 0.1]),
        np.full(4, 3.0),
        [1, 0, 0, 0],
        race,
        day,
        staking.flat(0.1),
        (),
        bankroll=100,
    )
    f = backtest.figures(path)
    daily = np.array([0.2, -0.1, -0.1])  # the fourth day has no bet
    assert f["sharpe_bet_day"] == pytest.approx(daily.mean() / daily.std(ddof=1))
    assert f["bet_days_per_year"] == pytest.approx(3 / (366 / 365.25))
    assert f["sharpe"] == pytest.approx(f["sharpe_bet_day"] * f["bet_days_per_year"] ** 0.5)
    assert f["losing_days"] == 2
    years = backtest.by_year(path)
    assert years["year"].to_list() == [2020]
    assert years["roi"].item() == pytest.approx(f["roi"])
    assert (
        backtest.figures(backtest.run([0.5], [3.0], [1], race[:1], race[:1], staking.flat(0.1)))[
            "sharpe"
        ]
        is None
    )


@given(st.lists(st.booleans()))
def test_the_longest_run_is_the_longest(lost):
    longest = max((len(run) for run in "".join("x" if x else " " for x in lost).split()), default=0)
    assert backtest.longest_run(np.array(lost, bool)) == longest


def test_placebos_leave_minus_the_takeout():
    p, odds, win, race, day = world(races=1500, noise=0.3)
    table = backtest.placebos(
        p, odds, win, race, day, draws=12, strategy=staking.flat(1e-5)
    )  # stakes so small that the bankroll hardly moves
    fake = table.filter(world="drawn from the market")["roi"]
    assert fake.mean() == pytest.approx(-0.175, abs=3.5 * fake.std() / len(fake) ** 0.5)
    assert fake.std() < 0.15
    assert table["roi"][0] > fake.max()
    assert table.filter(world="the market's own chances")["bets"].item() == 0
    regardless = backtest.placebos(
        p, odds, win, race, day, draws=12, strategy=staking.top_3_bet_proportional(1e-5)
    )
    fake = regardless.filter(world="drawn from the market")["roi"]
    assert fake.mean() == pytest.approx(-0.175, abs=3.5 * fake.std() / len(fake) ** 0.5)
    assert regardless.filter(world="the market's own chances")["roi"].item() < 0


def test_winners_are_drawn_with_their_chances():
    p, race = np.tile([0.7, 0.2, 0.1, 0.0], 20_000), np.repeat(np.arange(20_000), 4)
    win = backtest.drawn(p, race, seed=3).reshape(-1, 4)
    assert (win.sum(1) == 1).all()
    assert win.mean(0) == pytest.approx([0.7, 0.2, 0.1, 0], abs=0.012)


def test_the_next_price_is_chosen_at_one_moment_and_paid_at_another():
    keys = dict(race_id=["a"] * 3, runner_no=[1, 2, 3])
    starts = pl.DataFrame(keys)
    moment = ["morning"] * 3 + ["close"] * 2
    prices = pl.DataFrame(
        dict(
            race_id=["a"] * 5,
            runner_no=[3, 1, 2, 1, 2],
            moment=moment,
            odds=[9.0, 3.0, 4.0, 2.0, 5.0],
        )
    )
    at, label = backtest.next_price(starts, prices)
    assert at["odds"][:2].tolist() == [3, 4]
    assert np.isnan(at["odds"][2])  # never paid, so never chosen
    assert at["settle_odds"][:2].tolist() == [2, 5]
    assert label == "chosen at the morning price, settled at the close price"
    path = backtest.run(
        [0.5, 0.1, 0.4],
        at["odds"],
        [1, 0, 0],
        np.zeros(3, int),
        np.zeros(3, int),
        staking.flat(0.1),
        (),
        100,
        settle_odds=at["settle_odds"],
    )
    assert path["profit"].item() == pytest.approx(10)
    with pytest.raises(BadInput, match="close, morning"):
        backtest.moment_odds(starts, prices, "evening")


def test_paying_at_a_worse_price_than_chosen_is_possible():
    p, odds, win, race, day = world(noise=0.4)
    chosen = backtest.figures(backtest.run(p, odds, win, race, day, staking.flat(0.001)))
    paid = backtest.figures(
        backtest.run(
            p, odds, win, race, day, staking.flat(0.001), settle_odds=1 + 0.9 * (odds - 1)
        ),
        label="settled at a later price",
    )
    assert paid["roi"] < chosen["roi"]
    assert paid["label"] == "settled at a later price"


def test_the_deepest_fall_is_measured_from_the_peak_before_it():
    odds, race = np.full(3, 3.0), np.arange(3)
    path = backtest.run(
        np.full(3, 0.5), odds, [0, 1, 1], race, race, staking.flat(0.5), (), bankroll=100
    )
    assert path["bankroll"].to_list() == [50, 100, 200]
    f = backtest.figures(path)
    assert f["max_drawdown"] == 0.5
    assert f["growth"] == 1
    assert f["roi"] == pytest.approx(100 / (50 + 25 + 50))
