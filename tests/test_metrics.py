"""Honest numbers from outside: hand-computed cases, the known traps, and what must hold for any season."""

from datetime import date
from itertools import permutations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from racing_core import folds, intervals, metrics, tripwires
from racing_core.errors import BadInput
from racing_core.odds import implied, softmax


def season(races: int = 300, seed: int = 0, tied: bool = False):
    "p, win, position, race, day; a few dead heats and runners that did not finish."
    rng = np.random.default_rng(seed)
    race = np.repeat(np.arange(races), rng.integers(2, 15, races))
    utility = np.round(rng.normal(size=len(race))) if tied else rng.normal(size=len(race))
    finish = utility + rng.gumbel(size=len(race))
    position = (
        pl.DataFrame({"f": -finish, "race": race})
        .select(pl.col("f").rank("min").over("race").cast(float))
        .to_series()
        .to_numpy()
        .copy()
    )
    position[(position == 2) & (rng.random(len(race)) < 0.05)] = 1
    position[(position > 2) & (rng.random(len(race)) < 0.05)] = np.nan
    first = (position == 1).astype(float)
    return softmax(utility, race), first / np.bincount(race, first)[race], position, race, race // 8


seasons = st.builds(
    season, races=st.integers(1, 25), seed=st.integers(0, 10_000), tied=st.booleans()
)


def slow_ndcg(p, position, race, k, gain):
    """The definition, by brute force: mean over every order that agrees with p of DCG over ideal
    DCG."""
    scores = []
    for r in np.unique(race):
        here, place = p[race == r], position[race == r]
        n = len(here)
        worth = {
            "linear": n - place,
            "winner": place == 1,
            "top4_linear": 5 - place,
            "top4_exp": 2.0 ** np.maximum(5 - place, 0) - 1,
        }[gain]
        worth = np.maximum(np.nan_to_num(np.asarray(worth, float)), 0)
        discount = np.array([1 / np.log2(i + 2) if i < k else 0 for i in range(n)])
        ideal = np.sort(worth)[::-1] @ discount
        orders = [list(o) for o in permutations(range(n)) if (np.diff(here[list(o)]) <= 0).all()]
        if ideal > 0:
            scores.append(np.mean([worth[o] @ discount for o in orders]) / ideal)
    return np.mean(scores)


@pytest.mark.parametrize("gain", metrics.GAINS)
@pytest.mark.parametrize("k", [1, 3, 4])
def test_ndcg_equals_the_average_over_every_way_of_breaking_ties(gain, k):
    rng = np.random.default_rng(k)
    race = np.repeat([0, 1, 2, 3], [1, 3, 5, 6])
    p = rng.integers(0, 3, len(race)).astype(float)
    position = np.array([1, 2, 1, np.nan, 1, 1, 3, 4, np.nan, 6, 5, 4, 3, 2, 1], float)
    assert metrics.ndcg(p, position, race, k, gain) == pytest.approx(
        slow_ndcg(p, position, race, k, gain)
    )


@pytest.mark.parametrize("gain", metrics.GAINS)
def test_constant_scores_on_rows_in_finishing_order_are_worth_no_more_than_chance(gain):
    _, _, position, race, _ = season(400)
    stored = np.lexsort((position, race))
    constant = np.ones(len(race))
    rng = np.random.default_rng(1)
    chance = np.mean(
        [metrics.ndcg(rng.random(len(race)), position, race, 3, gain) for _ in range(40)]
    )
    assert metrics.ndcg(constant, position[stored], race, 3, gain) == pytest.approx(
        chance, abs=0.01
    )
    assert metrics.ndcg(constant, position[stored], race, 3, gain) == pytest.approx(
        metrics.ndcg(constant, position, race, 3, gain)
    )


def test_a_race_without_relevance_earns_nothing_and_is_counted():
    race = np.array([0, 0, 1, 1])
    position = np.array([2, 1, np.nan, np.nan])
    assert np.isnan(metrics.race_ndcg(np.arange(4.0), position, race, 4)[1])
    assert metrics.ndcg(np.array([1.0, 0, 0, 0]), position, race, 1, "winner") == 0
    win = np.array([0, 1, 1, 0])
    assert metrics.summary(np.full(4, 0.5), win, position, race, race)["unranked"].value == 1


