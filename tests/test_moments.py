"""Decision time: what is known and priced at a moment, from the store to the answer, and nothing later."""

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from racing_core import starts as st
from racing_core.app import boards, mainjob, options, runs
from racing_core.betting.backtest import OPTIMISTIC
from racing_core.config import home as home_of
from racing_core.data.ingest import ingest_world
from racing_core.data.store import Store
from racing_core.errors import BadInput
from racing_core.features.matrix import History, build, compute, names
from racing_core.folds import Races
from racing_core.lab import tracking
from racing_core.lab.ablation import quick
from racing_core.lab.backtest import backtest, figures
from racing_core.lab.bankroll import bankroll
from racing_core.lab.walk import walk
from racing_core.market import power_of
from racing_core.metrics import delta_r2
from racing_core.odds import implied
from racing_core.pages import raceday
from racing_core.pages import report as reports
from racing_core.pipeline import Pipeline
from racing_core.records import to_json
from racing_core.release import bundle, registry
from racing_core.release.training import REMEMBERED, train
from racing_core.schema import MOMENT, RACES, RUNNERS, TABLES, WEATHER, conform
from racing_core.serving.contract import Card
from racing_core.serving.predictor import Predictor, sample_card
from racing_core.simulate import World, simulate
from racing_core.tripwires import LIMITS

WORLD = simulate(races=1400, seed=61)
DAYS = WORLD.tables["races"]["date"].unique().sort()
FROM = DAYS[-1] - timedelta(120)
TODAY = DAYS[-3]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def once() -> Pipeline:
    "Linear models, fitted once."
    return replace(quick(), refit=False)


def of_day(day: date) -> pl.Expr:
    "The rows of a canonical table that belong to a day's races."
    ids = WORLD.tables["races"].filter(date=day)["race_id"]
    return pl.col("race_id").is_in(ids.implode())


def shuffled(table: str, rows: pl.Expr, columns: list[str]) -> dict[str, pl.DataFrame]:
    "The world's tables with some columns of one table shuffled among some of its rows."
    old = WORLD.tables[table]
    mixed = old.filter(rows).with_columns(pl.col(columns).shuffle(seed=3))
    assert not mixed.equals(old.filter(rows))
    return WORLD.tables | {table: pl.concat([old.filter(~rows), mixed])}


def rerun(day: date) -> dict[str, pl.DataFrame]:
    "The day's races with other results, weather and running positions."
    told = ["status", "position", "margin_lengths", "time_s"]
    ran = of_day(day) & (pl.col("status") != "non_runner")
    tables = shuffled("results", ran, told)
    tables |= {"sections": tables["sections"].filter(~of_day(day))}
    wet = pl.when(of_day(day)).then(99.0).otherwise("precipitation_mm")
    return tables | {"weather": tables["weather"].with_columns(precipitation_mm=wet)}


def later_prices(day: date) -> dict[str, pl.DataFrame]:
    "The day's closing prices, shuffled."
    return shuffled("prices", of_day(day) & (pl.col("moment") == "close"), ["odds"])


@pytest.fixture(scope="module")
def morning():
    return WORLD.starts("morning")


@pytest.fixture(scope="module")
def fitted(morning):
    "A pipeline of the morning that has not seen the last days, and the history that it reads."
    past = morning.filter(pl.col("date") < DAYS[-20])
    races = Races.of(past, build(past))
    late = races.dates >= np.datetime64(DAYS[-90])
    return once().fit(races, ~late & races.decided, late & races.decided)


def answers(fitted: Pipeline, tables: dict[str, pl.DataFrame]) -> dict[str, np.ndarray]:
    "What is said in the morning of TODAY: features, market and probabilities."
    starts = st.starts_frame(tables, WORLD.truth, "morning")
    frame, today = build(starts), (starts["date"] == TODAY).to_numpy()
    races = Races.of(starts, frame).rows(today)
    found = fitted.predict(races.X, races.odds)
    return found | dict(features=races.X.values, price=implied(races.odds, races.race))


