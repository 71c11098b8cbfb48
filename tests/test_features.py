"""Features from outside: a career computed by hand, training and serving alike, the leak alarms on real results."""

from collections import Counter
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs

from racing_core.features import leaks
from racing_core.features.asof import last_n, rate, recall, recent, remember
from racing_core.features.matrix import History, build, compute, matrix, names
from racing_core.features.outcomes import outcomes
from racing_core.features.ratings import MARKET, joint_ratings
from racing_core.features.registry import Timeline, features
from racing_core.features.worth import wins_by_value
from racing_core.simulate import simulate

SPECIFIED = {
    "avg_perf_index_L5",
    "weighted_form_score",
    "days_since_last",
    "avg_position_L5",
    "win_rate_L10",
    "speed_rating_best_L5",
}


@pytest.fixture(scope="module")
def starts():
    return simulate(races=900, seed=101).starts()


@pytest.fixture(scope="module")
def frame(starts):
    return build(starts)


SIZES = {"historical": 56, "weather": 12, "semantic": 24, "interaction": 28}  # as specified


def test_the_specified_features_are_there():
    there = Counter(f.family for f in features())
    missing = {family: n - there[family] for family, n in SIZES.items() if there[family] < n}
    assert not missing, f"specified features are gone, by family: {missing}"
    assert len(names()) == len(set(names()))


def test_the_historical_family_has_its_named_features():
    historical = {f.name for f in features("historical")}
    assert not SPECIFIED - historical, f"specified and gone: {sorted(SPECIFIED - historical)}"
    assert all(f.unit and f.formula and f.reads for f in features())


def test_every_value_lies_in_its_declared_range(frame):
    for f in features():
        x = frame[f.name].drop_nulls()
        if f.family == "semantic" and not len(x):
            continue  # a simulated world has no comments; tests/test_features_semantic.py makes some
        assert len(x) > 0, f.name
        assert f.lo is None or x.min() >= f.lo - 1e-9, (f.name, x.min())
        assert f.hi is None or x.max() <= f.hi + 1e-9, (f.name, x.max())


def test_a_career_by_hand(starts, frame):
    horse = starts.group_by("horse_id").len().sort("len", "horse_id").row(-1)[0]
    career = starts.filter(horse_id=horse).with_columns(last=pl.coalesce("position", "n_starters"))
    seen = frame.filter(starts["horse_id"] == horse)
    place, field = career["last"].to_numpy().astype(float), career["n_starters"].to_numpy()
    beaten = np.where(career["position"].is_null().to_numpy(), 0.0, 1 - (place - 1) / (field - 1))
    for i in range(1, len(career)):
        row = seen.row(i, named=True)
        assert row["avg_position_L5"] == pytest.approx(place[max(0, i - 5) : i].mean())
        assert row["avg_perf_index_L5"] == pytest.approx(beaten[max(0, i - 5) : i].mean())
        assert row["career_starts"] == i
        assert row["days_since_last"] == min((career["date"][i] - career["date"][i - 1]).days, 365)
        age = np.array([(career["date"][i] - d).days for d in career["date"][:i]])
        assert row["weighted_form_score"] == pytest.approx(
            np.average(beaten[:i], weights=0.5 ** (age / 120.0))
        )
    assert seen["avg_position_L5"][0] is None


def test_one_card_equals_the_full_build_bit_for_bit(starts, frame):
    history = History.learn(starts)
    for race_id in starts["race_id"].unique().sort().sample(25, seed=1):
        card = starts.filter(race_id=race_id)
        assert compute(card, history.touching(card)).equals(frame.filter(race_id=race_id))


def test_a_card_needs_no_column_of_the_result(starts, frame):
    blank = [*leaks.OUTCOMES, "true_p"]
    card = starts.filter(date=starts["date"].max())
    bare = card.with_columns(pl.lit(None, dtype=card.schema[c]).alias(c) for c in blank)
    assert compute(bare, History.learn(starts)).equals(frame.filter(date=starts["date"].max()))


def test_a_debutant_and_strangers_get_a_row(starts):
    card = starts.filter(race_id=starts["race_id"][-1])
    strangers = card.with_columns(
        horse_id=pl.format("new {}", "runner_no"),
        jockey_id=pl.lit("nobody"),
        trainer_id=pl.lit(None, pl.String),
    )
    X = matrix(compute(strangers, History.learn(starts)))
    assert X.values.shape == (len(card), len(features()))
    assert np.nanmax(X.values[:, X.columns.index("career_starts")]) == 0


@pytest.mark.parametrize("alarm", [leaks.truncation, leaks.scramble])
def test_no_feature_sees_the_future(alarm, starts):
    days = starts["date"].unique().sort()
    for day in (days[30], days[-15]):
        assert alarm(build, starts, day) == []


def test_the_alarms_ring_for_a_same_race_outcome(starts):
    def leaking(s):
        return build(s).with_columns(margin=s["margin_lengths"])

    assert leaks.scramble(leaking, starts, starts["date"].unique().sort()[-15]) == ["margin"]


def test_no_leak_in_hong_kong(hong_kong):
    frame, day = build(hong_kong), date(2019, 3, 31)
    assert leaks.truncation(build, hong_kong, day, frame) == []
    assert leaks.scramble(build, hong_kong, day, frame=frame) == []
    leaks.demand_clean(leaks.screen(frame, hong_kong))