def test_log_loss_by_hand():
    p, win, race = (
        np.array([0.5, 0.3, 0.2, 0.9, 0.1]),
        np.array([0, 1, 0, 0.5, 0.5]),
        np.array([0, 0, 0, 1, 1]),
    )
    assert metrics.race_logloss(p, win, race) == pytest.approx(
        [1.2039728, 1.2039728], abs=1e-6
    )  # .9 · .1 = .3²
    assert metrics.mcfadden_r2(p, win, race) == pytest.approx(
        1 - 2 * 1.2039728 / (np.log(3) + np.log(2)), abs=1e-6
    )
    assert metrics.top1(p, win, race) == 0.25
    assert metrics.brier(p, win) == pytest.approx((0.25 + 0.49 + 0.04 + 0.16 + 0.16) / 5)


def test_log_loss_cannot_be_bought():
    p, win, race = np.array([0.5, 0.5]), np.array([1, 0]), np.array([0, 0])
    for cheat in (p * 1.1, np.array([1.0, 1.0]), np.array([1.5, -0.5]), np.array([np.nan, 1.0])):
        with pytest.raises(BadInput):
            metrics.logloss(cheat, win, race)
    with pytest.raises(BadInput, match="race 0"):
        metrics.logloss(p, np.zeros(2), race)  # no winner would cost nothing
    with pytest.raises(BadInput, match="gaps"):
        metrics.logloss(p, win, np.array([1, 1]))  # a race without runners would cost nothing
    assert metrics.logloss(np.array([0.0, 1.0]), win, race) == np.inf