def moved(one: dict, other: dict) -> set[str]:
    return {k for k in one if not np.array_equal(one[k], other[k], equal_nan=True)}


# --- red team: nothing later than the moment is seen


@pytest.mark.parametrize("happened", [rerun, later_prices])
def test_what_happens_after_the_morning_moves_nothing_of_the_morning(fitted, happened):
    before = answers(fitted, WORLD.tables)
    assert {"market", "combined", "fundamental", "features"} <= set(before)
    assert moved(before, answers(fitted, happened(TODAY))) == set(), "not by a bit"


def test_the_day_before_is_seen_in_the_morning(fitted):
    "The control: a battery that never rings proves nothing."
    before = answers(fitted, WORLD.tables)
    yesterday = DAYS[DAYS.to_list().index(TODAY) - 1]
    for happened in (rerun, later_prices):
        told = moved(before, answers(fitted, happened(yesterday)))
        assert {"features", "fundamental", "blend"} <= told
        assert "price" not in told and "market" not in told


def test_at_the_close_the_last_price_is_the_market(fitted):
    early, late = (st.starts_frame(later_prices(TODAY), as_of=m) for m in ("morning", "close"))
    today = pl.col("date") == TODAY
    assert early.filter(today)["odds"].equals(WORLD.starts("morning").filter(today)["odds"])
    assert not late.filter(today)["odds"].equals(WORLD.starts().filter(today)["odds"])


def raced_the_day_before(day: date) -> dict[str, pl.DataFrame]:
    "The world's tables, the last race day before this one moved to its eve."
    before, races = max(d for d in DAYS if d < day), WORLD.tables["races"]
    eve = pl.lit(day - timedelta(1))
    moved = pl.when(pl.col("date") == before).then(eve).otherwise("date")
    return WORLD.tables | {"races": races.with_columns(date=moved)}


def test_the_evening_before_does_not_know_the_day_before():
    eve, tables = TODAY - timedelta(1), raced_the_day_before(TODAY)
    morning, evening = (st.starts_frame(tables, as_of=m) for m in ("morning", "evening"))
    history = History.learn(morning)
    without = History.learn(morning.filter(pl.col("date") < eve))
    field, dusk = (f.filter(date=TODAY) for f in (morning, evening))
    assert compute(dusk, history).equals(compute(dusk, without))
    assert not compute(field, history).equals(compute(field, without))
    assert compute(dusk, history)["date"].unique().to_list() == [TODAY]


def test_in_the_evening_nobody_has_trained_on_races_that_are_being_run():
    first, tables = TODAY, raced_the_day_before(TODAY)
    columns = ["career_starts"]
    for moment, last in (("morning", first - timedelta(1)), ("evening", None)):
        starts = st.starts_frame(tables, as_of=moment).with_columns(odds="final_odds")
        races = Races.of(starts, build(starts).select("race_id", "runner_no", "date", *columns))
        assert races.as_of == races.rows(races.decided).as_of == moment
        step = next(walk(races, first))
        known = races.dates[step.past].max().astype("datetime64[D]").item()
        assert known == last if last else known < first - timedelta(1)
        assert races.dates[step.test].min().astype("datetime64[D]").item() == first


def test_what_is_observed_late_is_null_for_the_race_and_kept_for_the_past(morning):
    frame, late = build(morning), build(WORLD.starts())
    gone = [n for n in names() if frame[n].is_null().all() and not late[n].is_null().all()]
    assert {"body_weight", "temperature_f", "humidity_pct", "precipitation_last_24h_mm"} <= set(
        gone
    )
    for kept in ("last_moisture_pct", "career_starts", "weighted_market_log", "perf_rating_horse"):
        if kept in frame.columns:
            assert frame[kept].equals(late[kept]), kept
    specs = {c: s for t in (RACES, RUNNERS, WEATHER) for c, s in t.columns.items()}
    assert all(s.known in MOMENT.categories for s in specs.values())
    ahead = ("draw", "weight_kg", "going", "jockey_id", "distance_m")
    assert {specs[c].known for c in ahead} == {"evening"}


