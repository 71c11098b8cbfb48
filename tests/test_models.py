"""Models, market and pipeline from outside: the battery on another world, gradients, weights by hand."""

import json
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs

from racing_core.errors import BadInput
from racing_core.features.matrix import Matrix, build, matrix
from racing_core.folds import Races
from racing_core.market import likelihood_weights, market_utility, power_of
from racing_core.metrics import mcfadden_r2
from racing_core.models.base import (
    CHECKS,
    KINDS,
    Outcomes,
    check_model,
    check_save_load,
    load_model,
    relative,
    save_model,
)
from racing_core.models.boosted import CatBoostYetiRank, LightGBMClassifier, XGBoostPairwise
from racing_core.models.classic import (
    LogisticRegression,
    RandomForest,
    SemanticScorer,
    forest_arrays,
    walk,
)
from racing_core.models.linear import ConditionalLogit
from racing_core.models.neural import PlackettLuceNet, TabNet, exploded_loss, field_of
from racing_core.models.trees import LambdaRank, SoftmaxTrees
from racing_core.models.zoo import settings as zoo_settings
from racing_core.models.zoo import zoo
from racing_core.odds import softmax
from racing_core.pipeline import Pipeline, load_pipeline, save_pipeline
from racing_core.simulate import simulate

SCORES = (
    "grok4_horse_fitness_assessment",
    "grok4_jockey_form_score",
    "grok4_trainer_momentum",
    "signal",
    "noise",
)
MODELS = {
    "conditional_logit": lambda: ConditionalLogit(l2=20),
    "lightgbm_lambdarank": lambda: LambdaRank(trees=20),
    "lightgbm_softmax": lambda: SoftmaxTrees(trees=30, min_rows=20),
    "lightgbm_classifier": lambda: LightGBMClassifier(trees=20),
    "xgboost_pairwise": lambda: XGBoostPairwise(trees=25, learning_rate=0.1, depth=3),
    "catboost_yetirank": lambda: CatBoostYetiRank(
        trees=30, depth=4, categories=("first_time_gear", "gear_change")
    ),
    "logistic_regression": lambda: LogisticRegression(),
    "random_forest": lambda: RandomForest(trees=30, depth=5),
    "semantic_scorer": lambda: SemanticScorer(l2=20, reads=SCORES),
    "tabnet": lambda: TabNet(steps=2, width=8, batch=16, epochs=5),
    "plackett_luce_net": lambda: PlackettLuceNet(hidden=16, batch=16, learning_rate=0.01),
}


@pytest.fixture(scope="module")
def season():
    starts = simulate(races=900, seed=202).starts()
    late = starts.filter(starts["date"].rank("dense") > 60)
    frame = build(starts).filter(starts["date"].rank("dense") > 60)
    return matrix(frame), Outcomes.of(late), late


def test_every_kind_is_in_this_battery():
    assert {k for k, cls in KINDS.items() if cls.__module__.startswith("racing_core")} == set(
        MODELS
    )


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("kind", MODELS)
def test_battery(kind, check, season):
    check_model(MODELS[kind], *season[:2], checks=(check,))


def test_a_strangers_model_is_told_what_it_fails(season):
    @dataclass
    class Stranger(ConditionalLogit):
        kind = "stranger"

        def _contributions(self, Z):
            return np.ones_like(Z) * np.arange(len(Z))[:, None]

        def _save(self, folder):
            raise OSError("no room")

    try:
        with pytest.raises(BadInput, match="2 of 9") as refusal:
            check_model(lambda: Stranger(l2=20), *season[:2])
    finally:
        del KINDS["stranger"]
    said = str(refusal.value)
    assert "check_contributions" in said and "check_save_load (OSError: no room)" in said
    assert "check_offset" not in said and check_save_load.__doc__ in said
    with pytest.raises(BadInput, match="give both"):
        check_model(ConditionalLogit, season[0])


def test_the_battery_has_races_of_its_own():
    check_model(lambda: ConditionalLogit(l2=20))