@given(seasons, st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_no_figure_sees_row_order(world, seed):
    p, win, position, race, day = world
    moved = np.random.default_rng(seed).permutation(len(race))
    one, two = (metrics.summary(*(x[i] for x in world)) for i in (slice(None), moved))
    assert (two.races, two.starters) == (one.races, one.starters)
    assert one.figures.keys() == two.figures.keys() == metrics.METRICS.keys()
    for name, figure in one.figures.items():
        ends = [(e.value, e.low or 0.0, e.high or 0.0) for e in (figure, two[name])]
        assert ends[0] == pytest.approx(ends[1], nan_ok=True), name


@given(seasons)
@settings(max_examples=30, deadline=None)
def test_bounds_and_identities(world):
    p, win, position, race, day = world
    flat = metrics.uniform(race)
    assert metrics.top1(flat, win, race) == pytest.approx(
        flat[np.unique(race, return_index=True)[1]].mean()
    )
    assert metrics.logloss(flat, win, race) == pytest.approx(metrics.uniform_logloss(race))
    assert metrics.ece(flat, win) == pytest.approx(0, abs=1e-12)
    assert 0 <= metrics.auc(p, win) <= 1
    assert metrics.auc(p, win) + metrics.auc(-p, win) == pytest.approx(1)
    for gain in metrics.GAINS:
        worth = metrics.gains(position, race, gain)
        if worth.any():
            assert metrics.ndcg(worth, position, race, 4, gain) == pytest.approx(1)
            assert 0 <= metrics.ndcg(p, position, race, 4, gain) <= 1 + 1e-12
    d = metrics.delta_r2(p, flat, win, race, day)
    assert d.value == pytest.approx(metrics.mcfadden_r2(p, win, race))
    assert d.low <= d.high
    back = metrics.delta_r2(flat, p, win, race, day)
    assert back == pytest.approx((-d.value, -d.high, -d.low))


def test_auc_and_brier_agree_with_scikit_learn():
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    p, win = rng.integers(0, 20, 500) / 20, rng.integers(0, 2, 500)
    assert metrics.auc(p, win) == pytest.approx(sk.roc_auc_score(win, p))
    assert metrics.brier(p, win) == pytest.approx(sk.brier_score_loss(win, p))


def test_ndcg_agrees_with_scikit_learn_where_nothing_is_tied():
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    p, place = rng.random(10), rng.permutation(10) + 1.0
    ours = metrics.ndcg(p, place, np.zeros(10, int), 4, "top4_exp")
    assert ours == pytest.approx(sk.ndcg_score([metrics.GAINS["top4_exp"](place, 10)], [p], k=4))


def test_reliability_bins_hold_equal_counts_and_keep_ties_together():
    p = np.repeat([0.1, 0.2, 0.3], [50, 1, 49])
    r = metrics.reliability(p, p > 0.2, 4)
    assert r["starters"].sum() == 100
    assert r.height <= 3
    r = metrics.reliability(np.linspace(0.01, 0.5, 1000), np.zeros(1000), 10)
    assert r["starters"].to_list() == [100] * 10
    assert (r["low"] <= r["win_rate"]).all()
    assert (r["high"] > 0).all()


def test_the_bootstrap_resamples_days():
    rng = np.random.default_rng(0)
    day = np.repeat(np.arange(60), 10)
    values = np.repeat(rng.normal(size=60), 10)  # races of a day move together
    by_day, by_race = (intervals.cluster_bootstrap(values, d) for d in (day, np.arange(600)))
    assert by_day.value == pytest.approx(values.mean())
    assert (by_day.high - by_day.low) / (by_race.high - by_race.low) == pytest.approx(
        np.sqrt(10), rel=0.15
    )
    assert by_day.high - by_day.low == pytest.approx(
        2 * 1.96 * values[::10].std() / np.sqrt(60), rel=0.1
    )
    assert intervals.cluster_bootstrap(values, day, seed=1) != by_day
    dates = np.datetime64("2023-01-01") + day
    assert intervals.cluster_bootstrap(values, dates) == by_day


def test_delta_r2_wants_one_day_for_each_race():
    p, win, _, race, _ = season(20)
    with pytest.raises(BadInput, match="disagree"):
        metrics.delta_r2(p, p, win, race, np.arange(len(race)))


def test_scoreboard_puts_neighbours_beside_the_model():
    p, win, position, race, day = season(200)
    board = metrics.scoreboard(
        {"model": p, "market": np.sqrt(p) / np.bincount(race, np.sqrt(p))[race], "oracle": p},
        win,
        position,
        race,
        day,
    )
    assert board["name"].to_list() == ["model", "market", "oracle", "uniform"]
    assert board["of_attainable"].to_list()[::2] == [1, 1]
    assert {
        "logloss",
        "r2",
        "r2_low",
        "r2_high",
        "top1",
        "ndcg_linear@1",
        "ndcg_top4_exp@10",
        "brier",
        "ece",
        "auc",
        "races",
        "unranked",
    } <= set(board.columns)
    assert "of_attainable" not in metrics.scoreboard({"model": p}, win, position, race, day).columns


def test_tripwires():
    p, win, position, race, day = season(400)
    honest = metrics.summary(p, win, position, race, day)
    returns = {"to_return_unit": -0.18, "unit_on_each": -0.24}
    assert [w.name for w in tripwires.tripwires(honest)] == ["top1", "ndcg_linear@1", "auc"]
    wires = {w.name: w for w in tripwires.tripwires(honest, returns, 0.175, 0.0031)}
    assert wires["delta_r2"].tripped
    assert not wires["bet_everything_to_return_unit"].tripped
    assert wires["bet_everything_to_return_unit"].limit == pytest.approx((-0.225, -0.125))
    leak = metrics.summary(0.9 * win + 0.1 * p, win, position, race, day)
    assert all(w.tripped for w in tripwires.tripwires(leak))
    unknown = dict.fromkeys(("top1", "auc", "ndcg_linear@1"), intervals.Estimate(np.nan))
    assert all(w.tripped for w in tripwires.tripwires(metrics.Board(1, 2, unknown)))


def test_the_hong_kong_market_scores_what_is_known_of_it(shared_data):
    rows = (
        pl.read_parquet(shared_data / "hkjc" / "results.parquet")
        .unique(maintain_order=True)
        .filter(~pl.col("place").str.starts_with("W"))
    )
    rows = rows.with_columns(position=pl.col("place").str.extract(r"^(\d+)").cast(float)).sort(
        "date", "venue", "race_no", maintain_order=True
    )
    race = (
        rows.select(pl.struct("date", "venue", "race_no").rle_id())
        .to_series()
        .to_numpy()
        .astype(int)
    )
    position = rows["position"].fill_null(np.nan).to_numpy()
    first = (position == 1).astype(float)
    win, odds = (
        first / np.bincount(race, first)[race],
        rows["win_odds"].cast(float).clip(1.001).to_numpy(),
    )  # five favourites stood at 1.0
    s = metrics.summary(implied(odds, race), win, position, race, rows["date"].to_numpy())
    assert (s.races, s.starters) == (6439, 78396)
    assert s["r2"].value == pytest.approx(0.194, abs=0.001)
    assert s["top1"].value == pytest.approx(0.306, abs=0.001)
    assert s["ndcg_linear@1"].value == pytest.approx(0.772, abs=0.01)
    assert s["ndcg_winner@4"].value == pytest.approx(0.530, abs=0.01)


DAYS = np.arange("2018-01-01", "2024-01-01", 5, dtype="datetime64[D]").repeat(3)


@given(
    st.dates(date(2019, 2, 1), date(2023, 12, 1)),
    st.integers(1, 1500),
    st.randoms(use_true_random=False),
)
@settings(max_examples=50, deadline=None)
def test_windows_walk_forward_and_cover_the_test_once(test_from, length, random):
    days = DAYS.copy()
    random.shuffle(days)
    test_to = date.fromordinal(test_from.toordinal() + length)
    inside = (days >= np.datetime64(test_from)) & (days <= np.datetime64(test_to))
    if not inside.any():
        return
    windows = folds.split(days, test_from, test_to)
    assert np.array_equal(np.sum([w.test for w in windows], axis=0), inside)
    for w in windows:
        assert days[w.train].max() < days[w.tune].min()
        assert days[w.tune].max() < days[w.test].min()
        past, tuned = (
            (days[w.test].min() - since).astype(int) for since in (days.min(), days[w.tune].min())
        )
        assert 360 <= tuned <= 371 if past > 735 else abs(tuned - past / 3) <= 10 or past >= 725, (
            "a year, or the last third of a short past"
        )
        assert (days[w.test].max() - days[w.test].min()).astype(int) <= 366


def test_a_split_without_training_days_says_what_there_is():
    with pytest.raises(BadInput, match=r"nothing to train on.*2018-01-01 to 2023-1"):
        folds.split(DAYS, date(2018, 1, 1))
    with pytest.raises(BadInput, match="no race in the test window"):
        folds.split(DAYS, date(2030, 1, 1))
    with pytest.raises(BadInput, match="without date"):
        folds.split([date(2020, 1, 1), None], date(2020, 1, 1))


def test_split_takes_a_polars_column():
    (w,) = folds.split(pl.Series(DAYS).cast(pl.Date), date(2023, 1, 1))
    assert w.train.sum() + w.tune.sum() + w.test.sum() == len(DAYS)


@given(
    st.lists(st.dates(date(2020, 1, 1), date(2020, 12, 31)), min_size=2, max_size=200),
    st.integers(1, 8),
)
@settings(max_examples=50, deadline=None)
def test_folds_train_on_the_past_only(dates, n):
    if n >= len(set(dates)):
        with pytest.raises(BadInput):
            folds.walk_forward(dates, n)
        return
    pairs = folds.walk_forward(dates, n)
    days = np.array(dates, dtype="datetime64[D]")
    assert len(pairs) == n
    for train, predict in pairs:
        assert days[train].max() < days[predict].min()
    assert np.array_equal(np.sum([predict for _, predict in pairs], axis=0), ~pairs[0][0])
