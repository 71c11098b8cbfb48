"""Recipes from outside: each becomes a bundle, is promoted and answers a card; a stack comes back the same."""

import io
import json
from contextlib import redirect_stdout
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from racing_core.app import boards, mainjob
from racing_core.app.main import main
from racing_core.combiners import Weighted
from racing_core.config import home as home_of
from racing_core.data.store import Store
from racing_core.errors import BadInput
from racing_core.features.matrix import build
from racing_core.folds import Races
from racing_core.lab import backtest as lab
from racing_core.lab.ablation import quick
from racing_core.metrics import mcfadden_r2
from racing_core.models.base import params
from racing_core.models.linear import ConditionalLogit
from racing_core.models.trees import LambdaRank
from racing_core.models.zoo import zoo
from racing_core.odds import centred, softmax
from racing_core.pages import report as pages
from racing_core.pipeline import Pipeline, load_pipeline, recipe, save_pipeline
from racing_core.recipes import read_recipe, recipes
from racing_core.release import bundle
from racing_core.simulate import simulate
from racing_core.stacking import TwoStage

ZOO = """
[lightgbm_lambdarank]
trees = 10
threads = 1
[lightgbm_classifier]
trees = 10
threads = 1
[xgboost_pairwise]
trees = 5
depth = 3
[catboost_yetirank]
trees = 5
depth = 3
[tabnet]
steps = 2
width = 8
epochs = 1
[logistic_regression]
[random_forest]
trees = 5
depth = 4
[semantic_scorer]
"""
RECIPES = """
[best]
models = ["conditional_logit"]
[best.residual.conditional_logit]
l2 = 3000
[stack]
zoo = "small.toml"
combine = "two_stage"
folds = 3
combiner = {trees = 10}
[zoo-average]
zoo = "small.toml"
models = ["lightgbm_lambdarank", "logistic_regression", "tabnet"]
combine = "average"
[light]
zoo = "small.toml"
models = ["lightgbm_lambdarank", "logistic_regression"]
combine = "average"
"""
ANSWERS = {"best": "combined", "stack": "blend", "zoo-average": "blend"}


def ask(*argv: object, home: Path, code: int = 0) -> dict:
    "The command's JSON, in this process."
    with redirect_stdout(io.StringIO()) as out:
        assert main(["--home", str(home), *map(str, argv), "--json"]) == code, out.getvalue()
    return json.loads(out.getvalue())


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    "Recipes of small models."
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "small.toml").write_text(ZOO)
    (folder / "recipes.toml").write_text(RECIPES)
    return folder / "recipes.toml"


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    "A home with a small world."
    place = tmp_path_factory.mktemp("home")
    ask("simulate", "--races", 700, home=place)
    return place


@pytest.fixture(scope="module")
def starts() -> pl.DataFrame:
    return simulate(races=600, seed=8, inefficiency=0.05).starts()


@pytest.fixture(scope="module")
def races(starts) -> Races:
    return Races.of(starts, build(starts))


def windows(races: Races) -> tuple[np.ndarray, np.ndarray]:
    cut = races.dates[int(0.7 * len(races))]
    return races.dates < cut, races.dates >= cut


@pytest.mark.parametrize("name", ANSWERS)
def test_a_recipe_becomes_a_champion_that_answers_a_card(name, house, small, tmp_path):
    made = ask("train", "--source", "simulated", "--recipe", name, "--recipes", small, home=house)
    manifest = bundle.manifest_of(Path(made["folder"]))
    assert manifest["recipe"]["name"] == made["recipe"] == name
    run = ask("runs", "show", manifest["made"]["run"], home=house)
    assert run["kind"] == "train" and run["settings"]["recipe"] == name
    assert manifest["data_fingerprint"] == run["data"] and run["state"] == "finished"
    assert manifest["made"]["commit"] == (run["commit"] or "not under version control")
    assert manifest["recipe"]["settings"] == recipe(name, small).settings()
    assert manifest["recipe"]["answers"]["with_odds"] == ANSWERS[name]
    reason = ("--force", "no race is left that both recipes had not seen")
    ask("promote", "simulated", "--to", "champion", *reason, home=house)
    card = mainjob.next_week(Store(home_of(house), "simulated").starts())
    for priced, stage in ((True, ANSWERS[name]), (False, "fundamental")):
        runners = [r.model_copy(update={} if priced else dict(odds=None)) for r in card.runners]
        file = tmp_path / f"{stage}.json"
        file.write_text(
            card.model_copy(update=dict(runners=runners)).model_dump_json(exclude_none=True)
        )
        said = ask("predict", file, home=house)
        assert (said["stage"], said["version"]) == (stage, made["version"])
        assert sum(r["win_probability"] for r in said["ranked"]) == pytest.approx(1)