def without_each(model, X):
    "How the score changes when a column becomes unknown, for a model that does not explain itself."
    blind = [
        Matrix(np.where(np.arange(len(X.columns)) == j, np.nan, X.values), X.columns, X.race)
        for j in range(len(X.columns))
    ]
    return np.stack([model.score(X) - model.score(b) for b in blind], axis=1)


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_finds_a_planted_signal_and_not_its_shuffled_twin(kind, season):
    X, y, _ = season
    rng = np.random.default_rng(0)
    told = Matrix(
        np.c_[y.win + rng.normal(0, 0.5, len(X)), rng.normal(size=len(X))],
        ("signal", "noise"),
        X.race,
    )
    model = MODELS[kind]().fit(told, y)
    moved = np.abs(model.contributions(told) if model.explains else without_each(model, told)).mean(
        axis=0
    )
    assert moved[0] > 3 * moved[1]
    assert mcfadden_r2(softmax(model.score(told), X.race), y.win, X.race) > 0.2


def test_specified_settings_of_lambdarank_are_its_defaults():
    model = LambdaRank()
    assert (model.trees, model.learning_rate, model.at) == (200, 0.05, 4)


def test_the_zoo_has_its_eight_models_with_the_specified_settings():
    animals = zoo()
    outside = {"conditional_logit", "lightgbm_softmax", "plackett_luce_net"}
    assert set(animals) == set(MODELS) - outside and len(animals) == 8
    facts = {
        "lightgbm_lambdarank": dict(trees=200, learning_rate=0.05, at=4),
        "lightgbm_classifier": dict(trees=100, depth=6, balanced=True),
        "xgboost_pairwise": dict(trees=150, learning_rate=0.03, depth=7),
        "catboost_yetirank": dict(trees=300),
        "tabnet": dict(steps=8, width=64),
        "logistic_regression": dict(C=0.5, oversample=False),
        "random_forest": dict(trees=200, depth=10, min_split=5),
    }
    for kind, wanted in facts.items():
        assert {k: getattr(animals[kind], k) for k in wanted} == wanted, kind
    for kind in facts:  # the file and the classes do not drift apart
        with_defaults = type(animals[kind])()
        said = {k: tuple(v) if isinstance(v, list) else v for k, v in zoo_settings()[kind].items()}
        assert {k: getattr(with_defaults, k) for k in said} == said, kind


def test_a_new_model_needs_its_class_and_a_table_of_the_zoo_alone(season, tmp_path, monkeypatch):
    X, y, _ = season

    @dataclass
    class Lucky(ConditionalLogit):
        kind = "lucky_logit"
        needs = {"zoo": ("no_such_package",)}

    monkeypatch.setitem(KINDS, "lucky_logit", Lucky)
    (tmp_path / "zoo.toml").write_text("[lucky_logit]\nl2 = 7")
    with pytest.raises(BadInput, match="no_such_package is not installed"):
        zoo(tmp_path / "zoo.toml")
    Lucky.needs = {}
    (lucky,) = zoo(tmp_path / "zoo.toml").values()
    assert isinstance(lucky, Lucky) and lucky.l2 == 7.0
    save_model(lucky.fit(X, y), tmp_path / "saved")
    assert np.array_equal(load_model(tmp_path / "saved").score(X), lucky.score(X))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[tabnet]\nstep = 8", "step"),
        ("[oracle]", "oracle"),
        ("[random_forest]\ntrees = 2.5", "trees"),
        ("[x", "TOML"),
    ],
)
def test_a_zoo_that_cannot_be_is_refused_by_name(text, named, tmp_path):
    (tmp_path / "zoo.toml").write_text(text)
    with pytest.raises(BadInput, match=named):
        zoo(tmp_path / "zoo.toml")