def test_no_leak_in_japan(japan):
    day = japan["date"].unique().sort()[60]
    assert leaks.truncation(build, japan, day) == []
    leaks.demand_clean(leaks.screen(build(japan), japan))


def test_same_inputs_give_the_same_matrix_whatever_the_order_of_rows(starts, frame):
    shuffled = starts.sample(fraction=1.0, shuffle=True, seed=5).sort(
        "date", "race_id", "runner_no"
    )
    assert build(shuffled).equals(frame)


@settings(max_examples=40, deadline=None)
@given(
    hs.lists(
        hs.tuples(hs.integers(0, 3), hs.integers(0, 40), hs.one_of(hs.none(), hs.floats(-5, 5))),
        min_size=1,
        max_size=40,
    )
)
def test_recall_is_a_brute_force_loop(rows):
    horse = Timeline("any", ("horse_id",))
    schema = {"horse_id": pl.String, "date": pl.Date, "x": pl.Float64}
    data = pl.DataFrame(
        [{"horse_id": str(h), "date": date(2020, 1, 1) + timedelta(d), "x": x} for h, d, x in rows],
        schema=schema,
    )
    data = data.sort("date", maintain_order=True).with_columns(
        day=pl.col("date").to_physical().cast(pl.Float64) - 18000
    )
    seen = recall(
        data,
        horse,
        remember(
            data,
            horse,
            {"m": last_n("x", 3), "r": rate("x", prior=1.0, strength=2.0), "w": recent("x", 10.0)},
        ),
    )
    for row in seen.iter_rows(named=True):
        past = [
            r
            for r in data.iter_rows(named=True)
            if r["horse_id"] == row["horse_id"] and r["date"] < row["date"]
        ]
        known = [r["x"] for r in past if r["x"] is not None]
        if not past:
            assert row["m"] is row["r"] is row["w"] is None
            continue
        last = [r["x"] for r in past[-3:] if r["x"] is not None]
        assert row["m"] == (pytest.approx(np.mean(last), abs=1e-9) if last else None)
        assert row["r"] == pytest.approx((sum(known) + 2.0) / (len(known) + 2.0), abs=1e-9)
        weights = [2.0 ** (r["day"] / 10.0) for r in past if r["x"] is not None]
        assert row["w"] == (
            pytest.approx(np.average(known, weights=weights), abs=1e-9) if known else None
        )


def test_ratings_credit_the_horse_that_beats_a_strong_field():
    "Two horses win a race each; the one whose victims had won before is rated higher."
    rows = []
    for day, (winner, *others) in enumerate(
        [
            ("a", "x", "y"),
            ("b", "p", "q"),
            ("x", "m", "n"),
            ("m", "p", "q"),
            ("A", "x", "m"),
            ("B", "p", "q"),
        ]
    ):
        for no, horse in enumerate([winner, *others], start=1):
            rows.append(
                dict(
                    race_id=f"r{day}",
                    day=float(day * 7),
                    horse_id=horse,
                    jockey_id=None,
                    trainer_id=None,
                    market_log=1.0 if no == 1 else -0.5,
                )
            )
    schema = {
        "race_id": pl.String,
        "day": pl.Float64,
        "horse_id": pl.String,
        "jockey_id": pl.String,
        "trainer_id": pl.String,
        "market_log": pl.Float64,
    }
    history = pl.DataFrame(rows, schema=schema)
    rated = history.hstack(joint_ratings(history, MARKET))
    of = {h: rated.filter(horse_id=h)["market_rating_horse"][-1] for h in "AB"}
    assert of["A"] > of["B"] > 0


def test_speed_ratings_take_out_the_pace_of_the_day(starts):
    slow = starts["date"] == starts["date"].unique().sort()[-5]
    muddy = starts.with_columns(
        time_s=pl.when(slow).then(pl.col("time_s") * 1.03).otherwise("time_s")
    )
    one, other = outcomes(starts).filter(slow)["speed"], outcomes(muddy).filter(slow)["speed"]
    raw = (starts.filter(slow)["time_s"] * 0.03 / starts.filter(slow)["distance_m"] * 10_000).mean()
    assert abs((one - other).mean()) < 0.35 * raw


@pytest.mark.parametrize("often", [0.02, 0.5, 0.98])
def test_wins_by_value_count_each_runner_once_and_keep_equal_values_together(often):
    "Against a plain loop, for a flag that is rare, even and usual."
    world = simulate(races=300, seed=4).starts()
    flag = np.random.default_rng(1).random(len(world)) < often
    known = pl.Series([None, *map(float, flag[1:])])
    worth = wins_by_value(known, world)
    rows = list(zip(known, world["race_id"], world["position"], world["n_starters"], strict=True))
    first = Counter(race for _, race, place, _ in rows if place == 1)
    assert worth["value"].to_list() == [0, 1] and worth["runners"].sum() == len(world) - 1
    for value, wins, runners in worth.iter_rows():
        mine = [(race, place, n) for flag, race, place, n in rows if flag == value]
        won = sum(1 / first[race] for race, place, _ in mine if place == 1)
        assert runners == len(mine) and np.isclose(wins, won / sum(1 / n for *_, n in mine))
