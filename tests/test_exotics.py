"""Exotic chances from outside: every order of a small field by hand, drawn races, what any field keeps."""

import math
from datetime import date
from itertools import pairwise, permutations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from racing_core.betting import exotics
from racing_core.errors import BadInput
from racing_core.odds import has_market, implied, softmax
from racing_core.starts import positions, race_codes

POWERS = (1.0, 0.81, 0.65, 0.6)
MODELS = {
    "harville": exotics.harville,
    "powers": exotics.stage_powers(POWERS),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
fields = st.lists(st.floats(0.004, 1), min_size=4, max_size=7).map(lambda w: np.array(w) / sum(w))
SIDES = {
    "exacta": 1,
    "quinella": 1,
    "quinella_place": 3,
    "trifecta": 1,
    "trio": 1,
    "quartet": 1,
    "first_four": 1,
}


def one(p):
    return np.zeros(len(p), int)


def enumerated(p, powers, k):
    "Chance of each order of the first k, multiplied out runner by runner."
    chance = np.zeros((len(p),) * k)
    for order in permutations(range(len(p)), k):
        left, product = set(range(len(p))), 1.0
        for runner, power in zip(order, powers, strict=False):
            product *= p[runner] ** power / sum(p[i] ** power for i in left)
            left.discard(runner)
        chance[order] = product
    return chance


@pytest.mark.parametrize("powers", [(1.0,) * 4, POWERS, (1.07, 0.84, 0.75, 0.7)])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_stage_powers_are_what_every_order_multiplied_out_gives(powers, k):
    p = np.array([0.35, 0.25, 0.2, 0.12, 0.05, 0.03])
    assert exotics.stage_powers(powers)(p[None], k)[0] == pytest.approx(
        enumerated(p, powers, k), abs=1e-12
    )


def test_every_pool_is_a_sum_over_orders_of_the_whole_field():
    p = np.array([0.4, 0.25, 0.2, 0.1, 0.05])
    whole = {
        order: chance
        for order, chance in np.ndenumerate(enumerated(p, POWERS + (1.0,), 5))
        if chance > 0
    }
    assert sum(whole.values()) == pytest.approx(1)
    model = MODELS["powers"]
    found = {name: exotics.pool(p, one(p), name, model)[0] for name in exotics.POOLS}

    def total(holds):
        return sum(chance for order, chance in whole.items() if holds(order))

    assert found["exacta"][1, 0] == pytest.approx(total(lambda o: o[:2] == (1, 0)))
    assert found["quinella"][3, 1] == pytest.approx(total(lambda o: set(o[:2]) == {1, 3}))
    assert found["quinella_place"][0, 4] == pytest.approx(total(lambda o: {0, 4} <= set(o[:3])))
    assert found["trifecta"][2, 0, 1] == pytest.approx(total(lambda o: o[:3] == (2, 0, 1)))
    assert found["trio"][0, 4, 2] == pytest.approx(total(lambda o: set(o[:3]) == {0, 2, 4}))
    assert found["quartet"][3, 2, 0, 1] == pytest.approx(total(lambda o: o[:4] == (3, 2, 0, 1)))
    assert found["first_four"][0, 1, 2, 4] == pytest.approx(
        total(lambda o: set(o[:4]) == {0, 1, 2, 4})
    )
    for k in (1, 2, 3, 4):
        assert exotics.place(p, one(p), k, model) == pytest.approx(
            [total(lambda o, i=i, k=k: i in o[:k]) for i in range(5)]
        )


@every_model
@given(fields)
@settings(max_examples=15, deadline=None)
def test_chances_are_whole_and_keep_the_win(model, p):
    for name, winners in SIDES.items():
        k, ordered = exotics.POOLS[name]
        chance = exotics.pool(p, one(p), name, model)[0]
        named = 2 if name == "quinella_place" else k
        shares = (
            1 if ordered else np.prod(np.arange(1, named + 1))
        )  # an unordered combination stands at every order
        assert chance.sum() / shares == pytest.approx(winners)
        assert (chance >= 0).all()
    assert exotics.pool(p, one(p), "trifecta", model)[0].sum((1, 2)) == pytest.approx(p, abs=1e-5)
    assert exotics.place(p, one(p), 3, model).sum() == pytest.approx(3)


@every_model
@given(fields, st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_the_order_of_the_runners_does_not_matter(model, p, seed):
    turn = np.random.default_rng(seed).permutation(len(p))
    before, after = (exotics.pool(q, one(q), "trifecta", model)[0] for q in (p, p[turn]))
    assert after == pytest.approx(before[np.ix_(turn, turn, turn)], abs=1e-7)


@every_model
@given(fields)
@settings(max_examples=15, deadline=None)
def test_the_likelier_runner_is_likelier_everywhere(model, p):
    rank = np.argsort(p)
    two, top = exotics.pool(p, one(p), "quinella", model)[0], exotics.place(p, one(p), 3, model)
    assert (np.diff(top[rank]) >= -1e-9).all()
    best = rank[-1]
    assert (np.diff(two[best][rank[:-1]]) >= -1e-9).all()


@every_model
def test_equal_runners_have_equal_chances(model):
    p = np.full(6, 1 / 6)
    for name in ("exacta", "trifecta", "quartet"):
        chance = exotics.pool(p, one(p), name, model)[0]
        possible = chance[chance > 0]
        assert len(possible) == np.prod(6 - np.arange(exotics.POOLS[name][0]))
        assert possible == pytest.approx(1 / len(possible), rel=1e-6)


def season(races, power=1.0, seed=0):
    "A world whose places after the first are won in proportion to p to a power among those left."
    rng = np.random.default_rng(seed)
    race = np.repeat(np.arange(races), rng.integers(6, 13, races))
    p = softmax(rng.normal(size=len(race)), race)
    position, left = np.full(len(p), np.nan), np.ones(len(p), bool)
    for place in range(1, 13):
        score = (power if place > 1 else 1.0) * np.log(p) + rng.gumbel(size=len(p))
        best = np.full(races, -np.inf)
        np.maximum.at(best, race[left], score[left])
        taken = left & (score == best[race])
        position[taken], left = place, left & ~taken
    return p, position, race


def normal_times(races, seed=0):
    "A world of independent normal running times, its win chances integrated over time."
    rng, grid = np.random.default_rng(seed), np.linspace(-7, 7, 700)
    race = np.repeat(np.arange(races), 9)
    where = rng.normal(0, 0.45, (races, 9))
    survival = 1 - np.vectorize(math.erf)(grid / 2**0.5)
    beaten = np.interp(grid - where[..., None], grid, np.maximum(survival / 2, 1e-12))
    density = np.exp(-0.5 * (grid - where[..., None]) ** 2)
    p = (density / beaten * beaten.prod(1, keepdims=True)).sum(-1)
    times = where + rng.normal(size=where.shape)
    position = np.argsort(np.argsort(times, axis=1), axis=1) + 1.0
    return (p / p.sum(1, keepdims=True)).ravel(), position.ravel(), race


@pytest.mark.parametrize("power", [1.0, 0.7])
def test_the_fit_finds_the_powers_of_a_world(power):
    p, position, race = season(1500, power)
    powers = exotics.fit(p, position, race)
    assert powers == pytest.approx((1, power, power, power), abs=0.12)
    sharper = p**1.25 / np.bincount(race, p**1.25)[race]
    assert exotics.fit(sharper, position, race)[0] == pytest.approx(powers[0] / 1.25)


def test_normal_times_ask_for_the_powers_of_the_literature_and_the_score_prefers_them():
    p, position, race = normal_times(2500)
    powers = exotics.fit(p, position, race)
    assert powers[:3] == pytest.approx((1, 0.76, 0.62), abs=0.1)
    model = exotics.stage_powers(powers)
    for name in ("trifecta", "trio", "quartet"):
        better, plain = (
            exotics.joint_loss(p, position, race, name, m).mean() for m in (model, exotics.harville)
        )
        assert better < plain
    for m, bad in ((model, False), (exotics.harville, True)):
        z = exotics.calibration(exotics.place(p, race, 3, m), position <= 3)["z"].abs().max()
        assert (z > 4) == bad


def test_a_dead_heat_leaves_only_its_own_stages_open():
    p, race = np.tile([0.4, 0.3, 0.2, 0.1], 3), np.repeat([0, 1, 2], 4)
    position = np.array([1, 1, 3, 4, 1, 2, 3, 4, 1, 2, 2, np.nan])
    exacta = exotics.joint_loss(p, position, race, "exacta")
    assert np.isnan(exacta).tolist() == [True, False, True]
    assert exacta[1] == pytest.approx(-np.log(0.4 * 0.3 / 0.6))
    assert np.isfinite(exotics.joint_loss(p, position, race, "win")).tolist() == [False, True, True]
    assert exotics.joint_loss(p, position, race, "quinella")[1] == pytest.approx(
        -np.log(0.4 * 0.3 / 0.6 + 0.3 * 0.4 / 0.7)
    )


def test_calibration_counts_every_winner_once():
    p, position, race = season(800, seed=2)
    k = exotics.came_in(position, race, 2)
    chance, hit = exotics.pool(p, race, "exacta"), np.zeros((800, 12, 12))
    hit[np.arange(800), *k.T] = 1
    table = exotics.calibration(chance, hit)
    assert table["observed"].sum() == 800
    assert table["expected"].sum() == pytest.approx(800)
    assert table["expected"].to_numpy() == pytest.approx(80, abs=1)
    assert table["z"].abs().max() < 3.5
    wrong = exotics.calibration(exotics.pool(1 / np.bincount(race)[race], race, "exacta"), hit)
    assert wrong["expected"].sum() == pytest.approx(800)


def pool_calibration(
    p: np.ndarray,  # (n,) win chances
    position: np.ndarray,  # (n,) finishing positions, nan if not finished
    race: np.ndarray,  # (n,) race codes
    name: str,  # one of POOLS
    model: exotics.Model = exotics.harville,
    bins: int = 10,  # groups of equal expectation
) -> pl.DataFrame:  # as `calibration`
    """Expected against observed combinations of a pool, each counted once; races with a dead heat
    among those named are left out."""
    k, ordered = exotics.POOLS[name]
    chance, home = exotics.pool(p, race, name, model), exotics.came_in(position, race, k)
    clean, named, hit = home[:, 0] >= 0, chance.ndim - 1, np.zeros_like(chance)
    for turn in [tuple(range(k))] if ordered else permutations(range(k)):
        hit[np.flatnonzero(clean), *home[clean][:, list(turn[:named])].T] = 1
    once = np.ones(chance.shape[1:], bool)
    if not ordered:
        for a, b in pairwise(np.indices(chance.shape[1:], sparse=True)):
            once &= a < b
    return exotics.calibration((chance * once)[clean], (hit * once)[clean], bins)


@pytest.mark.parametrize("name", exotics.POOLS)
def test_pools_of_a_world_are_calibrated_and_each_combination_counts_once(name):
    p, position, race = season(400, seed=5)
    position[0] = position[1] = position[:2].min()  # a dead heat is left out
    table = pool_calibration(p, position, race, name, bins=5)
    clean = (exotics.came_in(position, race, exotics.POOLS[name][0])[:, 0] >= 0).sum()
    winners = 3 * clean if name == "quinella_place" else clean
    assert table["observed"].sum() == winners
    assert table["expected"].sum() == pytest.approx(winners)
    assert table["z"].abs().max() < 3.7


def priced(starts, since, until):
    "Market chances, positions and race codes of the races that are wholly priced."
    starts = starts.filter(pl.col("date") >= since, pl.col("date") < until)
    odds, race = starts["odds"].fill_null(np.nan).to_numpy(), race_codes(starts)
    starts = starts.filter(has_market(odds, race)[race])
    race = race_codes(starts)
    return implied(starts["odds"].to_numpy(), race), positions(starts), race


def test_hong_kong_powers_and_who_prices_the_trifecta_best(hong_kong):
    powers = exotics.fit(*priced(hong_kong, date(2016, 1, 1), date(2022, 1, 1)))
    assert powers == pytest.approx((1.056, 0.860, 0.726, 0.635), abs=0.002)
    odds, position, race = priced(hong_kong, date(2022, 1, 1), date(2023, 1, 1))
    p = softmax(powers[0] * np.log(odds), race)
    models = MODELS | {"powers": exotics.stage_powers(tuple(x / powers[0] for x in powers))}
    loss = {
        name: np.nanmean(exotics.joint_loss(p, position, race, "trifecta", model))
        for name, model in models.items()
    }
    assert loss == pytest.approx(dict(harville=6.2305, powers=6.1807), abs=5e-4)
    gain = exotics.joint_loss(p, position, race, "trifecta") - exotics.joint_loss(
        p, position, race, "trifecta", models["powers"]
    )
    assert np.nanmean(gain) > 3 * np.nanstd(gain) / len(gain) ** 0.5
    shown = {
        name: (
            exotics.calibration(exotics.place(p, race, 3, models[name]), position <= 3)["z"]
            .abs()
            .max()
        )
        for name in ("harville", "powers")
    }
    assert shown["harville"] > 4 > 2 > shown["powers"]


def test_japanese_powers(japan):
    assert exotics.fit(*priced(japan, date(2024, 1, 1), date(2026, 1, 1))) == pytest.approx(
        (1.030, 0.824, 0.690, 0.604), abs=0.002
    )


def test_what_cannot_be_priced_is_refused():
    for call, word in [
        (lambda: exotics.pool([0.5, 0.6], one([0, 0]), "exacta"), "race 0"),
        (lambda: exotics.pool([1.5, -0.5], one([0, 0]), "exacta"), "none negative"),
        (lambda: exotics.pool([0.5, 0.5], one([0, 0]), "daily double"), "quartet"),
        (lambda: exotics.stage_powers((1, 1))(np.array([[0.5, 0.3, 0.2]]), 3), "3 powers"),
        (lambda: exotics.fit([0.5, 0.5], [np.nan, np.nan], one([0, 0])), "place 1"),
    ]:
        with pytest.raises(BadInput, match=word):
            call()
