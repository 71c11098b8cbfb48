"""What corrects the market must have earned it: on races before the test, walking forward, or the market answers."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from racing_core.calibration import RaceSoftmax
from racing_core.correction import Correction, foresee, judge, weigh
from racing_core.features.matrix import History, build, matrix
from racing_core.folds import Races
from racing_core.lab import backtest as lab
from racing_core.lab.ablation import quick
from racing_core.lab.walk import last_window, walk
from racing_core.market import market_utility, power_of, shape_of, shape_utility, yardstick
from racing_core.models.linear import ConditionalLogit
from racing_core.pipeline import Pipeline, load_pipeline, recipe, save_pipeline
from racing_core.release import bundle
from racing_core.serving.predictor import Predictor, sample_card
from racing_core.simulate import simulate


def races_of(starts: pl.DataFrame) -> Races:
    return Races.of(starts, build(starts))


def fitted(races: Races, make=quick) -> Pipeline:
    step = last_window(races)
    return make().fit(races, step.train, step.tune, early=step.early)


@pytest.fixture(scope="module")
def wasteful() -> pl.DataFrame:
    "A market that gives a tenth away."
    return simulate(races=2600, seed=12, inefficiency=0.1).starts()


@pytest.fixture(scope="module")
def fair() -> pl.DataFrame:
    return simulate(races=1900, seed=3, inefficiency=0.0).starts()


@pytest.fixture(scope="module")
def earned(wasteful) -> Pipeline:
    return fitted(races_of(wasteful))


@pytest.fixture(scope="module")
def withheld(fair) -> Pipeline:
    return fitted(races_of(fair))


def test_what_the_past_speaks_for_corrects_the_market(earned, wasteful):
    said, races = earned.correction, races_of(wasteful)
    assert not said.withheld and said.low > 0 and said.races_needed == 0
    p = earned.predict(races.X, races.odds)
    assert not np.allclose(p["combined"], p["market"]) and list(earned.residual)
    assert earned.answers["with_odds"] == "combined" and "is corrected" in said.sentence


def test_what_it_does_not_speak_for_is_withheld_and_the_market_answers(withheld, fair):
    said, races = withheld.correction, races_of(fair)
    assert said.withheld and not said.low > 0 and not said.young and said.races > 100
    p = withheld.predict(races.X, races.odds)
    assert np.array_equal(p["combined"], p["market"]) and withheld.residual == {}
    assert np.array_equal(withheld.foreseen["combined"], withheld.foreseen["market"])
    assert withheld.answers["with_odds"] == "combined"
    names, parts = withheld.contributions(races.X, "combined", races.odds)
    assert names[0] == "price" and not parts[:, 1:].any()
    assert said.races_needed is None or said.races_needed > 0


def test_the_judgement_does_not_see_the_test_window(wasteful):
    races = races_of(wasteful)
    step = next(walk(races, wasteful["date"].max() - timedelta(200)))
    rng = np.random.default_rng(0)
    win = np.where(step.test, 0.0, races.y.win)
    win[np.flatnonzero(step.test)[np.unique(races.race[step.test], return_index=True)[1]]] = 1
    odds = np.where(step.test, rng.uniform(2, 30, len(races)), races.odds)
    other = replace(races, y=replace(races.y, win=win), odds=odds)
    here, there = (quick().fit(r, step.train, step.tune) for r in (races, other))
    assert here.correction == there.correction and here.yardstick == there.yardstick
    assert np.array_equal(here.weights["residual"], there.weights["residual"])


def test_half_a_year_is_too_young_whatever_its_interval_says(wasteful):
    young = wasteful.filter(wasteful["date"] < wasteful["date"].min() + timedelta(180))
    races = races_of(young)
    market = market_utility(races.odds, races.race, 1.0)
    told = {"oracle": ConditionalLogit(l2=1.0)}
    knows = Races(
        matrix(pl.DataFrame({"x": np.log(young["true_p"])}).hstack(young.select("race_id")), ["x"]),
        races.y,
        races.odds,
        races.dates,
    )
    scores, block = foresee(told, knows, market)
    said = judge(scores, block, knows, market)
    assert said.low > 0 and said.withheld and said.young, "it would pass, were it older"
    assert said.races_needed > 100 and "less than a year" in said.sentence
    older = replace(knows, dates=knows.dates.astype("datetime64[D]") + 400 * (block > 1))
    assert not judge(scores, block, older, market).withheld


def test_weights_start_from_nothing(wasteful):
    "Twenty races say nothing: the weight stays near 0, where it was held to .7 once."
    races = races_of(wasteful)
    few = races.rows(races.race < 20)
    market = market_utility(few.odds, few.race, 1.0)
    weak = 0.002 * np.log(wasteful["true_p"].to_numpy()[races.race < 20])[:, None]
    assert weigh(weak, few, market)[0] < 0.1


def test_a_correction_comes_back_from_disk_and_stands_in_the_manifest(
    withheld, earned, fair, wasteful, tmp_path
):
    for name, pipeline, starts in (("no", withheld, fair), ("yes", earned, wasteful)):
        races = races_of(starts)
        save_pipeline(pipeline, tmp_path / name)
        again = load_pipeline(tmp_path / name)
        here, there = (one.predict(races.X, races.odds) for one in (pipeline, again))
        assert here.keys() == there.keys() and all(np.array_equal(here[k], there[k]) for k in here)
        assert again.correction == pipeline.correction and again.yardstick == pipeline.yardstick
        assert json.loads((tmp_path / name / "pipeline.json").read_text())["correction"]


def test_the_answer_says_that_the_market_is_not_corrected(withheld, fair, tmp_path):
    last = fair["date"].max()
    origin = bundle.Origin(
        "fair", "simulated", fair["date"].min(), last, datetime(2020, 1, 1, tzinfo=UTC), last
    )
    history = History.learn(fair)
    manifest = bundle.write(tmp_path / "b", withheld, history, origin)
    assert manifest["correction"]["withheld"] and manifest["correction"]["sentence"]
    predictor = Predictor(bundle.read(tmp_path / "b"))
    card = sample_card(fair, fair.filter(fair["date"] == last)["race_id"][0])
    answer = predictor.look(card)
    assert answer.stage == "combined" and answer.correction == withheld.correction
    told = predictor.prediction(answer)
    assert withheld.correction.sentence in told.warnings
    assert all(r.win_probability == pytest.approx(r.market_probability) for r in told.ranked)
    alone = predictor.prediction(predictor.look(card, "fundamental"))
    assert withheld.correction.sentence not in alone.warnings


def test_the_report_says_window_by_window_what_was_withheld(fair):
    walked = lab.backtest(fair, fair["date"].max() - timedelta(150), make=quick)
    found = lab.figures(walked, 1)
    written = json.loads(json.dumps(found.to_json()))
    assert [c["withheld"] for c in written["corrections"]] == [True] and found.delta_r2.value <= 0
    assert written["over"].keys() == {"market", "market_shape"}
    assert found.over["market"] == (0, 0, 0), "the market is the market"
    from racing_core.app.boards import scoreboard
    from racing_core.pages import report

    sentence = found.corrections[0].sentence
    assert sentence in report.window(found) and "did not speak" in report.headline(found, "x")
    text = scoreboard(written | dict(report="r.html"))
    assert sentence in text and "over market shape" in text and "not for betting" in text
    assert "not for betting" in report.comparison(found)


def test_a_leak_trips_the_wires_though_the_correction_is_withheld(fair):
    "Half a year of a store whose body weights were edited after the race."
    won = fair["position"].cast(pl.Float64).fill_null(9) == 1
    young = fair.with_columns(
        body_weight_kg=pl.col("body_weight_kg") + 30 * won.cast(pl.Float64)
    ).filter(fair["date"] < fair["date"].min() + timedelta(240))
    found = lab.figures(lab.backtest(young, young["date"].max() - timedelta(80), make=quick), 1)
    assert found.corrections[0].withheld and "top1" in found.tripped


def test_the_yardstick_is_chosen_on_days_before_and_bends_where_the_price_is_bent(fair):
    race = races_of(fair).race
    win, truth, days = races_of(fair).y.win, fair["true_p"].to_numpy(), fair["date"].to_numpy()
    bent = np.where(truth < 0.06, 0.06 * np.sqrt(truth / 0.06), truth)
    prices = np.bincount(race, bent)[race] / bent
    assert yardstick(prices, win, race, days) == "market_shape"
    assert yardstick(1 / truth, win, race, days) in ("market", "market_shape")
    power = power_of(prices, win, race)
    q = np.exp(shape_utility(shape_of(prices, win, race, power), prices, race, power))
    mean = lambda p: float(win @ np.log(p))
    assert mean(q) > mean(np.exp(market_utility(prices, race, power))) + 2


def test_a_bundle_hangs_on_the_shape(withheld, monkeypatch):
    made = bundle.code_of(withheld)
    assert not bundle.changed(made, bundle.code_of(withheld))
    monkeypatch.setattr(RaceSoftmax, "_apply", lambda self, p, race: p)
    assert "market_shape" in bundle.changed(made, bundle.code_of(withheld))


def test_ridges_are_averaged_and_interactions_pay_more(wasteful):
    best = recipe().residual["conditional_logit"]
    assert (best.l2, best.spread, best.dear) == (2000, 2, 1.25)
    assert "interaction" not in best.interactions and len(best.interactions) > 20
    races = races_of(wasteful)
    given = races.X, races.y
    alone = [ConditionalLogit(l2=l2).fit(*given).beta for l2 in (1000, 3000, 9000)]
    assert np.allclose(
        ConditionalLogit(l2=3000, spread=3).fit(*given).beta, np.mean(alone, axis=0), atol=1e-6
    )
    dear = ConditionalLogit(l2=3000, dear=100, interactions=best.interactions).fit(*given)
    costs = np.isin(dear.columns, best.interactions)
    assert np.abs(dear.beta[costs]).max() < 0.2 * np.abs(alone[1][costs]).max()


def test_the_sentence_tells_what_is_missing():
    said = Correction(True, 0.001, -0.0005, 0.0025, 1200, 900)
    assert said.sentence.endswith("about 900 more races are needed.")
    assert said.to_json()["sentence"] == said.sentence
    hopeless = Correction(True, -0.001, -0.002, 0.0001, 1200, None)
    assert "would not help" in hopeless.sentence
    assert "too few" in Correction(True, None, None, None, 0, None, True).sentence