def test_past_prices_are_final_whatever_the_decision_time(morning):
    one, other = History.learn(morning), History.learn(WORLD.starts())
    assert all(one.tables[name].equals(other.tables[name]) for name in one.tables)


# --- the close is what it was


def test_the_close_is_the_default_and_reads_the_closing_price():
    starts = WORLD.starts()
    closing = WORLD.tables["prices"].filter(moment="close").sort("race_id", "runner_no")
    rows = starts.sort("race_id", "runner_no")
    assert rows["odds"].equals(closing["odds"]) and rows["final_odds"].equals(closing["odds"])
    without = WORLD.tables | {"prices": WORLD.tables["prices"].filter(moment="close")}
    assert st.starts_frame(without, WORLD.truth).equals(starts)
    assert build(starts.drop("as_of")).equals(build(starts))


# --- markets and figures of a moment


def test_the_market_stage_is_fitted_on_prices_of_its_moment(fitted, morning):
    past = morning.filter(pl.col("date") < DAYS[-20])
    race, win = st.race_codes(past), st.winners(past)
    own, close = (power_of(past[c].to_numpy(), win, race) for c in ("odds", "final_odds"))
    assert fitted.power == pytest.approx(own) and abs(own - close) > 0.02


@pytest.fixture(scope="module")
def found():
    starts = {m: WORLD.starts(m) for m in ("morning", "close")}
    return {m: backtest(frame, FROM, make=once) for m, frame in starts.items()}


def test_a_finding_says_as_of_when_and_gains_over_that_market(found):
    early, late = (figures(found[m], 1) for m in ("morning", "close"))
    assert (early.as_of, early.decided) == ("morning", "the morning")
    assert (late.as_of, late.decided) == ("close", "the close of betting")
    assert early.boards["price"]["r2"].value < late.boards["price"]["r2"].value - 0.01
    p = found["morning"].predictions
    own = [p[c].to_numpy() for c in ("combined", "market", "win")]
    gain = delta_r2(*own, st.race_codes(p), p["date"].to_numpy())
    assert early.over["market"] == gain
    assert "as of the morning" in reports.headline(early, "simulated")
    facts = to_json(early) | dict(report="x.html")
    assert ", as of the morning;" in boards.scoreboard(facts)


def test_bets_of_the_morning_are_paid_at_the_close(found):
    early, late = (figures(found[m], 1) for m in ("morning", "close"))
    assert early.bankroll.label == "chosen at the morning price, settled at the final price"
    assert late.bankroll.label == OPTIMISTIC
    p = found["morning"].predictions
    path, taken, poor = (
        bankroll(p.with_columns(final_odds=paid), "true_p")
        for paid in (pl.col("final_odds"), pl.col("odds"), pl.lit(1.01))
    )
    assert path["bets"].sum() > 100
    assert taken["bets"][0] == path["bets"][0] == poor["bets"][0], "chosen alike, paid otherwise"
    profits = [b["profit"].sum() for b in (taken, path, poor)]
    assert profits == sorted(profits, reverse=True) and len(set(profits)) == 3
    unpaid = bankroll(p.with_columns(final_odds=None * pl.col("odds")), "true_p")
    assert unpaid["bets"].sum() == 0, "what is never paid is never chosen"


