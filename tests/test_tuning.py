"""Tuning from outside: what a trial sees, studies that are killed, shared and gone on with, and the chosen recipe."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from contextlib import suppress
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FixedTrial
from test_cli import answer

from racing_core.config import home as home_of
from racing_core.data.ingest import ingest_world
from racing_core.errors import BadInput, RacingError
from racing_core.lab import storage as keeping
from racing_core.lab import tracking
from racing_core.lab.search import Wish, chosen, order_of, together
from racing_core.lab.space import (
    Range,
    Terms,
    built,
    draw,
    read_space,
    recipe_of,
    searched,
    start_of,
    table_of,
    to_toml,
    within,
)
from racing_core.lab.studies import Shift, found_by, open_study, work
from racing_core.models.base import season
from racing_core.models.boosted import LightGBMClassifier
from racing_core.models.plackett import exploded, stages
from racing_core.models.trees import SoftmaxTrees
from racing_core.pipeline import recipe
from racing_core.simulate import simulate

UNTIL = date(2018, 5, 1)
SPACE = """
[study]
folds = 2
startup = 3
trials = 8
screen = 0
[fundamental.conditional_logit]
l2 = {low = 20.0, high = 2000.0, log = true}
[residual.conditional_logit]
l2 = {low = 200.0, high = 20000.0, log = true}
"""


@pytest.fixture(scope="module")
def world():
    return simulate(races=450, seed=66, inefficiency=0.5)


@pytest.fixture(scope="module")
def place(world, tmp_path_factory):
    "A home with a small world, a recipe of two ridges and a space for it."
    folder = tmp_path_factory.mktemp("tuning")
    ingest_world(world, home_of(folder))
    two = "[two]\nmodels = ['conditional_logit']\nresidual = ['conditional_logit']\n"
    (folder / "recipes.toml").write_text(two)
    (folder / "space.toml").write_text(SPACE)
    return folder


def wish(place: Path, **more) -> Wish:
    files = dict(recipes=place / "recipes.toml", space=place / "space.toml")
    return Wish("simulated", "two", **files | dict(until=UNTIL) | more)


@pytest.fixture(scope="module")
def order(place):
    return order_of(home_of(place), wish(place))


def asked(order, **terms):
    "The order with other terms."
    return replace(order, space=replace(order.space, study=replace(order.space.study, **terms)))


def hour() -> float:
    return time.time() + 3600


# What a model is given


@pytest.fixture(scope="module")
def races():
    return season(races=500)


def _leaves(model, X) -> np.ndarray:
    "The leaf of each row in the only tree."
    return model.booster.predict(model._view(X.pick(model.columns)), pred_leaf=True).ravel()


def _newton(slope, bend, leaf, model) -> np.ndarray:
    "What a leaf of the first tree is worth, by its gradient and Hessian."
    top, bottom = np.bincount(leaf, slope), np.bincount(leaf, bend)
    return -model.learning_rate * (top / (bottom + model.l2))[leaf]


@pytest.mark.parametrize("weights", [(1.0,), (2.0,), (1.0, 0.6, 0.4)])
@pytest.mark.parametrize("told", [False, True], ids=["from nothing", "from an init score"])
def test_weights_and_init_score_reach_the_gradient_of_the_custom_objective(races, weights, told):
    X, y = races
    offset = np.random.default_rng(0).normal(0, 1.5, len(X)) if told else np.zeros(len(X))
    model = SoftmaxTrees(trees=1, leaves=5, l2=7.0, column_share=1.0, weights=weights, threads=1)
    model.fit(X, y, offset)
    _, slope, bend = exploded(np.zeros(len(X)), stages(y, X.race, weights, offset))
    leaf = _leaves(model, X)
    assert leaf.max() > 0
    assert np.allclose(model.score(X), _newton(slope, np.maximum(bend, 1e-6), leaf, model))


def test_class_weights_and_init_score_reach_the_classifier(races):
    X, y = races
    offset = np.random.default_rng(0).normal(0, 1.5, len(X))
    model = LightGBMClassifier(trees=1, leaves=5, l2=7.0, threads=1).fit(X, y, offset)
    won = y.win > 0
    weight = np.where(won, (~won).sum() / won.sum(), 1.0)
    chance = np.exp(offset) / np.bincount(X.race, np.exp(offset))[X.race]
    odds = chance / (1 - chance) * (~won).sum() / won.sum()  # balanced, as the classes are
    p, leaf = odds / (1 + odds), _leaves(model, X)
    step = _newton(weight * (p - won), weight * p * (1 - p), leaf, model)
    assert leaf.max() > 0 and np.allclose(model.score(X), step, atol=1e-5)


# What a trial sees


def test_a_study_is_the_same_whatever_comes_after_its_last_day(place, world, order, tmp_path):
    later = world.tables["races"].filter(pl.col("date") >= UNTIL)["race_id"].implode()
    poison = {
        "results": {"position": 99 - pl.col("position")},
        "prices": {"odds": pl.lit(1.01)},
        "runners": {"weight_kg": pl.lit(77.7)},
    }
    tables = dict(world.tables)
    for name, columns in poison.items():
        known = {k: v for k, v in columns.items() if k in tables[name].columns}
        assert known, name
        hit = pl.col("race_id").is_in(later)
        spoilt = [pl.when(hit).then(v).otherwise(pl.col(k)).alias(k) for k, v in known.items()]
        tables[name] = tables[name].with_columns(spoilt).cast(dict(tables[name].schema))
    ingest_world(replace(world, tables=tables), other := home_of(tmp_path))
    spoilt = order_of(other, wish(place))
    assert spoilt.key == order.key
    assert np.load(spoilt.races)["days"].max() < (UNTIL - date(1970, 1, 1)).days
    for name in ("store", "bundles"):  # a worker has the file of its years and no store
        if (tmp_path / name).exists():
            (tmp_path / name).rename(tmp_path / f"no {name}")
    spoilt = replace(
        spoilt, cache=order.cache
    )  # kept by rows; a time, an objective, is measured once
    both = [replace(asked(o, trials=4), study="poison") for o in (order, spoilt)]
    for one in both:
        work(one, Shift(hour()))
    clean, dirty = (found_by(o.storage, o.study) for o in both)
    assert [t.settings for t in clean.tried] == [t.settings for t in dirty.tried]
    assert [t.score.blocks for t in clean.tried] == [t.score.blocks for t in dirty.tried]
    assert clean.untuned.loss == dirty.untuned.loss


def test_the_last_year_is_left_alone_and_nobody_may_ask_for_all(place, world):
    days = world.tables["races"]["date"]
    free = order_of(home_of(place), replace(wish(place), until=None, study="free"))
    left = days.max() - date.fromisoformat(free.until)
    assert timedelta(0) < left <= timedelta(365)
    with pytest.raises(BadInput, match="test window is left"):
        order_of(home_of(place), wish(place, until=days.max() + timedelta(1)))


# Studies that are killed, shared and gone on with


def _die(order, trial: int) -> None:
    "Work, and be killed in the middle of a trial."

    def tell(step: str, done: float) -> None:
        if step.startswith(f"trial {trial}:") and done > 0.5:
            os.kill(os.getpid(), signal.SIGKILL)

    work(order, Shift(hour(), tell=tell))


def _states(study) -> dict[str, int]:
    names = [t.state.name for t in study.get_trials(deepcopy=False)]
    return {name: names.count(name) for name in set(names)}


def test_a_search_that_was_killed_goes_on_to_as_many_trials_as_were_asked_for(order):
    dead = multiprocessing.get_context("spawn").Process(
        target=_die, args=(one := replace(order, study="killed"), 3)
    )
    dead.start()
    dead.join()
    assert dead.exitcode == -signal.SIGKILL
    with Path(one.storage).open("a") as journal:
        journal.write('{"op_code":6,"worker')  # and its last line was cut
    assert _states(open_study(one)) == dict(COMPLETE=3, RUNNING=1)
    work(one, Shift(hour()))
    assert _states(open_study(one)) == dict(COMPLETE=8, FAIL=1)
    whole = replace(one, study="whole")
    work(whole, Shift(hour()))
    tried = [[t.settings for t in found_by(o.storage, o.study).tried] for o in (one, whole)]
    assert tried[0] == tried[1], "killed or not, the search is the same"
    work(one, Shift(hour()))
    assert _states(open_study(one))["COMPLETE"] == 8, "to eight, never eight more"


def _abreast(order, worker: int, folder: Path) -> None:
    "Work from when both are ready."
    order.bench()
    (folder / f"ready-{worker}").touch()
    for _ in range(6000):
        if len(list(folder.glob("ready-*"))) == 2:
            break
        time.sleep(0.01)
    work(order, Shift(hour(), worker))


@pytest.mark.parametrize("where", ["journal", "postgresql"])
def test_two_processes_share_one_study(order, where, tmp_path, request):
    storage = request.getfixturevalue("postgres_url") if where == "postgresql" else order.storage
    one = asked(replace(order, study=f"shared-{where}", storage=storage), trials=12, screen=4)
    context = multiprocessing.get_context("spawn")
    crew = [context.Process(target=_abreast, args=(one, k + 1, tmp_path)) for k in range(2)]
    for p in crew:
        p.start()
    for p in crew:
        p.join()
    assert [p.exitcode for p in crew] == [0, 0]
    found, study = found_by(storage, one.study), open_study(one)
    assert len(found.tried) == 8 and len(found.screened) == 4
    assert len({json.dumps(t.settings) for t in found.tried}) == 8
    workers = {t.user_attrs["worker"].split()[1] for t in study.get_trials(deepcopy=False)}
    assert len(workers) == 2
    assert work(one, Shift(hour())) == "" and len(found_by(storage, one.study).tried) == 8


def test_a_search_with_workers_ends_with_them_and_tells_why_they_fail(order):
    heard = []
    one = asked(replace(order, study="crew"), trials=6)
    together(one, 2, hour(), lambda *told: heard.append(told))
    assert len(found_by(one.storage, one.study).tried) == 6 and heard[-1][0] == "study"
    with pytest.raises(RacingError, match="the development years are gone"):
        together(replace(one, races=Path("nowhere.npz"), study="lost"), 2, hour(), print)


def test_another_space_data_or_code_is_refused_by_name(order):
    work(one := asked(replace(order, study="named"), trials=2), Shift(hour()))
    wide = {"residual.conditional_logit": dict(l2=Range(1.0, 2.0))}
    others = {
        "space": replace(one, space=replace(one.space, ranges=wide)),
        "recipe": replace(one, table=one.table | dict(refit=False)),
        "data": replace(one, data="other"),
        "code": replace(one, code="other"),
        "objective": replace(one, objective="ndcg4"),
    }
    for name, other in others.items():
        with pytest.raises(BadInput, match=f"hangs on something else: got '{name} "):
            work(other, Shift(hour()))
    assert work(asked(one, trials=3), Shift(hour())) == ""  # more trials are the same study


def test_a_database_that_is_away_is_refused_without_its_password():
    with pytest.raises(BadInput, match="no studies there") as e:
        keeping.open_storage("postgresql://me:secret@127.0.0.1:1/studies")
    assert "secret" not in str(e.value)


# What is searched, and when it ends


def test_the_search_stops_when_the_best_gains_less_than_it_varies_by(order):
    flat = {"residual.conditional_logit": dict(l2=Range(choices=(2000.0, 2000.1)))}
    one = replace(asked(order, trials=60, patience=4, startup=2), study="flat")
    why = work(replace(one, space=replace(one.space, ranges=flat)), Shift(hour()))
    assert "in 4 trials" in why
    assert len(found_by(one.storage, "flat").tried) == 6


@pytest.mark.parametrize("pruner", ["hyperband", "wilcoxon"])
def test_the_screen_stops_what_is_hopeless(order, pruner):
    bad = {"fundamental.conditional_logit": dict(l2=Range(choices=(200.0, 1e9)))}
    one = replace(asked(order, trials=21, screen=20, startup=20), study=pruner, pruner=pruner)
    one = replace(one, space=replace(one.space, ranges=bad, share=None), only="fundamental")
    work(one, Shift(hour()))
    screened = found_by(one.storage, pruner).screened
    stopped = {t.settings["fundamental.conditional_logit.l2"] for t in screened if not t.score}
    assert len(screened) == 20 and 1e9 in stopped
    if pruner == "wilcoxon":
        assert stopped == {1e9}


def test_a_point_that_cannot_be_fitted_is_closed_with_its_complaint(order):
    table = dict(models=dict(lightgbm_softmax=dict(trees=5, min_rows=20, threads=1)), residual={})
    ranges = {"fundamental.lightgbm_softmax": dict(leaves=Range(choices=(8, 1)))}
    one = replace(asked(order, trials=5), study="broken", table=table)
    work(replace(one, space=replace(one.space, ranges=ranges)), Shift(hour()))
    tried = found_by(one.storage, "broken").tried
    assert len(tried) == 5
    assert {
        bool(t.complaint) for t in tried if t.settings["fundamental.lightgbm_softmax.leaves"] == 1
    } == {True}
    assert found_by(one.storage, "broken").best.settings["fundamental.lightgbm_softmax.leaves"] == 8


def test_the_shipped_space_holds_the_specified_settings_and_reaches_every_recipe():
    space = read_space()
    assert space.study == Terms() and space.share == (0.0, 0.5)
    for name in ("best", "stack", "zoo-average"):
        table = table_of(name)
        parts = searched(space, table, ("combined", "blend", "fundamental"))
        assert {p for p in parts if p != "ensemble"} == {
            *(f"fundamental.{m}" for m in table["models"]),
            *(f"residual.{m}" for m in table["residual"]),
        }
        start = start_of(table, parts)
        same = recipe_of(built(table, draw(FixedTrial(start), parts), space.share))
        assert same.fundamental == recipe(name).fundamental
        assert same.residual == recipe(name).residual


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9), st.floats(0, 0.1), st.floats(0.5, 1))
def test_shares_keep_their_bounds_and_their_sum(drawn, low, high):
    found = within(np.array(drawn), low, high)
    assert abs(found.sum() - 1) < 1e-9 and found.min() >= low and found.max() <= high
    assert (np.diff(found[np.argsort(drawn)]) > -1e-9).all(), "who has drawn more has no less"


PLAIN = st.one_of(
    st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.text()
)
TABLES = st.recursive(
    st.dictionaries(st.text(), st.one_of(PLAIN, st.lists(PLAIN, max_size=4)), max_size=4),
    lambda inner: st.dictionaries(st.text(), st.one_of(PLAIN, inner), max_size=4),
    max_leaves=8,
)


@given(TABLES)
def test_a_table_comes_back_from_its_toml(tables):
    assert tomllib.loads(to_toml(tables)) == tables


# The command


def test_the_command_searches_reports_goes_on_and_chooses(place, tmp_path):
    files = ("--recipes", str(place / "recipes.toml"), "--space", str(place / "space.toml"))
    at = ("--source", "simulated", "--recipe", "two", *files, "--until", str(UNTIL))
    at += ("--study", "mine", "--screen", "2")
    found = answer("tune", *at, "--trials", "5", home=place)
    assert len(found["tried"]) == 3 and len(found["screened"]) == 2
    page = Path(found["report"]).read_text(encoding="utf-8")
    assert "hypervolume" in page and "winner" in page and found["verdict"].split(":")[0] in page
    home = home_of(place)
    looks = [e for e in tracking.looks(home, "simulated") if e.run == found["run"]]
    assert [(e.purpose, e.last) for e in looks] == [("tuning", str(UNTIL - timedelta(1)))]
    children = [r for r in tracking.runs(home) if r.parent == found["run"]]
    assert children and all(r.kind == "trial" for r in children)
    (other := tmp_path / "space.toml").write_text(SPACE.replace("20.0", "30.0"))
    wrong = [str(other) if a.endswith("space.toml") else a for a in at]
    refused = answer("tune", *wrong, home=place, code=2)
    assert "hangs on something else" in refused["what"] and "space" in refused["got"]
    more = answer("tune", *at, "--trials", "6", "--no-report", home=place)
    assert more["tried"][:3] == found["tried"] and len(more["tried"]) == 4
    assert answer("tune", "show", "mine", home=place)["tried"] == more["tried"]
    number = more["tried"][-1]["number"]
    out = tmp_path / "tuned.toml"
    asked_for = ("--trial", str(number), "--out", str(out))
    made = answer("tune", "choose", "mine", *asked_for, home=place)
    one = recipe(made["recipe"], out)
    key = "fundamental.conditional_logit.l2"
    assert one.fundamental["conditional_logit"].l2 == made["settings"][key]
    assert (
        "weighted_optuna_v1" in out.read_text()
        and chosen(str(place / "studies/journal.log"), "mine", number)[1]
    )


def test_the_dashboard_shows_the_studies(place, order):
    work(asked(replace(order, study="seen"), trials=1), Shift(hour()))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = "import sys; from racing_core.app.main import main; sys.exit(main())"
    asked_for = ["tune", "dashboard", "--port", str(port), "--home", str(place)]
    server = subprocess.Popen(
        [sys.executable, "-c", command, *asked_for], stdout=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            with suppress(URLError, ConnectionError):
                told = json.loads(urlopen(f"http://127.0.0.1:{port}/api/studies").read())
                break
            assert server.poll() is None
            time.sleep(0.1)
        assert "seen" in {s["study_name"] for s in told["study_summaries"]}
    finally:
        server.terminate()
        server.wait()
