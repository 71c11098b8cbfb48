"""What code made a thing, across rooms: features that come later disturb nobody, changed ones are named."""

import os
import subprocess
import sys
from datetime import UTC, datetime
from unittest.mock import patch

import numpy as np
import polars as pl
import pytest

from racing_core import identity
from racing_core.app import mainjob
from racing_core.betting import exotics
from racing_core.errors import BadInput
from racing_core.features import outcomes
from racing_core.features.matrix import History, build, compute, identities, names
from racing_core.features.registry import _KNOWN, Timeline, feature, memory, needed
from racing_core.folds import Races
from racing_core.models.base import model_class
from racing_core.models.linear import ConditionalLogit
from racing_core.models.zoo import settings
from racing_core.oof import fit_once
from racing_core.pipeline import Pipeline
from racing_core.release import bundle
from racing_core.serving.predictor import Predictor, sample_card
from racing_core.simulate import simulate


@pytest.fixture(scope="module")
def world() -> pl.DataFrame:
    return simulate(races=600, seed=12).starts()


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
    "A bundle on the disk, trained on every day but the last."
    known = world.filter(pl.col("date") < world["date"].max())
    frame, history = build(known), History.learn(known)
    races = Races.of(known, frame)
    late = races.dates >= np.quantile(races.dates.astype("int64"), 0.8).astype("datetime64[D]")
    models = {"conditional_logit": ConditionalLogit(l2=300)}
    residual = {"conditional_logit": ConditionalLogit(l2=5000)}
    pipeline = fit(Pipeline(models, residual), races, ~late, late)
    folder = tmp_path_factory.mktemp("bundle") / "made"
    days = dict(trained_from=known["date"].min(), trained_until=known["date"].max())
    origin = bundle.Origin("made", "simulated", now=datetime(2026, 1, 1, tzinfo=UTC), **days)
    bundle.write(folder, pipeline, history, origin)
    return folder


def fit(pipeline: Pipeline, races: Races, train: np.ndarray, tune: np.ndarray) -> Pipeline:
    return pipeline.fit(races, train, tune)


@pytest.fixture
def card(world):
    return sample_card(world, world["race_id"][-1])


@pytest.fixture(scope="module")
def before(made, world):
    "The answer on the day that the bundle was made."
    return Predictor(bundle.read(made)).predict(sample_card(world, world["race_id"][-1]))


def test_features_that_come_later_disturb_no_bundle(made, card, before):
    with patch.dict(_KNOWN):
        stable = Timeline("horse in a stall", ("horse_id", "draw"))

        @memory(stable)
        def stall_runs():
            "Starts from this stall."
            return pl.lit(1.0).cum_sum()

        @feature("starts")
        def runs_from_the_stall():
            "Starts from this stall so far."
            return pl.col("stall_runs")

        @feature("starts", after=_KNOWN[names()[0]].after or stable)
        def another_record():
            "A new column of an old timeline."
            return pl.lit(2.0).cum_sum()

        assert "runs_from_the_stall" in names()
        assert Predictor(bundle.read(made)).predict(card) == before


def altered(name: str):
    "The feature's own function with another formula."
    old = _KNOWN[name].fn

    def other():
        "Another formula."
        return old() * 1.5

    other.__name__, other.__module__ = name, old.__module__
    return other


@pytest.mark.parametrize("kind", ["on the field", "along a timeline"])
def test_a_changed_formula_is_refused_by_its_name(made, kind):
    along = kind == "along a timeline"
    name = next(n for n in names() if bool(_KNOWN[n].after) is along)
    known = _KNOWN[name]
    with patch.dict(_KNOWN):
        feature(known.unit, after=known.after, family=known.family)(altered(name))
        with pytest.raises(BadInput, match=rf"made by other code.*\b{name}\b.*racing train"):
            bundle.read(made)
    bundle.read(made)


def test_what_features_are_made_from_is_refused_by_its_name(made):
    with (
        patch.object(outcomes, "_share", lambda rank: rank / pl.col("n_starters")),
        pytest.raises(BadInput, match="draw_share"),
    ):
        bundle.read(made)


def test_a_feature_that_is_gone_is_refused_by_its_name(made):
    with patch.dict(_KNOWN):
        del _KNOWN["win_rate_L10"]
        with pytest.raises(BadInput, match=r"win_rate_L10 \(no longer made\)"):
            bundle.read(made)


def test_a_model_that_scores_otherwise_is_refused_by_its_name(made):
    with (
        patch.object(ConditionalLogit, "_score", lambda self, Z: 2 * Z @ self.beta),
        pytest.raises(BadInput, match="conditional_logit"),
    ):
        bundle.read(made)