def test_a_model_whose_room_nobody_entered_can_be_loaded(season, tmp_path):
    X, y, _ = season
    save_model(LogisticRegression().fit(X, y), tmp_path)
    code = (
        "from pathlib import Path; from racing_core.models.base import load_model;"
        f" print(load_model(Path({str(tmp_path)!r})).kind)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "logistic_regression"


def test_what_a_model_cannot_do_is_refused(season):
    X, y, _ = season
    with pytest.raises(BadInput, match="cannot start from a given utility"):
        LogisticRegression().fit(X, y, offset=np.zeros(len(X)))
    assert {k for k, cls in KINDS.items() if not cls.explains} == {"tabnet"}
    assert {k for k, cls in KINDS.items() if not cls.takes_offset} == {
        "logistic_regression",
        "random_forest",
    }


@settings(max_examples=25, deadline=None)
@given(hs.integers(0, 10_000))
def test_exploded_loss_is_the_likelihood_of_a_chain_of_choices(seed):
    import torch

    rng = np.random.default_rng(seed)
    race = np.repeat(np.arange(3), rng.integers(3, 7, 3))
    place = np.concatenate([1.0 + rng.permutation(n) for n in np.bincount(race)])
    u, offset = rng.normal(size=(2, len(race)))
    field = field_of(Outcomes((place == 1).astype(float), place), race, offset, stages=3)
    parts = [torch.tensor(a) for a in (u[field.row], field.offset, field.target, field.open)]
    expected = 0.0
    for stage, (weight, power) in enumerate(
        zip((1, 0.6, 0.4), (1.0, 0.8, 0.5), strict=True), start=1
    ):
        left = place >= stage
        codes = np.unique(race[left], return_inverse=True)[1]
        expected -= (
            weight
            * np.log(softmax((u + power * offset)[left], codes)[place[left] == stage]).sum()
            / 3
        )
    assert float(exploded_loss(*parts, (1, 0.6, 0.4), (1.0, 0.8, 0.5))) == pytest.approx(
        expected, rel=1e-5
    )


def test_the_walk_through_a_forest_is_scikit_learns_and_its_parts_add_up(season):
    from sklearn.ensemble import RandomForestClassifier

    X, y, _ = season
    Z = relative(X)
    forest = RandomForestClassifier(10, max_depth=6, random_state=0).fit(Z, y.win > 0)
    nodes = forest_arrays(forest)
    p, parts = walk(nodes, Z, explain=True)
    assert np.allclose(p, forest.predict_proba(Z)[:, 1], atol=1e-12)
    assert np.allclose(p - parts.sum(axis=1), nodes["share"][nodes["root"]].mean(), atol=1e-12)


def test_a_saved_forest_holds_no_objects(season, tmp_path):
    X, y, _ = season
    save_model(RandomForest(trees=3).fit(X, y), tmp_path)
    with np.load(tmp_path / "forest.npz", allow_pickle=False) as file:
        assert all(file[name].dtype.kind in "fi" for name in file.files)


def test_collinear_columns_are_chosen_in_the_training_fold_alone(season):
    from racing_core.models.preprocess import MulticollinearityReducer

    X, y, _ = season
    Z, won, half = relative(X), y.win > 0, X.race < X.race.max() // 2
    reducer = MulticollinearityReducer().fit(Z[half], won[half])
    scrambled = np.where(half[:, None], Z, np.random.default_rng(0).normal(size=Z.shape))
    assert reducer.dropped_ == MulticollinearityReducer().fit(scrambled[half], won[half]).dropped_
    kept = reducer.transform(Z[half])
    R = np.corrcoef(kept.T)
    assert np.abs(np.triu(R, 1)).max() <= 0.75 and np.diag(np.linalg.inv(R)).max() < 5
    assert reducer.transform(Z[~half]).shape[1] == kept.shape[1] < X.values.shape[1]


def test_lambdarank_does_not_see_the_order_of_rows(season):
    """Rows stored in finishing order with no information must not be ranked: the leak of tied
    scores."""
    X, y, _ = season
    order = np.lexsort((np.nan_to_num(y.position, nan=99), X.race))
    constant = Matrix(np.zeros((len(X), 2)), ("a", "b"), X.race)
    model = LambdaRank(trees=10, min_rows=1).fit(constant, y.rows(order))
    assert np.ptp(model.score(constant)) == 0


def test_missing_values_say_nothing():
    X = Matrix(
        np.array([[1.0], [np.nan], [3.0], [np.nan], [np.nan]]), ("a",), np.array([0, 0, 0, 1, 1])
    )
    assert relative(X).ravel().tolist() == [-1.0, 0.0, 1.0, 0.0, 0.0]


def test_a_model_of_unknown_kind_or_missing_columns_is_refused(tmp_path, season):
    X, y, _ = season
    model = ConditionalLogit().fit(X, y)
    with pytest.raises(BadInput, match="columns are absent"):
        model.score(X.pick(X.columns[:5]))
    save_model(model, tmp_path)
    state = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(state | {"kind": "oracle"}))
    with pytest.raises(BadInput, match="oracle"):
        load_model(tmp_path)


