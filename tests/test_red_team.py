"""Every leak that was ever met, planted on purpose: a gate has to stop it, and the honest run passes them all."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from racing_core import metrics, tripwires
from racing_core import starts as st
from racing_core.betting.backtest import OPTIMISTIC
from racing_core.config import home
from racing_core.errors import BadInput, Leak
from racing_core.features import leaks
from racing_core.features.matrix import build
from racing_core.folds import Window, split
from racing_core.intervals import Estimate
from racing_core.lab import tracking, walk
from racing_core.lab.ablation import quick
from racing_core.lab.backtest import Finding, backtest, figures
from racing_core.lab.bankroll import bankroll
from racing_core.lab.targets import success
from racing_core.odds import has_market, implied, overround
from racing_core.pages import report as reports
from racing_core.pipeline import Pipeline
from racing_core.schema import STATUS, TABLES, conform
from racing_core.simulate import Effects, simulate

WORLD = simulate(
    races=1400, seed=11, inefficiency=0.01, effects=Effects(ability=1.1)
)  # as hard to foresee as real races
STARTS = WORLD.starts()
LAST = STARTS["date"].max()
FROM = LAST - timedelta(120)
WON = pl.Series(st.winners(STARTS))


def as_if_real(starts: pl.DataFrame) -> pl.DataFrame:
    "Without what only a simulator knows."
    return starts.with_columns(true_p=pl.lit(None, pl.Float64))


def once() -> Pipeline:
    "Linear models, fitted once."
    return replace(quick(), refit=False)


def ran(starts: pl.DataFrame, frame: pl.DataFrame | None = None) -> Finding:
    "The figures of a run with linear models."
    return figures(backtest(starts, FROM, make=once, frame=frame), 1)


def stopped(found: Finding) -> str:
    "What the run says when it stops."
    with pytest.raises(Leak) as raised:
        walk.stop_if_tripped(found.tripwires, [], found.simulated)
    return str(raised.value)


@pytest.fixture(scope="module")
def frame():
    return build(STARTS)


@pytest.fixture(scope="module")
def honest(frame):
    return ran(as_if_real(STARTS), frame)


def test_0_the_honest_run_passes_every_gate(honest, frame):
    assert {w.name for w in honest.tripwires} == set(tripwires.WIRES) - {"beyond_oracle"}
    walk.stop_if_tripped(honest.tripwires, [], honest.simulated)
    leaks.demand_clean(leaks.screen(frame, STARTS))
    assert honest.left_out == {"no winner": 0, "not fully priced": 0}


# --- 1: rows in finishing order with tied scores; races without relevance


@pytest.mark.parametrize("digits", [0, 1], ids=["constant", "rounded"])
def test_1_rows_in_finishing_order_tell_tied_scores_nothing(digits):
    rows = STARTS.with_columns(
        place=st.positions(STARTS), won=WON, t=pl.col("true_p").round(1) * digits
    ).sort("date", "race_id", "place", nulls_last=True)
    race, place, won, day = (
        st.race_codes(rows),
        rows["place"].to_numpy(),
        rows["won"].to_numpy(),
        rows["date"].to_numpy(),
    )
    score = rows["t"].to_numpy() + 0.1
    score = score / np.bincount(race, score)[race]
    mixed = np.lexsort((np.random.default_rng(0).random(len(race)), race))
    sorted_, shuffled = (
        metrics.summary(score, won, place, race, day),
        metrics.summary(score[mixed], won[mixed], place[mixed], race, day),
    )
    ranks = [n for n in metrics.METRICS if n.startswith("ndcg_")]
    assert len(ranks) == 16
    for name in (*ranks, "top1"):
        assert sorted_[name].value == pytest.approx(shuffled[name].value), name
    if digits == 0:
        assert (
            sorted_["top1"].value == pytest.approx(np.mean(1 / np.bincount(race)))
            and sorted_["ndcg_linear@1"].value < 0.55
            and sorted_["auc"].value < 0.55
        )


def test_1_a_race_without_relevance_is_neither_perfect_nor_forgotten():
    race, place = np.repeat([0, 1], 5), np.array([1, 2, 3, 4, 5] + [np.nan] * 5)
    backwards = np.array([0.1, 0.15, 0.2, 0.25, 0.3] * 2)
    alone = metrics.ndcg(backwards[:5], place[:5], race[:5], 4)
    assert alone < 0.8 and np.isnan(metrics.race_ndcg(backwards, place, race, 4)[1])
    assert metrics.ndcg(backwards, place, race, 4) == pytest.approx(alone)


def test_1_a_race_without_a_winner_is_left_out_and_counted(frame):
    one = pl.col("race_id") == STARTS.filter(pl.col("date") >= FROM)["race_id"][0]
    void = as_if_real(STARTS).with_columns(
        status=pl.when(one).then(pl.lit("did_not_finish", STATUS)).otherwise("status")
    )
    found = ran(void, frame)
    assert found.left_out["no winner"] == 1


# --- 2: results before they were known, of the same day, the same race, or restated later


def test_2_results_of_the_same_day_are_seen_by_the_scramble():
    def early(starts):
        """Wins of the jockey earlier on the same afternoon: honest at the off, unknown when the
        card is made."""
        won = (pl.col("position") == 1).fill_null(False).cast(pl.Float64)
        return starts.select(
            "race_id", "runner_no", "date", hot=won.cum_sum().over("jockey_id", "date") - won
        )

    day = STARTS["date"].unique().sort()[-10]
    assert leaks.truncation(early, STARTS, day) == [], "cutting the future off does not show it"
    assert leaks.scramble(early, STARTS, day) == ["hot"]


def test_2_an_outcome_of_the_same_race_stops_the_run(frame):
    margin = STARTS["margin_lengths"].fill_null(20).log1p()
    told = stopped(ran(as_if_real(STARTS), frame.with_columns(official_rating=-margin)))
    assert "delta_r2" in told and "screen_z" in told


@pytest.mark.parametrize("column", ["rating", "class"])
def test_2_a_column_restated_after_the_race_is_screened(column, frame):
    """A winner goes up four points, or on to a better class, and the profile that is scraped later
    says so for the race itself."""
    if column == "rating":
        later = as_if_real(STARTS).with_columns(rating=pl.col("rating") + 4 * WON)
        frame, feature = build(later), "official_rating"
    else:  # the class of the runner's profile instead of the race's
        later, feature = as_if_real(STARTS), "class_change"
        frame = frame.with_columns(pl.col("class_change") + WON)
    found = ran(later, frame)
    assert "screen_z" in stopped(found)
    with pytest.raises(Leak, match=feature):
        leaks.demand_clean(leaks.screen(frame, later, [feature]))


# --- 3: survivorship through missing values


def test_3_profiles_of_survivors_only_stop_the_run(frame):
    "Ratings of horses that did badly and left are gone from the file that was scraped later."
    left = pl.col("date") == pl.col("date").max().over("horse_id")
    later = as_if_real(STARTS).with_columns(
        rating=pl.when(left & (pl.col("position") > 3)).then(None).otherwise("rating")
    )
    frame = build(later)
    assert "screen_z" in stopped(ran(later, frame))
    with pytest.raises(Leak, match=r"official_rating \(missing\)"):
        leaks.demand_clean(leaks.screen(frame, later, ["official_rating"]))


# --- 4: the price of the race itself, as a feature and as the price that is paid


@pytest.mark.parametrize("disguise", ["rank", "root", "noise"])
def test_4_a_price_in_a_fundamental_feature_stops_the_run_in_any_world(disguise, frame):
    odds, rng = STARTS["odds"].to_numpy(), np.random.default_rng(0)
    rank, noise = (
        STARTS.select(pl.col("odds").rank().over("race_id")).to_series(),
        rng.normal(0, 2, len(odds)),
    )
    hidden = {"rank": rank, "root": 1 / np.sqrt(odds), "noise": 60 - 10 * np.log(odds) + noise}[
        disguise
    ]
    found = leaks.like_the_price(frame.with_columns(official_rating=pl.Series(hidden)), STARTS)
    assert (
        found["feature"][0] == "official_rating"
        and found["correlation"][0]
        > tripwires.LIMITS["price_correlation"]
        > found["correlation"][1]
    )
    if disguise == "noise":
        world = ran(STARTS, frame.with_columns(official_rating=pl.Series(hidden)))
        assert world.simulated and "price_correlation" in stopped(world)


def test_4_closing_odds_of_the_race_read_by_a_feature_are_seen_by_the_scramble():
    day = STARTS["date"].unique().sort()[-10]
    assert leaks.scramble(
        lambda s: s.select("race_id", "runner_no", "date", price=1 / pl.col("odds")), STARTS, day
    ) == ["price"]


def test_4_choosing_and_paying_at_one_price_is_labelled_and_proves_nothing(honest):
    idle = replace(honest, bankroll=replace(honest.bankroll, bets=0))
    assert honest.bankroll.label == OPTIMISTIC and OPTIMISTIC in reports.money(idle)
    won = dict(bets=900, roi=Estimate(0.6, 0.4, 0.8), sharpe=4.0, max_drawdown=0.05)
    rich = replace(honest.bankroll, **won)
    state = {v.target.name: (v.state, v.why) for v in success({}, None, rich)}
    assert state["roi"] == state["sharpe"] == ("vacuous", OPTIMISTIC)


# --- 5: tuning on the test window; looking twice


def test_5_no_pipeline_is_ever_handed_a_row_of_its_test(frame):
    handed = []

    class Spy(Pipeline):
        def fit(self, races, train, tune, progress=print, early=None):
            assert not early.any()
            handed.append((train, tune))
            return super().fit(races, train, tune, lambda step: None)

    day = STARTS["date"].to_numpy()
    backtest(
        STARTS,
        FROM,
        make=lambda: Spy(quick().fundamental, quick().residual, refit=False),
        frame=frame,
    )
    ((train, tune),) = handed
    assert (
        not (train & tune).any()
        and day[train].max() < day[tune].min()
        and day[tune].max() < np.datetime64(FROM)
    )


def test_5_results_of_the_test_window_change_no_probability(frame):
    "A pipeline that tuned on them would move."
    later = pl.col("date") >= FROM
    shuffled = STARTS.filter(later).select(pl.col("status", "position").shuffle(seed=3))
    other = pl.concat([STARTS.filter(~later), STARTS.filter(later).with_columns(shuffled)])
    one, two = (backtest(s, FROM, make=once, frame=frame).predictions for s in (STARTS, other))
    both = one.join(two, on=["race_id", "runner_no"], suffix="_2")
    assert len(both) > 500 and both["combined"].equals(both["combined_2"], null_equal=True)


def test_5_a_window_that_tunes_on_its_test_cannot_be_made():
    window = split(STARTS["date"].to_numpy(), FROM)[0]
    for tune, test in (
        (window.tune | window.test, window.test),
        (window.tune | window.train, window.test),
        (window.tune, window.test | window.train),
    ):
        with pytest.raises(Leak, match="two sides"):
            Window(window.train, tune, test, window.tune_from, window.test_from, window.test_to)


def test_5_the_second_look_is_counted_and_told(tmp_path, honest):
    where, now = home(tmp_path, env={}), datetime(2026, 1, 1, tzinfo=UTC)
    seen = [
        tracking.look(where, "hkjc", date(2022, 1, 1), date(2022, 12, 31), now) for _ in range(2)
    ]
    beside = (
        tracking.look(where, "hkjc", date(2022, 12, 31), date(2023, 6, 1), now),
        tracking.look(where, "netkeiba", date(2022, 1, 1), date(2022, 6, 1), now),
    )
    assert seen == [1, 2] and beside == (3, 1)
    again = replace(honest, test_looks=2)
    assert "first look" in reports.headline(honest, "hkjc")
    assert "the interval holds for the first" in reports.headline(again, "hkjc")
    assert "after that the eye has chosen" in reports.window(again)


# --- 6: a field that still holds non-runners


def test_6_a_priced_non_runner_is_no_part_of_the_market():
    out = (
        WORLD.tables["results"]
        .filter(pl.col("status") == "non_runner")
        .select("race_id", "runner_no")
    )
    assert len(out) > 20
    row = dict(moment=pl.lit("close"), kind=pl.lit("tote"), odds=pl.lit(5.0))
    early = conform(out.with_columns(**row), TABLES["prices"])
    priced = st.starts_frame(
        WORLD.tables | {"prices": pl.concat([WORLD.tables["prices"], early])}, WORLD.truth
    )
    assert priced.equals(STARTS), "the scratched are neither runners nor in the sum"
    assert priced.filter(pl.col("status") == "non_runner").is_empty()


def test_6_a_non_runner_taken_for_a_starter_closes_its_race(frame):
    """The source forgot the scratching: the runner has no price, and a sum of the others would make
    favourites of them all."""
    first = STARTS.filter(pl.col("date") >= FROM).row(0, named=True)
    scratched = (pl.col("race_id") == first["race_id"]) & (
        pl.col("runner_no") == first["runner_no"]
    )
    forgotten = as_if_real(STARTS).with_columns(
        odds=pl.when(scratched).then(None).otherwise("odds")
    )
    race, odds = st.race_codes(forgotten), forgotten["odds"].fill_null(np.nan).to_numpy()
    assert (~has_market(odds, race)).sum() == 1 and np.isnan(overround(odds, race)).sum() == 1
    with pytest.raises(BadInput, match="without a price"):
        implied(odds, race)
    assert ran(forgotten, frame).left_out["not fully priced"] == 1


# --- 7: more than there is to be had


def test_7_a_gain_beyond_the_simulators_truth_stops_the_run_in_the_simulator():
    leaking = STARTS.with_columns(body_weight_kg=pl.col("body_weight_kg") + 30 * WON)
    found = ran(leaking)
    r2 = {k: b["r2"].value for k, b in found.boards.items()}
    assert found.simulated and max(r2["combined"], r2["blend"]) > r2["oracle"]
    assert "beyond_oracle" in stopped(found)


def test_7_what_can_be_had_is_not_called_a_leak(frame):
    "The truth itself gains all there is, and no more."
    found = backtest(STARTS, FROM, make=once, frame=frame)
    rows = found.predictions.with_columns(combined="true_p")
    knowing = figures(replace(found, predictions=rows), 1)
    wire = {w.name: w for w in knowing.tripwires}
    assert (
        knowing.delta_r2.value == pytest.approx(knowing.attainable_delta_r2)
        and not wire["beyond_oracle"].tripped
    )
    walk.stop_if_tripped(knowing.tripwires, [], knowing.simulated)
    assert bankroll(rows).height > 10


def test_a_wire_is_overridden_by_its_name_and_no_other_way(frame):
    found = ran(
        as_if_real(STARTS),
        frame.with_columns(official_rating=-STARTS["margin_lengths"].fill_null(20).log1p()),
    )
    tripped = found.tripped
    assert len(tripped) > 1
    walk.stop_if_tripped(found.tripwires, tripped, found.simulated)
    for name in tripped:
        with pytest.raises(Leak, match=name):
            walk.stop_if_tripped(found.tripwires, [t for t in tripped if t != name], False)
    with pytest.raises(BadInput, match="all"):
        walk.overridden("all")
