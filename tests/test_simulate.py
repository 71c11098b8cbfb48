"""The simulated world from outside: reproducible, consistent with itself, and with probabilities that are true."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from racing_core.errors import BadInput
from racing_core.features.outcomes import SKY
from racing_core.odds import implied, race_sum
from racing_core.schema import TABLES, violations
from racing_core.simulate import Effects, World, attainable, public_view, simulate
from racing_core.starts import positions, race_codes, starts_frame, winners


@pytest.fixture(scope="module")
def world() -> World:
    return simulate(4000, seed=11)


@pytest.fixture(scope="module")
def starts(world) -> pl.DataFrame:
    return world.starts()


@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(0, 2**31),
    st.sampled_from([0, 0.01, 0.2, 0.7]),
    st.sampled_from([0, 0.175]),
)
def test_any_world_is_whole(races, seed, inefficiency, takeout):
    made = simulate(races, seed, inefficiency=inefficiency, takeout=takeout)
    assert len(made.tables["races"]) == races
    for name, table in made.tables.items():
        assert violations(table, TABLES[name]).is_empty()
    starts = made.starts()
    race = race_codes(starts)
    assert race[-1] == races - 1
    np.testing.assert_allclose(np.bincount(race, starts["true_p"]), 1)
    np.testing.assert_allclose(np.bincount(race, winners(starts)), 1)
    assert starts["odds"].is_not_null().all()
    assert made.truth["race_id"].equals(starts["race_id"])
    assert made.truth["runner_no"].equals(starts["runner_no"])


def test_same_seed_same_bits(world):
    again = simulate(4000, seed=11)
    assert all(table.equals(again.tables[name]) for name, table in world.tables.items())
    assert world.truth.equals(again.truth)
    assert not simulate(4000, seed=12).truth.equals(world.truth)


def test_another_market_leaves_the_races_alone(world):
    other = simulate(4000, seed=11, inefficiency=0.2, takeout=0.1)
    assert all(
        other.tables[name].equals(table) for name, table in world.tables.items() if name != "prices"
    )
    assert other.truth["true_p"].equals(world.truth["true_p"])
    assert not other.tables["prices"].equals(world.tables["prices"])


def test_nobody_is_in_two_places(world):
    declared = world.tables["runners"].join(world.tables["races"], on="race_id")
    assert not declared.select(pl.struct("date", "horse_id").is_duplicated().any()).item()
    assert not declared.select(pl.struct("race_id", "jockey_id").is_duplicated().any()).item()
    draws = declared.group_by("race_id").agg(
        pl.col("draw").sort(), pl.int_range(1, pl.len() + 1, dtype=pl.Int16).alias("stalls")
    )
    assert (draws["draw"] == draws["stalls"]).all()
    assert (
        declared.group_by("horse_id")
        .agg(pl.col("age").sort_by("date").diff().min())["age"]
        .drop_nulls()
        .min()
        >= 0
    )


def test_order_margin_and_time_agree(starts):
    done = starts.filter(pl.col("status") == "finished").sort("race_id", "position")
    step = done.select(
        pl.col("margin_lengths", "time_s", "position").diff().over("race_id")
    ).drop_nulls()
    assert (step["margin_lengths"] >= 0).all()
    assert (step["time_s"] >= -0.011).all()
    assert (
        done.group_by("race_id").agg(pl.col("margin_lengths").min())["margin_lengths"] == 0
    ).all()
    level = step.filter(pl.col("position") == 0)
    assert (level["margin_lengths"] == 0).all()
    assert (
        starts.filter(pl.col("status") != "finished")
        .select(pl.col("position", "time_s", "margin_lengths").is_null().all())
        .row(0)
        == (True,) * 3
    )


def test_rare_things_happen_rarely(world, starts):
    share = world.tables["results"]["status"].value_counts(normalize=True)
    share = dict(zip(share["status"], share["proportion"], strict=True))
    assert 0.007 < share["non_runner"] < 0.013
    assert 0.0015 < share["did_not_finish"] < 0.0045
    dead_heats = (np.bincount(race_codes(starts), positions(starts) == 1) > 1).mean()
    assert 0.0005 < dead_heats < 0.005
    absent = world.tables["results"].filter(pl.col("status") == "non_runner")
    for name in ("prices", "sections"):
        assert absent.join(world.tables[name], on=["race_id", "runner_no"]).is_empty()
    assert absent.join(world.truth, on=["race_id", "runner_no"]).is_empty()


def test_the_true_probabilities_are_true(starts):
    p, win = starts["true_p"].to_numpy(), winners(starts)
    for chunk in np.array_split(np.argsort(p), 12):
        z = (win[chunk].sum() - p[chunk].sum()) / np.sqrt((p[chunk] * (1 - p[chunk])).sum())
        assert abs(z) < 4


def test_second_places_are_plackett_luce(starts):
    p, race, where = starts["true_p"].to_numpy(), race_codes(starts), positions(starts)
    left = np.where(where == 1, 0, p)
    second = left / race_sum(left, race)
    for chunk in np.array_split(np.argsort(second), 8):
        z = ((where == 2)[chunk].sum() - second[chunk].sum()) / np.sqrt(
            (second[chunk] * (1 - second[chunk])).sum()
        )
        assert abs(z) < 4


def test_a_fair_market_has_no_edge_anywhere():
    starts = (
        simulate(3000, seed=4, inefficiency=0, takeout=0.2)
        .starts()
        .with_columns(back=pl.col("true_p") * pl.col("odds"))
    )
    groups = [
        "draw",
        "trainer_id",
        "jockey_id",
        "class_level",
        "going",
        "age",
        pl.col("odds").log().round(),
    ]
    for by in groups:
        back = starts.group_by(by).agg(pl.col("back").mean())["back"]
        assert back.is_between(0.785, 0.815).all(), by


def test_the_default_market_is_like_a_real_one(starts):
    race, win = race_codes(starts), winners(starts)
    q = implied(starts["odds"].to_numpy(), race)
    blind = np.sum(win * np.log(1 / starts["n_starters"].to_numpy()))
    market, oracle = (1 - np.sum(win * np.log(p)) / blind for p in (q, starts["true_p"].to_numpy()))
    assert 0.19 < market < oracle < 0.29
    favourite = q == np.maximum.reduceat(q, np.flatnonzero(np.diff(race, prepend=-1)))[race]
    assert 0.28 < win[favourite].sum() / (race[-1] + 1) < 0.40
    back = (
        starts.with_columns(back=pl.col("true_p") * pl.col("odds"))
        .group_by(pl.col("odds") > 30)
        .agg(pl.col("back").mean())
        .sort("odds")["back"]
    )
    assert back[1] < 0.75 < back[0] < 0.9  # longshots lose more
    np.testing.assert_allclose(
        np.bincount(race, 1 / starts["odds"].to_numpy()).mean(), 1 / 0.825, rtol=2e-3
    )


@pytest.mark.parametrize("share", [0.001, 0.03, 0.3, 0.8])
def test_inefficiency_is_the_share_given_up(share):
    rng = np.random.default_rng(0)
    race = np.repeat(np.arange(300), 10)
    u, error = rng.normal(0, 1.2, (2, 3000))
    p = public_view(u, np.zeros(3000), race, 0)
    assert 1 - attainable(p, public_view(u, error, race, share), race) == pytest.approx(
        share, abs=1e-4
    )


def test_effects_can_be_switched_off():
    nothing = Effects(**dict.fromkeys(Effects.__dataclass_fields__, 0.0))
    starts = simulate(50, seed=1, effects=nothing).starts()
    np.testing.assert_allclose(starts["true_p"] * starts["n_starters"], 1)


def test_big_worlds_fit():
    made = simulate(10_000, seed=0)
    races = made.tables["races"]
    assert (races["date"].max() - races["date"].min()).days < 6.1 * 365
    runs = (
        made.tables["runners"]
        .join(races, on="race_id")
        .filter(pl.col("date").dt.year() == 2020)
        .group_by("horse_id")
        .len()["len"]
    )
    assert 5 < runs.mean() < 8


@pytest.mark.parametrize(
    "wrong", [{"races": 0}, {"inefficiency": 1.2}, {"takeout": -1}, {"horses": 3}]
)
def test_wrong_wishes_are_refused(wrong):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        simulate(**wrong)


def test_the_starts_do_not_see_the_order_of_the_tables(world, starts):
    shuffled = {
        name: table.sample(fraction=1, shuffle=True, seed=3) for name, table in world.tables.items()
    }
    assert starts_frame(shuffled, world.truth.reverse()).equals(starts)
    bare = starts_frame({name: shuffled[name] for name in ("races", "runners", "results")})
    assert bare.schema == starts.schema
    beside = ["odds", "final_odds", "early_position", "true_p", *SKY, "weather_origin"]
    assert bare.drop(beside).equals(starts.drop(beside))
    assert all(bare.select(pl.col(beside).is_null().all()).row(0))