def test_an_unknown_recipe_is_refused_with_the_names_there_are(house):
    refused = ask("train", "--source", "simulated", "--recipe", "stew", home=house, code=2)
    assert refused["got"] == "stew" and "zoo-average" in refused["expected"]


def test_the_eight_models_come_back_from_disk_to_the_bit(races, small, tmp_path):
    train, tune = windows(races)
    steps = []
    stack = recipe("stack", small).fit(races, train, tune, steps.append)
    assert len(stack.fundamental) == 8
    assert {f"{name}, fold 3 of 3" for name in stack.fundamental} <= set(steps)
    save_pipeline(stack, tmp_path)
    assert not [f for f in tmp_path.rglob("*") if f.suffix in (".pkl", ".joblib", ".pickle")]
    again, own = load_pipeline(tmp_path), races.rows(tune)
    here, there = (one.predict(own.X, own.odds) for one in (stack, again))
    assert list(here) == list(there) and all(np.array_equal(here[k], there[k]) for k in here)
    assert {"stage_2a", "stage_2b", "blend", *stack.fundamental} <= set(here)
    names, parts = again.contributions(own.X, "blend", own.odds)
    assert names[0] == "price" and names[1:9] == tuple(stack.fundamental)
    error = np.abs(parts.sum(axis=1) - centred(np.log(here["blend"]), own.race))
    assert np.median(error) < 1e-9, "exact but where the clip holds a runner down"


def test_a_stack_on_disk_that_does_not_fit_together_is_refused(races, tmp_path):
    train, tune = windows(races)
    models = {"logit": ConditionalLogit(), "trees": LambdaRank(trees=5, threads=1)}
    save_pipeline(
        Pipeline(models, {}, combine=TwoStage(folds=2, trees=5)).fit(races, train, tune), tmp_path
    )
    file = tmp_path / "pipeline.json"
    state = json.loads(file.read_text())
    for change in (dict(kind="oracle"), dict(state=state["combine"]["state"] | dict(coef=[1.0]))):
        file.write_text(json.dumps(state | dict(combine=state["combine"] | change)))
        with pytest.raises(BadInput, match="no such way to combine|not a saved stack"):
            load_pipeline(tmp_path)


@pytest.mark.parametrize("combine", [Weighted(), TwoStage(folds=3, trees=5)], ids=lambda c: c.kind)
def test_the_tuning_window_is_judged_by_models_that_had_not_seen_it(races, combine):
    train, tune = windows(races)
    pipeline = Pipeline({"logit": ConditionalLogit(l2=1)}, {}, combine=combine)
    own = pipeline.fit(races, train, tune) and races.rows(tune)
    seen, unseen = (
        mcfadden_r2(p["logit"], own.y.win, own.race)
        for p in (pipeline.predict(own.X, own.odds), pipeline.foreseen)
    )
    assert seen > unseen + 0.02, "so weak a ridge knows what it has read by heart"
    if combine.kind == "weighted":
        blind = ConditionalLogit(l2=1).fit(races.X.rows(train), races.y.rows(train))
        said = softmax(pipeline.weights["logit"] * blind.score(own.X), own.race)
        assert np.allclose(pipeline.foreseen["logit"], said, atol=1e-12)


