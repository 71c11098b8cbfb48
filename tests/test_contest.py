"""The contest from outside: the command, its report, resumed work, the specified stack, folds that look ahead."""

import json
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from test_cli import answer, racing

from racing_core import oof, stacking
from racing_core.errors import BadInput
from racing_core.features.matrix import Matrix, build, matrix
from racing_core.metrics import mcfadden_r2
from racing_core.models.base import Outcomes
from racing_core.models.linear import ConditionalLogit
from racing_core.models.plackett import exploded, stages
from racing_core.models.zoo import zoo
from racing_core.odds import softmax
from racing_core.oof import fit_once, folds_of, out_of_fold
from racing_core.simulate import simulate


@pytest.fixture(scope="module")
def world():
    starts = simulate(races=900, seed=88).starts()
    return matrix(build(starts)), Outcomes.of(starts), starts["date"].to_numpy()


def test_the_specified_stack_has_the_specified_settings():
    spec = {f.name: f.default for f in fields(stacking.TwoStage)}
    assert (
        spec["top"],
        spec["C"],
        spec["trees"],
        spec["learning_rate"],
        spec["patience"],
        spec["clip"],
    ) == (10, 1.0, 100, 0.01, 20, 0.99)
    assert len(zoo()) + spec["top"] == 18, "meta-features"


def test_out_of_fold_scores_know_nothing_of_their_own_race_or_later_ones(world):
    X, y, dates = world
    signal = Matrix(
        np.column_stack([X.values[:, :5], np.zeros(len(X))]), (*X.columns[:5], "shifting"), X.race
    )
    cut = dates[len(dates) // 2]
    signal.values[:, 5] = np.where(
        dates > cut, y.win, 0.0
    )  # a column that gives the winner away from some day on
    found = out_of_fold(
        {"m": lambda: ConditionalLogit(l2=1)}, signal, y, folds_of(dates, X.race, 5)
    )
    first = min(dates[s].min() for t, s in folds_of(dates, X.race, 5) if dates[s].max() > cut)
    rows = found.known & (dates < first)
    blind = mcfadden_r2(
        softmax(found.values[rows, 0], signal.rows(rows).race), y.win[rows], signal.rows(rows).race
    )
    assert blind < 0.3, "before the column spoke nobody could have learnt from it"
    ahead = out_of_fold(
        {"m": lambda: ConditionalLogit(l2=1)}, signal, y, folds_of(dates, X.race, 5, "grouped")
    )
    assert ahead.known.all() and not found.known.all()


def test_a_fit_that_was_cut_short_is_not_kept(world, tmp_path, monkeypatch):
    X, y, dates = world
    train, score = folds_of(dates, X.race, 3)[0]
    monkeypatch.setattr(
        ConditionalLogit, "_score", lambda self, Z: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        fit_once(ConditionalLogit(), X, y, train, score, tmp_path)
    assert not list(tmp_path.rglob("*.npz"))
    monkeypatch.undo()
    assert (
        not fit_once(ConditionalLogit(), X, y, train, score, tmp_path).kept
        and fit_once(ConditionalLogit(), X, y, train, score, tmp_path).kept
    )


def test_a_kept_fit_depends_on_the_outcomes_too(world, tmp_path):
    X, y, dates = world
    train, score = folds_of(dates, X.race, 3)[0]
    fit_once(ConditionalLogit(), X, y, train, score, tmp_path)
    restated = Outcomes(
        y.win, np.where(np.arange(len(X)) == np.flatnonzero(train)[3], 9.0, y.position)
    )
    assert not fit_once(ConditionalLogit(), X, restated, train, score, tmp_path).kept


def test_the_rows_of_a_fold_are_read_once_for_all_models(world, tmp_path, monkeypatch):
    X, y, dates = world
    folds, read = folds_of(dates, X.race, 3), []
    digest = oof.fold_digest
    monkeypatch.setattr(oof, "fold_digest", lambda *of: read.append(1) or digest(*of))
    models = {f"l2={l2}": (lambda l2=l2: ConditionalLogit(l2=l2)) for l2 in (10, 1000)}
    first = out_of_fold(models, X, y, folds, tmp_path)
    assert len(read) == len(folds) and len(list(tmp_path.rglob("*.npz"))) == 6
    again = out_of_fold(models, X, y, folds, tmp_path)
    assert np.array_equal(first.values, again.values, equal_nan=True)


def test_the_exploded_likelihood_of_a_race_by_hand():
    y = Outcomes(np.array([0.0, 1, 0]), np.array([2.0, 1, 3]))
    u = np.log(np.array([0.3, 0.5, 0.2]))
    loss, slope, _ = exploded(u, stages(y, np.zeros(3, int), (1.0, 0.5)))
    assert loss == pytest.approx(-np.log(0.5) - 0.5 * np.log(0.3 / 0.5))
    assert slope == pytest.approx(np.array([0.3 + 0.5 * (0.6 - 1), 0.5 - 1, 0.2 + 0.5 * 0.4]))


def test_unknown_models_are_refused_by_name():
    with pytest.raises(BadInput, match="lightgbm_lambdamart"):
        zoo(only=["lightgbm_lambdamart"])


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    home = tmp_path_factory.mktemp("contest")
    made = answer("simulate", "--races", 1500, home=home)
    assert made["races"] == 1500
    asked = (
        "contest",
        "--source",
        "simulated",
        "--test-from",
        "2019-05-01",
        "--only",
        "lightgbm_lambdarank",
        "--only",
        "logistic_regression",
    )
    return home, asked, answer(*asked, home=home, timeout=600)


def test_the_command_compares_and_reports(ran):
    _, _, found = ran
    names = {c["name"] for c in found["contestants"]}
    assert {
        "market",
        "lightgbm_lambdarank",
        "logistic_regression",
        "single_best",
        "average",
        "stage_2a",
        "stage_2b",
        "weighted_all",
        "pipeline",
    } <= names
    page = Path(found["report"]).read_text(encoding="utf-8")
    assert (
        "stack, stage 2B: as specified" in page
        and "walk forward" in page
        and "look number 1" in page
    )
    assert (
        found["test_looks"] == 1
        and set(found["tripped"]) <= {"delta_r2"}
        and len(found["told"][0]["features"]) == 10
    )


def test_a_second_run_takes_kept_fits_and_counts_the_look(ran):
    home, asked, first = ran
    again = answer(*asked, home=home, timeout=600)
    assert again["test_looks"] == 2 and again["contestants"] == first["contestants"]
    assert json.dumps(again["told"]) == json.dumps(first["told"])
    text = racing(*asked, "--grouped", home=home, timeout=600).stdout
    assert "trains on the future" in text and "look 3" in text


def test_the_test_window_of_the_command_is_the_last_part(ran):
    _, _, found = ran
    assert (
        found["test_from"] == "2019-05-01"
        and found["races"] > 50
        and timedelta(0) < timedelta(seconds=found["seconds"])
    )