def test_the_wire_of_the_gain_is_held_against_the_close(found):
    def gains(predictions: pl.DataFrame, moment: str) -> tuple[float, float]:
        seen = figures(replace(found[moment], predictions=predictions), 1)
        return {w.name: w.value for w in seen.tripwires}["delta_r2"], seen.over["market"].value

    p = found["morning"].predictions
    held, gain = gains(p.with_columns(combined="price"), "morning")
    assert held < gain - 0.004, "the morning's price is worse than the close"
    assert gains(p.with_columns(combined="true_p"), "morning")[0] > LIMITS["delta_r2"]
    p = found["close"].predictions
    market, won, days = (p[c].to_numpy() for c in ("market", "win", "date"))
    bold = max(
        delta_r2(p[stage].to_numpy(), market, won, st.race_codes(p), days).value
        for stage in ("combined", "blend", "fundamental")
    )
    assert gains(p, "close")[0] == bold, "a withheld correction hides no leak"


# --- the store


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    place = home_of(tmp_path_factory.mktemp("home"), env={})
    ingest_world(WORLD, place)
    return place


def test_the_store_hands_out_books_and_frames_of_a_moment(house, morning):
    store = Store(house, "simulated")
    assert store.starts(as_of="morning").drop("true_p").equals(morning.drop("true_p"))
    assert store.starts().equals(store.starts(as_of="close"))
    early, late = store.prices("morning"), store.prices()
    assert early["price_moment"].unique().to_list() == ["morning"]
    assert late["price_moment"].unique().to_list() == ["close"]
    rows = morning.sort("race_id", "runner_no")
    assert early["odds"].equals(rows["odds"]) and late["odds"].equals(rows["final_odds"])
    assert len(store.prices("morning", since=TODAY)) < len(early)


def test_an_unknown_moment_and_one_without_prices_are_refused(house):
    store = Store(house, "simulated")
    for ask in (store.starts, store.prices):
        with pytest.raises(BadInput, match="no such moment.*'noon'.*evening, breakfast, morning"):
            ask(as_of="noon")
        with pytest.raises(BadInput, match="'T-10'.*its moments: morning, close"):
            ask(as_of="T-10")


def test_a_race_without_that_mornings_price_is_read_at_the_latest_before_it():
    prices, lost = WORLD.tables["prices"], of_day(TODAY)
    early = prices.filter(lost, pl.col("moment") == "morning")
    evening = conform(early.with_columns(moment=pl.lit("evening")), TABLES["prices"])
    rest = prices.filter(~(lost & (pl.col("moment") == "morning")))
    tables = WORLD.tables | {"prices": pl.concat([rest, evening])}
    assert st.starts_frame(tables, WORLD.truth, "morning").equals(WORLD.starts("morning"))
    nothing = WORLD.tables | {"prices": rest}
    blind = st.starts_frame(nothing, WORLD.truth, "morning").filter(date=TODAY)
    assert blind["odds"].is_null().all() and blind["final_odds"].is_not_null().all()


# --- bundles, answers, pages, runs


@pytest.fixture(scope="module")
def made(house):
    "Bundles of the morning and of the close."
    until = DAYS[-6]
    return {
        m: train(house, "simulated", house.root / m, NOW, until=until, make=once, as_of=m)
        for m in ("morning", "close")
    }


def test_a_bundle_says_as_of_when_it_was_trained(house, made):
    assert {m: made[m]["as_of"] for m in made} == {m: m for m in made}
    assert made["morning"]["name"] == "simulated pipeline as of the morning"
    assert made["close"]["name"] == "simulated pipeline"
    powers = [bundle.read(house.root / m).pipeline.power for m in ("morning", "close")]
    assert powers[0] != powers[1]
    kept = [r.to_json() for r in tracking.runs(house) if r.kind == "train"]
    assert sorted(r["settings"]["as_of"] for r in kept) == ["close", "morning"]
    assert runs.listing(kept).count(", as of morning") == 1
    for run in (r for r in tracking.runs(house) if r.kind == "train"):
        own = json.loads((run.folder / "bundle" / "manifest.json").read_text(encoding="utf-8"))
        assert own["version"] == made[run.settings["as_of"]]["version"], (
            "its bundle is kept with it"
        )
        assert run.figures["size_mb"]["value"] > 0


