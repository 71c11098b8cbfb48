"""Weather and interaction from outside: names, ranges, truths made by hand, clusters that never see their year."""

import warnings
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from racing_core import schema
from racing_core.features import leaks
from racing_core.features.matrix import History, build, compute, names
from racing_core.features.outcomes import SKY, outcomes, prepare
from racing_core.features.pace import PACE, SCENARIOS, STYLES, yearly
from racing_core.features.ratings import MARKET, PERFORMANCE, joint_ratings
from racing_core.features.registry import FAMILIES, features
from racing_core.features.weather import moisture_origin
from racing_core.simulate import simulate

WEATHER = [f.name for f in features("weather")]
INTERACTION = [f.name for f in features("interaction")]
BOTH = WEATHER + INTERACTION
BY_RUNNER = [
    "wet_less_dry_record",
    "moisture_fit",
    "moisture_off_best",
    "temperature_vs_usual",
    "draw_bias_going",
]


@pytest.fixture(scope="module")
def starts():
    return simulate(races=2200, seed=77).starts()


@pytest.fixture(scope="module")
def frame(starts):
    return build(starts)


def changed(starts: pl.DataFrame, **columns) -> pl.DataFrame:
    "The same races under other weather or going."
    return starts.with_columns(**{c: pl.lit(v, dtype=starts.schema[c]) for c, v in columns.items()})


def test_documented_columns():
    assert {
        "track_moisture_pct",
        "wind_speed_mph",
        "temperature_f",
        "precipitation_last_24h_mm",
        "going_soft_indicator",
        "humidity_pct",
    } <= set(WEATHER)
    assert {"track_x_distance_fit", "jockey_x_trainer_synergy", "pace_scenario_clusters"} <= set(
        INTERACTION
    )
    assert all(
        f.unit and f.formula and f.reads and f.lo is not None and f.hi is not None
        for f in features()
        if f.name in BOTH
    )


def test_columns_come_family_by_family():
    family = {f.name: FAMILIES.index(f.family) for f in features()}
    assert [family[n] for n in names()] == sorted(family[n] for n in names())


def test_values_lie_in_their_ranges(frame):
    for f in features():
        if f.name in BOTH:
            x = frame[f.name].drop_nulls()
            assert len(x) > 0, f.name
            assert f.lo - 1e-9 <= x.min() and x.max() <= f.hi + 1e-9, f.name


def test_some_weather_differs_between_the_runners_of_a_race(frame):
    within = frame.group_by("race_id").agg(pl.col(WEATHER).drop_nulls().n_unique())
    assert [n for n in WEATHER if (within[n] > 1).mean() > 0.5] == BY_RUNNER
    assert all(within[n].max() == 1 for n in WEATHER if n not in BY_RUNNER)


def test_units_by_hand(starts):
    card = changed(
        starts.filter(race_id=starts["race_id"][-1]),
        temperature_c=100 / 9,
        wind_speed_ms=4.4704,
        humidity_pct=70.0,
        precipitation_mm=5.0,
        going="good",
    )
    row = compute(card, History.learn(starts)).row(0, named=True)
    assert row["temperature_f"] == pytest.approx(52) and row["wind_speed_mph"] == pytest.approx(10)
    assert (row["humidity_pct"], row["precipitation_last_24h_mm"], row["going_soft_indicator"]) == (
        70,
        5,
        0,
    )
    assert row["track_moisture_pct"] == pytest.approx(100 * 3 / 9)


@pytest.mark.parametrize(
    ("seen", "origin"),
    [
        (dict(precipitation_mm=3.0, going="good", sky="rain"), "observed"),
        (dict(precipitation_mm=None, going="good", sky="rain"), "going"),
        (dict(precipitation_mm=None, going=None, sky="rain"), "sky"),
        (dict(precipitation_mm=None, going=None, sky="hail of frogs"), "none"),
        (dict(precipitation_mm=None, going=None, sky=None), "none"),
    ],
)
def test_what_is_not_observed_comes_from_going_then_sky(starts, seen, origin):
    card = changed(starts.filter(race_id=starts["race_id"][-1]), **seen)
    assert set(prepare(card).select(moisture_origin()).to_series()) == {origin}
    moisture = compute(card, History.learn(starts))["track_moisture_pct"]
    assert moisture.is_null().all() == (origin == "none")


def test_without_any_weather_the_family_is_null_and_says_so_once(starts):
    bare = changed(
        starts.filter(pl.col("date") <= starts["date"].unique().sort()[40]).drop(
            SKY, "weather_origin"
        ),
        going=None,
    )
    with pytest.warns(UserWarning, match="weather features are absent: 12 columns") as said:
        frame = build(bare)
    assert sum("weather" in str(w.message) for w in said) == 1
    assert (
        all(frame[n].is_null().all() for n in WEATHER)
        and frame["pace_pressure"].is_not_null().any()
    )