def test_the_recipes_that_come_with_the_package_are_as_specified():
    assert set(ANSWERS) <= set(recipes())
    specified = zoo()
    for name, kind in (("stack", "two_stage"), ("zoo-average", "average")):
        made = recipe(name)
        assert {k: params(m) for k, m in made.fundamental.items()} == {
            k: params(m) for k, m in specified.items()
        }
        assert made.combine.kind == kind and made.residual == {}
    assert recipe() == Pipeline() and list(Pipeline().residual) == [
        "conditional_logit",
        "lightgbm_softmax",
    ]


def test_what_is_scored_of_any_recipe_is_the_stage_that_answers(house, small):
    "Bankroll, slices, targets, wires and the report speak of the blend where nothing corrects."
    asked = ("--test-from", "2018-08-20", "--recipe", "light", "--recipes", small)
    found = ask("backtest", "--source", "simulated", *asked, home=house)
    run = ask("runs", "show", found["run"], home=house)
    assert run["settings"]["recipe"] == "light" and "top1" in run["figures"]
    assert found["answer"] == "blend" and "combined" not in found["boards"]
    told = {t["name"]: t["model"] for t in found["targets"]}
    assert told["top1"] == found["boards"]["blend"]["top1"]["value"]
    assert found["share_of_attainable"].keys() == {"price", "market", "fundamental", "blend"}
    assert found["over"]["market"]["value"] == pytest.approx(
        found["boards"]["blend"]["r2"]["value"] - found["boards"]["market"]["r2"]["value"]
    )
    page = Path(found["report"]).read_text(encoding="utf-8")
    assert "market and models, mixed" in page and "blend, ECE" in page
    for name in ("calibration.png", "ranks.png"):
        assert (Path(found["folder"]) / name).read_bytes()[1:4] == b"PNG"
    ranks, top = found["ranks"], found["importance"]["fundamental"]
    whole = np.sum(ranks["counts"]) + sum(ranks["unplaced"])
    assert whole == pytest.approx(found["starters"], abs=1) and 0 < len(top) <= 10


def test_a_stack_is_walked_and_its_answer_is_the_blend(starts, races, small):
    last = starts["date"].max()
    frame = build(starts)
    walked = lab.backtest(
        starts, last - timedelta(60), make=lambda: recipe("stack", small), frame=frame
    )
    found, p = lab.figures(walked, 1), walked.predictions
    assert found.answer == walked.answer == "blend" and "stage_2b" in found.boards
    assert found.delta_r2 == found.over[found.yardstick] != (0, 0, 0)
    alike = {k: found.boards[k]["r2"].value for k in ("blend", "fundamental")}
    assert alike["blend"] > alike["fundamental"] and found.bankroll.days == p["date"].n_unique()


def test_without_any_price_the_models_alone_answer_and_knowing_nothing_is_the_yardstick(starts):
    none = pl.lit(None, pl.Float64)
    bare = starts.with_columns(odds=none, final_odds=none)
    walked = lab.backtest(bare, starts["date"].max() - timedelta(60), make=quick)
    found = lab.figures(walked, 1)
    assert (found.answer, found.yardstick, list(found.over)) == (
        "fundamental",
        "uniform",
        ["uniform"],
    )
    assert found.delta_r2 == found.boards["fundamental"]["r2"] and found.left_out == {
        "no winner": 0,
        "not fully priced": 0,
    }
    assert not found.priced and found.slices is None and found.bankroll.bets == 0
    assert "no price is known" in pages.headline(found, "bare")
    assert "over market" not in pages.comparison(found)
    assert "Not a single bet" in pages.money(found) and pages.window(found)
    read = json.loads(json.dumps(found.to_json())) | dict(report="r.html")
    assert "ΔR² of fundamental over uniform" in boards.scoreboard(read)


def test_a_recipe_says_what_its_runs_stand_under(small):
    named = {name: read_recipe(name).family for name in recipes()}
    assert named == dict(best="best_v1", stack="stacked_meta_v1") | {
        "zoo-average": "baseline_simple_avg"
    }
    assert read_recipe("stack", small).family == "stack", "its own name, where none is given"