def test_a_model_that_is_trained_otherwise_still_answers(made, card, before):
    with patch.object(ConditionalLogit, "_fit", lambda self, *rest: None):
        assert Predictor(bundle.read(made)).predict(card) == before


def test_a_missing_timeline_is_named(made, world):
    found = bundle.read(made)
    lean = History({k: v for k, v in found.history.tables.items() if k != "jockey"})
    rows = world.filter(pl.col("race_id") == world["race_id"][-1])
    with pytest.raises(BadInput, match="timeline 'jockey'.*racing train"):
        compute(rows, lean, found.pipeline.columns)
    few = [n for n in names() if not {"jockey"} & {f.after.name for f in needed([n]) if f.after}]
    assert compute(rows, lean, few).equals(compute(rows, found.history, few))


def test_a_bundle_tells_of_other_libraries(made, monkeypatch):
    monkeypatch.setattr(bundle, "installed", lambda name: "0.0.1")
    with pytest.warns(UserWarning, match=r"polars .*, here 0\.0\.1"):
        bundle.read(made)


def test_identities_are_the_same_in_another_process():
    code = (
        "from racing_core.features.matrix import identities;"
        "from racing_core import identity;"
        "from racing_core.models.base import model_class;"
        "from racing_core.models.zoo import settings;"
        "print(identities(), [identity.of(model_class(k)) for k in settings()])"
    )
    command = [sys.executable, "-c", code]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert other.strip() == f"{identities()} {[identity.of(m) for m in zoo().values()]}"


def zoo() -> dict[str, type]:
    return {kind: model_class(kind) for kind in settings()}


def test_neither_hashing_nor_the_place_of_a_checkout_shows():
    code = (
        "from racing_core import identity\n"
        "__file__ = {!r}\n"
        "def f(x): return x in {{'a', 'b', 'c', ('d', 'e')}}, __file__\n"
        "print(identity.of(f))"
    )
    places = [("0", "/here"), ("1", "/here"), ("2", "/there")]
    told = {
        subprocess.run(
            [sys.executable, "-c", code.format(place)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, place in places
    }
    assert len(told) == 1


def test_models_differ_and_none_hangs_on_another():
    own = {kind: identity.of(model) for kind, model in zoo().items()}
    assert len(set(own.values())) == len(own)
    with patch.object(ConditionalLogit, "_score", lambda self, Z: Z):
        touched = {kind for kind, model in zoo().items() if identity.of(model) != own[kind]}
    assert touched == {k for k, m in zoo().items() if issubclass(m, ConditionalLogit)}


def test_every_feature_has_an_identity_of_its_own():
    known = identities()
    assert set(names()) <= set(known) and all(len(v) == 16 for v in known.values())
    assert known == identities(names())


def edited(self, Z, *rest):
    "A fit that learns nothing."
    self.scale, self.beta = np.ones(Z.shape[1]), np.zeros(Z.shape[1])


def test_kept_fits_hang_on_the_code_of_their_model(world, tmp_path):
    races = Races.of(world, build(world))
    rows = races.dates < np.datetime64("2018-06-01")

    def fitted() -> bool:
        return not fit_once(ConditionalLogit(), races.X, races.y, rows, ~rows, tmp_path).kept

    assert [fitted(), fitted()] == [True, False]
    with patch.object(ConditionalLogit, "_fit", edited):
        assert [fitted(), fitted()] == [True, False]
    assert not fitted(), "the fit of the old code is still there"


def test_a_step_of_the_main_job_is_redone_for_its_own_code_alone():
    before = mainjob.code_of_steps()

    def redone() -> set[str]:
        return {step for step, code in mainjob.code_of_steps().items() if code != before[step]}

    with patch.object(mainjob, "table", lambda prediction: "another look"):
        assert redone() == set()
    with patch.object(ConditionalLogit, "_fit", edited):
        assert redone() == {"backtest", "bundle"}
    name = names()[0]
    with patch.dict(_KNOWN):
        known = _KNOWN[name]
        feature(known.unit, after=known.after, family=known.family)(altered(name))
        assert redone() == {"features", "backtest", "bundle"}
    assert redone() == set()


def test_another_arithmetic_of_places_is_refused_by_its_name(made):
    with (
        patch.object(exotics, "_stages", lambda powers, P, k: [P] * k),
        pytest.raises(BadInput, match="places"),
    ):
        bundle.read(made)