def test_a_source_without_gear_rating_or_sections_still_builds(starts):
    poor = changed(starts, gear=None, rating=None, early_position=None, rail=None, draw=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", message="no in-running comments"
        )  # a simulated world has none
        frame = build(poor)
    assert frame["pace_scenario_clusters"].is_null().all() and frame["new_gear_set"].is_null().all()
    assert frame["jockey_x_trainer_synergy"].is_not_null().any()


def test_gear_codes_tell_first_use_apart_from_removal():
    worn = ["B1", "B", "B-/TT", "TT2/B1", "none", None, "B-", ""]
    card = pl.DataFrame(
        {
            "race_id": "r",
            "runner_no": range(1, 9),
            "horse_id": list("abcdefgh"),
            "date": date(2020, 1, 1),
            "gear": worn,
            "n_starters": 8,
        }
    )
    for table in (schema.RACES, schema.RUNNERS):
        card = card.with_columns(
            pl.lit(None, c.dtype).alias(n)
            for n, c in table.columns.items()
            if n not in card.columns
        )
    assert prepare(card)["gear_set"].to_list() == [
        "B",
        "B",
        "TT",
        "TT/B",
        "none",
        None,
        "none",
        "none",
    ]


def test_new_gear_set_is_the_first_start_in_it(starts, frame):
    rows = starts.select("horse_id", "date", "gear").with_columns(
        frame["new_gear_set"], frame["career_starts"]
    )
    blinkered = (
        rows.filter(pl.col("gear") == "B")
        .sort("horse_id", "date")
        .with_columns(nth=pl.col("date").rank("ordinal").over("horse_id"))
    )
    expected = (blinkered["nth"] == 1) & (blinkered["career_starts"] > 0)
    assert (blinkered["new_gear_set"] == expected.cast(pl.Float64)).all()
    assert rows.filter(pl.col("gear") != "B")["new_gear_set"].max() == 0


@pytest.mark.parametrize("alarm", [leaks.truncation, leaks.scramble])
def test_no_column_sees_the_future(alarm, starts):
    days = starts["date"].unique().sort()
    turn = days.filter(days.dt.year() == 1 + days.dt.year().min())
    for day in (turn[0], turn[-1], days[-9]):
        assert alarm(build, starts, day) == []


def test_one_card_equals_the_full_build_bit_for_bit(starts, frame):
    history = History.learn(starts)
    for race_id in starts["race_id"].unique().sort().sample(25, seed=2):
        card = starts.filter(race_id=race_id)
        assert compute(card, history.touching(card)).equals(frame.filter(race_id=race_id))


def test_history_cut_saved_and_loaded_serves_the_days_after(starts, frame, tmp_path):
    for back in (1, 12, 60):
        day = starts["date"].unique().sort()[-back]
        History.learn(starts.filter(pl.col("date") < day)).since(day).save(tmp_path / str(back))
        card = starts.filter(date=day)
        assert compute(card, History.load(tmp_path / str(back)).touching(card)).equals(
            frame.filter(date=day)
        )


def _past(starts):
    past = outcomes(starts)
    return pl.concat(
        [past, joint_ratings(past, MARKET), joint_ratings(past, PERFORMANCE)], how="horizontal"
    )


def test_clusters_are_refitted_once_a_year_on_earlier_years_only(starts):
    past, year = _past(starts), starts["date"].dt.year()
    whole = yearly(past)
    assert whole["date"].to_list() == [date(y, 12, 31) for y in year.unique().sort()]
    for y in year.unique().sort()[:-1]:
        noise = pl.when(pl.col("date").dt.year() > y).then(0.5)
        blind = past.with_columns(
            early_share=noise.otherwise("early_share"),
            perf_rating_error=noise.otherwise("perf_rating_error"),
        )
        assert (
            yearly(blind)
            .filter(pl.col("date") <= date(y, 12, 31))
            .equals(whole.filter(pl.col("date") <= date(y, 12, 31)))
        )


def test_clusters_are_ordered_and_as_many_as_named(starts):
    for row in yearly(_past(starts)).iter_rows(named=True):
        styles, scenarios = (
            np.reshape(row["style_centres"], (-1, 2)),
            np.reshape(row["scenario_centres"], (-1, 2)),
        )
        assert len(styles) == len(STYLES) and (np.diff(styles[:, 0]) > 0).all()
        assert len(scenarios) == len(SCENARIOS) and (np.diff(scenarios @ (1, -1)) > 0).all()
        assert len(row["scenario_worth"]) == len(STYLES) * len(SCENARIOS)


