"""Runs from outside: an account that says what made it, a home that can be moved, and two processes at once."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from unittest.mock import patch

import httpx
import polars as pl
import pytest
from test_together import together

from racing_core.config import Home, home
from racing_core.errors import BadInput
from racing_core.features.registry import _KNOWN, feature
from racing_core.lab import tracking

FIGURES = dict(delta_r2=dict(value=0.001, low=-0.002, high=0.004))


def logged(place: Home, **settings) -> tracking.Run:
    "A small finished run with a page, a figure and its interval."
    with tracking.tracked(place, "backtest", "demo", settings, window="2023") as run:
        (run.folder / "page.html").write_text("<h1>kept</h1>", encoding="utf-8")
        tracking.note(run.folder, figures=FIGURES, looks=1)
    return tracking.open_run(run.folder)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    "A home with one run in it."
    place = home(tmp_path_factory.mktemp("first") / "home", env={})
    return place, logged(place, seed=1)


def rows(place: Home, query: str) -> list[tuple]:
    with sqlite3.connect(place.runs / "mlflow.db") as db:
        return db.execute(query).fetchall()


def test_an_account_says_what_made_it(first):
    place, run = first
    assert run.state == "finished" and run.ended >= run.started and run.looks == 1
    assert run.versions["polars"] and len(run.features) > 100 and run.settings == dict(seed=1)
    told = json.loads((run.folder / "run.json").read_text())
    assert told["figures"] == FIGURES and str(place.root) not in json.dumps(told)
    params = dict(rows(place, "select key, value from params"))
    assert params["seed"] == "1" and params["features_hash"] == run.features_hash
    assert params["commit"] == (run.commit or "not under version control")
    metrics = dict(rows(place, "select key, value from metrics"))
    assert metrics == dict(delta_r2=0.001, delta_r2_low=-0.002, delta_r2_high=0.004)
    kind = "select value from experiment_tags where key = 'mlflow.experimentKind'"
    assert rows(place, kind) == [("custom_model_development",)]


def test_a_change_of_code_shows(first, tmp_path):
    _, before = first
    with patch.dict(_KNOWN):

        @feature("none")
        def a_new_idea():
            "Nothing yet."
            return pl.lit(0.0)

        run = tracking.begin(home(tmp_path, env={}), "backtest", "demo", dict(seed=1))
    assert run.settings_hash == before.settings_hash and run.features_hash != before.features_hash
    assert set(run.features) - set(before.features) == {"a_new_idea"}


def test_no_run_writes_where_another_wrote(first):
    place, run = first
    other = logged(place, seed=1)
    assert other.folder != run.folder and other.id != run.id
    assert {r.id for r in tracking.runs(place)} >= {run.id, other.id}
    with pytest.raises(BadInput, match="no such run"):
        tracking.find(place, "zzzz")


def test_work_that_fails_leaves_a_failed_run(tmp_path):
    place = Home(tmp_path, "file:///dev/null/nowhere")
    with (
        pytest.raises(ValueError, match="a fault"),
        pytest.warns(UserWarning, match="is kept"),
        tracking.tracked(place, "backtest", "demo", {}) as run,
    ):
        raise ValueError("a fault")
    assert tracking.open_run(run.folder).state == "failed"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def served(place: Home, port: int) -> subprocess.Popen:
    code = (
        "import sys; from racing_core.config import home; from racing_core.lab import tracking;"
        "tracking.serve(home(sys.argv[1], env={}), int(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(place.root), str(port)]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)


def answer(url: str, patience_s: float = 90) -> httpx.Response:
    until = time.monotonic() + patience_s
    while True:
        try:
            return httpx.get(url, timeout=5)
        except httpx.TransportError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def test_a_copied_home_lives_on_its_own(first, tmp_path):
    place, run = first
    moved = home(tmp_path / "copy", env={})
    shutil.copytree(place.root, moved.root, symlinks=True)
    before = {f for f in place.root.rglob("*") if f.is_file()}
    new = logged(moved, seed=2)
    assert {f for f in place.root.rglob("*") if f.is_file()} == before
    assert {r.settings["seed"] for r in tracking.runs(moved)} == {1, 2}
    uris = rows(moved, "select run_uuid, artifact_uri from runs")
    assert all(uri.startswith("mlflow-artifacts:/") for _, uri in uris)
    port = free_port()
    server = served(moved, port)
    try:
        assert answer(f"http://127.0.0.1:{port}/health").text == "OK"
        links = {(moved.runs / ".mlflow" / i / "artifacts").resolve().name: i for i, _ in uris}
        for name in (run.folder.name, new.folder.name):
            files = f"http://127.0.0.1:{port}/api/2.0/mlflow-artifacts/artifacts/.mlflow"
            page = answer(f"{files}/{links[name]}/artifacts/page.html")
            assert page.text == "<h1>kept</h1>", page.text
    finally:
        os.killpg(server.pid, 15)
        server.wait(20)


def test_two_first_runs_at_once(tmp_path):
    place = home(tmp_path / "home", env={})
    code = (
        "import warnings; warnings.filterwarnings('error', message='.*the run is kept')\n"
        "from racing_core.lab import tracking\n# go\n"
        "with tracking.tracked(place, 'backtest', 'demo', dict(me=me)): pass\n"
    )
    together(code, place, times=4)
    assert len(rows(place, "select run_uuid from runs where status = 'FINISHED'")) == 4
    assert len(rows(place, "select name from experiments where name = 'GodTier_Ensemble_v2'")) == 1
    assert sorted(r.settings["me"] for r in tracking.runs(place)) == [0, 1, 2, 3]
