"""MLflow hears of every run in order and once, whatever its store does; no store costs a result."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from servers import SECRET, free_port
from test_runs import answer
from test_together import together

from racing_core.app.main import main
from racing_core.config import Home, home
from racing_core.lab import notebook, spool, teller, tracking
from racing_core.lab.keepsakes import keep_importances

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FIGURES = dict(r2=dict(value=0.2, low=0.19, high=0.21), delta_r2=dict(value=0.001))
RECIPES = """
[pile]
about = "one upon the other"
family = "stacked_meta_v1"

[plain]
family = "baseline_simple_avg"
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    "A tracking database without runs: making one takes seconds."
    place = home(tmp_path_factory.mktemp("made"), env={})
    teller.client_of(place)
    return place.runs / "mlflow.db"


@pytest.fixture
def place(made, tmp_path) -> Home:
    "A home with an empty tracking database."
    where = home(tmp_path / "home", env={})
    where.runs.mkdir(parents=True)
    shutil.copy(made, where.runs)
    return where


def logged(where: Home, **more) -> tracking.Run:
    "A small finished run with a file, figures and data."
    about = dict(data="f1" * 20, name=more.pop("name", ""), parent=more.pop("parent", None))
    with tracking.tracked(where, "backtest", "demo", more, window="2023", **about) as run:
        (run.folder / "page.html").write_text("<h1>kept</h1>", encoding="utf-8")
        tracking.note(run.folder, figures=FIGURES, looks=1)
    return tracking.open_run(run.folder)


@contextmanager
def held(where: Home) -> Iterator[None]:
    "Nobody delivers: what is told waits."
    with spool._alone(where) as mine:
        assert mine
        yield


def seen(where: Home) -> dict[str, object]:
    "MLflow's runs by our id; each is there once."
    client = teller.client_of(where)
    (e,) = [e for e in client.search_experiments() if e.name == tracking.EXPERIMENT]
    found = client.search_runs([e.experiment_id], order_by=["attributes.start_time"])
    told = {r.data.tags["racing.run"]: r for r in found}
    assert len(told) == len(found), "a run is there twice"
    return told


def whole(where: Home, run: tracking.Run) -> None:
    "MLflow has all of a run, and everything once."
    client, found = teller.client_of(where), seen(where)[run.id]
    assert found.info.status == "FINISHED" and found.data.params["looks"] == "1"
    metrics = dict(r2=0.2, r2_low=0.19, r2_high=0.21, delta_r2=0.001)
    assert found.data.metrics == metrics
    for name in metrics:
        assert len(client.get_metric_history(found.info.run_id, name)) == 1
    (data,) = found.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("demo", ("f1" * 20)[:36])
    begun = datetime.fromisoformat(run.started).timestamp() * 1000
    assert found.info.start_time == int(begun) <= found.info.end_time
    if not found.info.artifact_uri.startswith(teller.LINKED):
        files = {f.path for f in client.list_artifacts(found.info.run_id)}
        assert {"page.html", "run.json"} <= files


def twice(where: Home) -> tracking.Run:
    "A run of which everything is told twice, as after a crash between telling and forgetting."
    with held(where):
        run = logged(where, seed=1)
    events = [(f, f.read_bytes()) for f in spool.waiting(where)]
    what = [json.loads(told)["what"] for _, told in events]
    assert what == ["start", "batch", "inputs", "files", "end"]
    assert tracking.deliver(where) == spool.Delivery(done=5)
    for file, told in events:
        file.write_bytes(told)
    assert tracking.deliver(where) == spool.Delivery(done=5)
    return run


def count(file: Path, table: str) -> int:
    "Rows of a table, those of deleted runs too."
    with closing(sqlite3.connect(file)) as db:
        return db.execute(f"select count(*) from {table}").fetchone()[0]


def test_what_is_told_twice_is_there_once_in_a_file(place):
    whole(place, twice(place))
    tables = ("runs", "metrics", "datasets", "inputs")
    assert [count(place.runs / "mlflow.db", t) for t in tables] == [1, 4, 1, 1]