def test_an_answer_says_as_of_when_and_warns_of_another_moment(house, made):
    race = WORLD.starts().filter(date=DAYS[-3])["race_id"][0]
    cards = {m: sample_card(WORLD.starts(m), race) for m in ("morning", "close")}
    assert cards["morning"].as_of == "morning"
    for trained in made:
        told = Predictor(bundle.read(house.root / trained))
        plain = told.predict(cards[trained].model_copy(update=dict(as_of=None)))
        assert plain.as_of == trained and not any("another moment" in w for w in plain.warnings)
        other = "close" if trained == "morning" else "morning"
        asked = told.predict(cards[other])
        assert asked.as_of == other
        words = f"trained on prices of {st.SAID[trained]}, asked as of {st.SAID[other]}"
        assert any(w.startswith(words) for w in asked.warnings)
    with pytest.raises(ValueError, match="as_of"):
        Card.model_validate(cards["close"].model_dump() | dict(as_of="noon"))


def test_a_bundle_of_the_morning_answers_as_its_backtest_would(house, made):
    "One predictor: the weather of the card is not read, for training did not see it either."
    told, starts = Predictor(bundle.read(house.root / "morning")), WORLD.starts("morning")
    frame = build(starts)
    for race in starts.filter(date=DAYS[-5])["race_id"].unique(maintain_order=True):
        seen = told.look(sample_card(starts, race)).features
        assert seen.equals(frame.filter(race_id=race).select(seen.columns))


def test_a_bundle_of_the_evening_remembers_far_enough_back(tmp_path):
    first = DAYS[:-5][-REMEMBERED]  # the first day whose cards are answered as of that day
    prices = WORLD.tables["prices"]
    evening = prices.filter(moment="morning").with_columns(moment=pl.lit("evening", MOMENT))
    tables = raced_the_day_before(first) | {"prices": pl.concat([prices, evening])}
    place = home_of(tmp_path, env={})
    ingest_world(World(tables, WORLD.truth), place)
    train(place, "simulated", tmp_path / "b", NOW, until=DAYS[-6], make=once, as_of="evening")
    told, starts = Predictor(bundle.read(tmp_path / "b")), st.starts_frame(tables, as_of="evening")
    assert told.remembers_from == first
    frame = build(starts)
    for race in starts.filter(date=first)["race_id"].unique(maintain_order=True):
        seen = told.look(sample_card(starts, race)).features
        assert seen.equals(frame.filter(race_id=race).select(seen.columns))


def test_the_page_shows_the_prices_of_the_bundles_moment(house, made):
    registry.promote(house, house.root / "morning", "champion", NOW)
    book = raceday.open_book(house, before=1)
    race = book.races(book.days()[0][1])[0][1]
    sheet = raceday.sheet(book, race)
    assert "answers as of the morning" in raceday.title(book)
    assert "odds as of the morning" in raceday.table(sheet)
    shown = {r.runner_no: r.odds for r in sheet.prediction.ranked}
    early = WORLD.starts("morning").filter(race_id=race)
    assert shown == dict(early.select("runner_no", "odds").iter_rows())


def test_the_report_and_its_run_say_as_of_when(house):
    told = mainjob.report(house, "simulated", DAYS[-20], more=dict(as_of="morning"))
    assert told["as_of"] == "morning" and told["report"].endswith(".html")
    page = Path(told["report"]).read_text(encoding="utf-8")
    assert "as of the morning" in page and "settled at the final price" in page
    assert tracking.find(house, told["run"]).settings["as_of"] == "morning"
    with pytest.raises(BadInput, match="its moments: morning, close"):
        mainjob.report(house, "simulated", DAYS[-20], more=dict(as_of="T-60"))


def test_the_option_names_every_moment():
    told = json.dumps(options.AsOf.__metadata__[0].help)
    assert all(m in told for m in MOMENT.categories)