def test_the_parameters_travel_in_the_history(starts, tmp_path):
    history = History.learn(starts)
    history.since(starts["date"].max()).save(tmp_path)
    assert History.load(tmp_path).tables[PACE.name].equals(history.tables[PACE.name])


def test_a_lone_leader_and_a_crowded_lead():
    "One front runner among hold-up horses is alone in front; four of them press one another."
    horses = {
        "lead": 1,
        "back1": 4,
        "back2": 5,
        "back3": 6,
        "fast1": 1,
        "fast2": 1,
        "fast3": 1,
        "slow": 6,
    }
    rows = [
        dict(
            race_id=f"{h}{k}",
            runner_no=1,
            date=date(2020, 1, 1) + timedelta(7 * k),
            horse_id=h,
            early_position=early,
            n_starters=6,
            position=3,
            margin_lengths=2.0,
        )
        for h, early in horses.items()
        for k in range(3)
    ]
    today = [
        ("slow race", ["lead", "back1", "back2", "back3"]),
        ("hot race", ["fast1", "fast2", "fast3", "slow"]),
    ]
    rows += [
        dict(race_id=r, runner_no=i, date=date(2021, 6, 1), horse_id=h, n_starters=4, draw=i)
        for r, field in today
        for i, h in enumerate(field, 1)
    ]
    like = simulate(races=9, seed=1).starts().clear()
    made = pl.concat(
        [
            like,
            pl.DataFrame(rows).cast(
                {k: like.schema[k] for k in rows[0] if k in like.columns}
                | {"draw": like.schema["draw"]}
            ),
        ],
        how="diagonal",
    )
    made = made.with_columns(
        jurisdiction=pl.lit("SIM"),
        course=pl.lit("c"),
        distance_m=pl.lit(1200, pl.Int32),
        status=pl.lit("finished", schema.STATUS),
        as_of=pl.lit("close"),
    ).sort("date", "race_id", "runner_no")
    seen = {r["race_id"] + str(r["runner_no"]): r for r in build(made).iter_rows(named=True)}
    assert seen["slow race1"]["pace_lead_gap"] > 0.5 and seen["hot race1"]["pace_lead_gap"] == 0
    assert seen["hot race1"]["pace_pressure"] > 1 > 0 > seen["slow race1"]["pace_pressure"]
    assert [seen[f"slow race{i}"]["pace_map_position"] for i in (1, 2, 3, 4)] == [
        0,
        pytest.approx(1 / 3),
        pytest.approx(2 / 3),
        1,
    ]
    assert [seen[f"hot race{i}"]["draw_x_pace"] for i in (1, 2, 3)] == [0, 1, 2]


def test_a_pair_is_credited_with_what_neither_explains(starts):
    """A jockey and a trainer who gain two places together, and only together, show a synergy; their
    other pairs do not."""
    jockey, trainer = (
        starts.group_by("jockey_id", "trainer_id")
        .len()
        .sort("len", "jockey_id", "trainer_id")
        .row(-1)[:2]
    )
    pair = (pl.col("jockey_id") == jockey) & (pl.col("trainer_id") == trainer)
    better = starts.with_columns(
        margin_lengths=pl.when(pair).then(pl.col("margin_lengths") / 4).otherwise("margin_lengths")
    )
    late = pl.col("date") > starts["date"].median()

    def synergy(s, which):
        return (
            build(s).filter(s.select(late & which).to_series())["jockey_x_trainer_synergy"].mean()
        )

    assert synergy(better, pair) > synergy(starts, pair) + 0.05
    assert abs(synergy(better, ~pair) - synergy(starts, ~pair)) < 0.01


def test_no_leak_in_hong_kong(hong_kong):
    day, frame = date(2020, 1, 1), build(hong_kong)
    assert leaks.truncation(build, hong_kong, day, frame) == []
    assert leaks.scramble(build, hong_kong, day, frame=frame) == []
    leaks.demand_clean(leaks.screen(frame, hong_kong, BOTH))


def test_no_leak_in_japan(japan):
    day, frame = date(2025, 1, 6), build(japan)
    assert leaks.truncation(build, japan, day, frame) == []
    assert leaks.scramble(build, japan, day, frame=frame) == []
    leaks.demand_clean(leaks.screen(frame, japan, BOTH))
    assert frame["precipitation_last_24h_mm"].is_not_null().all()  # the source's words for the sky