def test_postgresql_and_s3_by_their_addresses_alone(postgres_url, s3, tmp_path):
    env = dict(RACING_TRACKING_URI=postgres_url, RACING_ARTIFACTS=f"{s3}/runs")
    where = home(tmp_path / "home", env=env)
    run = twice(where)
    whole(where, run)
    uri = seen(where)[run.id].info.artifact_uri
    assert (
        uri.startswith(f"{s3}/runs/{tracking.EXPERIMENT}/") and not (tmp_path / "mlruns").exists()
    )
    added = dict(latency_p50_ms=dict(value=3.0))
    tracking.add(where, run.id, figures=added, tags=dict(bundle="one"))
    found = seen(where)[run.id]
    assert found.data.metrics["latency_p50_ms"] == 3 and found.data.tags["bundle"] == "one"
    file = teller.client_of(where).download_artifacts(found.info.run_id, "run.json", str(tmp_path))
    assert json.loads(Path(file).read_text())["figures"].keys() == FIGURES.keys() | added.keys()
    kept = [f.read_text() for f in (tmp_path / "home").rglob("*.json")]
    assert kept and not [text for text in kept if SECRET in text], "no password is written down"


@contextmanager
def served(folder: Path, port: int) -> Iterator[subprocess.Popen]:
    "An MLflow server of its own, that keeps runs and files in a folder."
    folder.mkdir(exist_ok=True)
    store = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"]
    store += ["--artifacts-destination", (folder / "files").as_uri()]
    command = [sys.executable, "-m", "mlflow", "server", *store, "--port", str(port)]
    env = os.environ | teller.QUIET | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = subprocess.Popen(command, env=env, start_new_session=True, **quiet)
    try:
        assert answer(f"http://127.0.0.1:{port}/health").text == "OK"
        yield server
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def patiently(where: Home) -> int:
    "Deliver to a server that has just begun, and may be slow; how many things were told."
    done = 0
    for _ in range(60):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done += tracking.deliver(where).done
        if not spool.waiting(where):
            return done
        time.sleep(0.5)
    raise AssertionError(f"still waiting: {spool.waiting(where)}")


def test_a_server_that_dies_in_the_middle_hears_all_when_it_is_back(made, tmp_path):
    port, folder = free_port(), tmp_path / "server"
    where = Home(tmp_path / "home", f"http://127.0.0.1:{port}")
    folder.mkdir()
    shutil.copy(made, folder)
    with served(folder, port):
        before = tracking.begin(where, "backtest", "demo", dict(seed=1), data="f1" * 20)
        patiently(where)
        assert seen(where)[before.id].info.status == "RUNNING"
    (before.folder / "page.html").write_text("kept")
    tracking.note(before.folder, figures=FIGURES, looks=1)
    with pytest.warns(UserWarning, match="the run is kept; MLflow does not answer"):
        before = tracking.end(where, before)
    with pytest.warns(UserWarning, match="the run is kept; MLflow does not answer"):
        offline = [logged(where, seed=i) for i in (2, 3)]
    assert len(spool.waiting(where)) == 4 + 2 * 5
    with served(folder, port):
        events = [(f, f.read_bytes()) for f in spool.waiting(where)]
        assert patiently(where) == len(events)
        for file, told in events[:7]:
            file.write_bytes(told)
        assert patiently(where) == 7
        for run in (before, *offline):
            whole(where, run)
        assert list(seen(where)) == [r.id for r in (before, *offline)]
    assert [count(folder / "mlflow.db", t) for t in ("runs", "metrics")] == [3, 3 * 4]
    assert not spool.refused(where)