@settings(max_examples=25, deadline=None)
@given(hs.floats(0.3, 3.0), hs.integers(0, 10_000))
def test_likelihood_weight_finds_the_scale_that_made_the_winners(scale, seed):
    rng, race = np.random.default_rng(seed), np.repeat(np.arange(3000), 6)
    u = rng.normal(size=18_000)
    drawn = scale * u + rng.gumbel(size=18_000)
    win = (drawn == np.maximum.reduceat(drawn, np.arange(0, 18_000, 6))[race]).astype(float)
    assert likelihood_weights(u[:, None], win, race)[0] == pytest.approx(scale, rel=0.15)


def test_power_of_a_market_that_was_flattened_by_hand(season):
    _, _, starts = season
    truth = starts.filter(pl.col("true_p") > 0)
    race = truth["race_id"].rle_id().to_numpy().astype(np.int64)
    flat = 1 / softmax(np.log(truth["true_p"].to_numpy()) / 1.5, race)
    drawn = np.log(truth["true_p"].to_numpy()) + np.random.default_rng(1).gumbel(size=len(truth))
    best = np.full(race[-1] + 1, -np.inf)
    np.maximum.at(best, race, drawn)
    power = power_of(np.maximum(flat, 1.001), (drawn == best[race]).astype(float), race)
    assert power == pytest.approx(1.5, abs=0.25)
    assert np.allclose(
        np.bincount(race, np.exp(market_utility(np.maximum(flat, 1.001), race, power))), 1
    )


def test_pipeline_without_prices_has_an_opinion_and_no_market(season, tmp_path):
    X, y, starts = season
    late = (starts["date"].rank("dense") > 0.6 * starts["date"].n_unique()).to_numpy()
    small = Pipeline({"conditional_logit": ConditionalLogit()}).fit(
        Races(X, y, np.full(len(X), np.nan), starts["date"].to_numpy()), ~late, late
    )
    assert set(small.predict(X)) == {"conditional_logit", "fundamental"} and small.residual == {}
    save_pipeline(small, tmp_path)
    assert np.array_equal(
        load_pipeline(tmp_path).predict(X)["fundamental"], small.predict(X)["fundamental"]
    )


def test_pipeline_answers_per_runner_whatever_the_order_of_runners(season):
    X, y, starts = season
    late = (starts["date"].rank("dense") > 0.6 * starts["date"].n_unique()).to_numpy()
    odds = starts["odds"].to_numpy()
    models = (
        {"conditional_logit": ConditionalLogit()},
        {"conditional_logit": ConditionalLogit(l2=5000)},
    )
    races = Races(X, y, odds, starts["date"].to_numpy())
    pipeline = Pipeline(*models).fit(races, ~late, late)
    order = np.lexsort((np.random.default_rng(0).random(len(X)), X.race))
    mixed = Matrix(X.values[order], X.columns, X.race)
    for name, p in pipeline.predict(mixed, odds[order]).items():
        assert np.allclose(p, pipeline.predict(X, odds)[name][order], atol=1e-9), name
        assert np.allclose(np.bincount(X.race, p), 1)