@pytest.mark.parametrize("manner", ["closed", "silent"])
def test_a_store_that_is_away_costs_no_result_and_one_line(manner, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        if manner == "silent":
            s.listen()
        where = Home(tmp_path, f"http://127.0.0.1:{s.getsockname()[1]}")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("default")
            run = logged(where, seed=1)
    assert run.state == "finished" and len(spool.waiting(where)) == 5
    (one,) = {str(w.message) for w in said}
    assert "the run is kept" in one and "racing runs --replay" in one and "\n" not in one


def test_a_locked_database_loses_nothing(place):
    code = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('begin exclusive');"
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(place.runs / "mlflow.db")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    with pytest.warns(UserWarning, match="database is locked"):
        run = logged(place, seed=1)
    assert run.state == "finished" and len(spool.waiting(place)) == 5
    other.communicate()
    assert tracking.deliver(place) == spool.Delivery(done=5)
    whole(place, run)


DIES = """
import os, pathlib
from racing_core.lab import spool, tracking
def die(self, missing_ok=False):
    os.kill(os.getpid(), 9)
# go
with tracking.tracked(place, 'backtest', 'demo', dict(seed=1), about='dies') as run:
    pathlib.Path.unlink = die
    tracking.note(run.folder, figures=dict(r2=dict(value=.2)))
"""


def test_one_who_dies_between_telling_and_forgetting_makes_nothing_double(place):
    with pytest.raises(AssertionError):
        together(DIES, place, times=1)
    (run,) = tracking.runs(place)
    assert run.state == "finished" and len(spool.waiting(place)) == 3
    assert tracking.deliver(place) == spool.Delivery(done=3)
    found = seen(place)[run.id]
    assert found.info.status == "FINISHED" and found.data.metrics == dict(r2=0.2)
    assert [count(place.runs / "mlflow.db", t) for t in ("runs", "metrics")] == [1, 1]


KILLED = """
import os
from racing_core.lab import spool, tracking
# go
with spool._alone(place), tracking.tracked(place, 'backtest', 'demo', dict(seed=1)) as run:
    tracking.note(run.folder, figures=dict(r2=dict(value=.2)))
    os.kill(os.getpid(), 9)
"""


def test_a_run_whose_process_was_killed_is_lost_and_reclaimed(place, capsys):
    with pytest.raises(AssertionError):
        together(KILLED, place, times=1)
    alive = tracking.begin(place, "backtest", "demo", dict(seed=2))
    asked = ["runs", "--home", str(place.root)]
    assert main([*asked, "--json"]) == 0
    told = {r["id"]: r["state"] for r in json.loads(capsys.readouterr().out)["runs"]}
    (gone,) = told.keys() - {alive.id}
    assert told == {gone: "lost", alive.id: "running"}
    assert main([*asked, "--replay", "--json"]) == 0
    answered = json.loads(capsys.readouterr().out)
    assert answered["reclaimed"] == [gone] and answered["waiting"] == 0
    account, found = tracking.find(place, gone), seen(place)[gone]
    assert account.state == "failed: lost" and account.ended
    assert found.info.status == "KILLED" and found.data.metrics == dict(r2=0.2)
    assert seen(place)[alive.id].info.status == "RUNNING"


def test_what_is_refused_for_good_is_set_aside_and_holds_nobody_up(place, capsys):
    with held(place):
        run = logged(place, seed=1)
    odd = dict(experiment=run.experiment, params=dict(seed=7))  # it was told to be 1
    spool.put(place, run.id, "batch", **odd)
    spool.put(place, "nobody", "end", experiment=run.experiment, status="FINISHED")
    damaged = spool.place(place) / f"{0:020d}-damaged.json"
    damaged.write_text('{"id": "1"')
    with pytest.warns(UserWarning, match="refused 3 things for good"):
        assert tracking.deliver(place) == spool.Delivery(done=5, refused=3)
    whole(place, run)
    reasons = " ".join(spool.refused(place).values())
    assert "damaged" in reasons and "no such run" in reasons and "'seed'" in reasons
    assert main(["doctor", "--json", "--home", str(place.root)]) == 1
    checks = {c["name"]: c for c in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["tracking"]["state"] == "wrong" and "3 refused" in checks["tracking"]["found"]


def test_children_stand_below_their_parent_and_recipes_below_their_family(place, tmp_path):
    file = tmp_path / "recipes.toml"
    file.write_text(RECIPES)
    with held(place):
        asked = dict(recipes=str(file), as_of="morning")
        several = dict(notebook="backtest", recipe='["plain", "pile"]', **asked)
        grid = tracking.begin(place, "experiment", "demo", several)
        points = [logged(place, name=f"seed={i}", parent=grid.id, seed=i) for i in (1, 2)]
        tracking.end(place, grid)
        plain, pile = (logged(place, recipe=r, **asked) for r in ("plain", "pile"))
        again = logged(place, recipe="pile", scores="model", **asked)
    assert not tracking.deliver(place).refused
    found = seen(place)
    name = {i: r.info.run_name for i, r in found.items()}
    above = {i: r.data.tags.get("mlflow.parentRunId") for i, r in found.items()}
    mlflow_id = {i: r.info.run_id for i, r in found.items()}
    for point in points:
        assert above[point.id] == mlflow_id[grid.id] and name[point.id] == point.name
        told = found[point.id].data.params
        assert told["as_of"] == "morning" and told["notebook"] == "backtest"
    assert above[plain.id] == mlflow_id["family:baseline_simple_avg"]
    assert above[pile.id] == mlflow_id["family:stacked_meta_v1"]
    assert above[again.id] == mlflow_id["family:stacked_meta_v2_with_grok4"]
    stacked = found["family:stacked_meta_v1"]
    assert stacked.info.run_name == "stacked_meta_v1" and stacked.info.status == "FINISHED"
    assert stacked.data.tags["mlflow.note.content"] == "one upon the other"
    assert name[plain.id] == "backtest demo recipe=plain, as_of=morning"
    assert above[grid.id] is None


def test_first_runs_of_two_homes_at_once_on_postgresql(postgres_url, tmp_path):
    code = (
        "import warnings; warnings.filterwarnings('error', message='.*the run is kept')\n"
        "from dataclasses import replace\n"
        "from racing_core.lab import tracking\n"
        f"place = replace(home(place.root / str(me % 2), env={{}}), tracking_uri={postgres_url!r})\n"
        "# go\n"
        "with tracking.tracked(place, 'backtest', 'demo', dict(me=me, recipe='best')): pass\n"
    )
    where = home(tmp_path / "homes", env={})
    together(code, where, times=4)
    both = [home(where.root / str(i), env=dict(RACING_TRACKING_URI=postgres_url)) for i in (0, 1)]
    runs = {r.id for place in both for r in tracking.runs(place)}
    found = seen(both[0])
    assert len(runs) == 4 and runs < found.keys() and len(found) == 5, "one family's run"
    above = {found[i].data.tags["mlflow.parentRunId"] for i in runs}
    assert above == {r.info.run_id for i, r in found.items() if i.startswith("family:")}


def test_one_delivers_for_many(place):
    with tracking.delivering(place):
        code = (
            "import sys\nfrom racing_core.lab import tracking\n# go\n"
            "with tracking.tracked(place, 'backtest', 'demo', dict(me=me)): pass\n"
            "assert 'mlflow' not in sys.modules\n"
        )
        together(code, place, times=2)
    assert {r.info.status for r in seen(place).values()} == {"FINISHED"} and len(seen(place)) == 2


def test_files_go_to_a_folder_where_one_is_named(made, tmp_path):
    folder = tmp_path / "files of runs"
    where = home(tmp_path / "home", env=dict(RACING_ARTIFACTS=str(folder)))
    where.runs.mkdir(parents=True)
    shutil.copy(made, where.runs)
    run = logged(where, seed=1)
    whole(where, run)
    assert len(list(folder.rglob("page.html"))) == 1


def test_a_backtest_stands_with_its_models_and_years_and_says_what_counted(place):
    interval = dict(value=0.2, low=0.19, high=0.21)
    names = ["uniform", "market", *(f"model_{i:02}" for i in range(15)), "combined"]
    found = dict(boards={n: dict(r2=interval, logloss=interval) for n in names}, delta_r2=interval)
    found["by_year"] = [dict(year=y, races=800, delta_r2=interval) for y in (2022, 2023)]
    asked = dict(recipe="best", as_of="morning")
    with tracking.tracked(place, "backtest", "demo", asked) as run:
        notebook.keep(run.folder, found, pl.DataFrame(dict(race_id=["a"])))
        importance = {f"feature_{i:02}": i / 10 for i in range(12)}
        keep_importances(run.folder, importance)
        tracking.note(run.folder, figures=tracking.headline(found), data="f1")
    top = seen(place)[run.id]
    assert len(top.data.metrics) == 3 * 3, "ΔR², R² and log loss with their ends, nothing else"
    counted = top.data.tags["racing.importances"].split(", ")
    assert counted == sorted(importance, reverse=True)[:10]
    below = [
        r for r in seen(place).values() if r.data.tags.get("mlflow.parentRunId") == top.info.run_id
    ]
    kinds = [r.data.tags["racing.kind"] for r in below]
    assert kinds.count("model") == 12 and kinds.count("fold") == 2
    assert [r.info.run_name for r in below[:2]] == ["model=market", "model=model_00"], "in order"
    for r in below:
        assert r.info.status == "FINISHED" and r.data.params == asked and r.data.metrics
    kept = {f.name for f in run.folder.iterdir()}
    assert {"environment.txt", "features.json", "importances.json"} <= kept


def test_the_page_opens_on_the_runs(place):
    number = teller.experiment_of(place, teller.client_of(place), tracking.EXPERIMENT)
    wanted = f"http://127.0.0.1:5001/#/experiments/{number}/runs?workflowType=machine_learning"
    assert tracking.page(place, 5001) == wanted


def test_a_run_outside_the_home_is_kept_as_it_ended(place, tmp_path):
    out = tmp_path / "elsewhere"
    with held(place), tracking.tracked(place, "backtest", "demo", {}, out=out) as run:
        (out / "page.html").write_text("of this run")
    events = [(f, f.read_bytes()) for f in spool.waiting(place)]
    (out / "page.html").write_text("of the next run")
    for _ in range(2):
        assert not tracking.deliver(place).refused
        for file, told in events:
            file.write_bytes(told)
    assert not tracking.deliver(place).refused
    mlflow_id, _ = tracking.mirrored(place, run)
    kept = place.runs / ".mlflow" / mlflow_id / "artifacts"
    assert (kept / "page.html").read_text() == "of this run"
    tracking.add(place, out, figures=dict(latency_p50_ms=dict(value=3.0)))
    assert json.loads((kept / "run.json").read_text())["figures"]
    assert not list((spool.place(place) / "files").iterdir())


def test_what_people_do_in_mlflow_costs_nothing(place):
    with held(place):
        run = logged(place, seed=1)
    client = teller.client_of(place)
    number = teller.experiment_of(place, client, run.experiment)
    begun = int(1000 * datetime.fromisoformat(run.started).timestamp())
    for _ in range(2):  # as two requests leave it whose answers were lost on their way
        client.create_run(number, begun, {"racing.run": run.id}, "seed=1")
    client.delete_experiment(number)
    assert tracking.deliver(place) == spool.Delivery(done=5)
    whole(place, run)


def test_a_run_gives_signs_of_life_while_its_work_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "BEAT_S", 0.01)
    with tracking.tracked(Home(tmp_path, ""), "backtest", "demo", {}) as run:
        os.utime(run.folder / "run.json", (0, 0))
        for _ in range(1000):
            if (seen := tracking.open_run(run.folder)).beat >= run.started[:19]:
                break
            time.sleep(0.01)
        assert seen.beat >= run.started[:19] and not tracking.lost(seen, datetime.now(UTC))
    ended = tracking.open_run(run.folder)
    assert ended.beat == ended.ended
