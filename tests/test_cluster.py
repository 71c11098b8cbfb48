"""Experiments on a real Dask cluster: a scheduler and workers as processes, killed, of other code, or gone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from distributed import Client
from nbformat import write
from nbformat.v4 import new_code_cell, new_notebook
from servers import SECRET, free_port

from racing_core.config import home
from racing_core.data.ingest import ingest_world
from racing_core.data.store import Store
from racing_core.errors import BadInput, RacingError
from racing_core.lab import cluster as rooms
from racing_core.lab import grid
from racing_core.lab.cluster import Cluster
from racing_core.lab.depot import Depot
from racing_core.lab.kernels import Limits
from racing_core.lab.plan import Job, ask
from racing_core.simulate import simulate

ROOT = Path(__file__).resolve().parent.parent
LIMITS = Limits(hang_s=120, total_s=300)
PARAMETERS = 'x = 0\nonce = ""\nsource = "simulated"\nhome = None\nout = "."'
BODY = """
import os, sys, time
from pathlib import Path
from helper import doubled
if once and x == 1 and not list(Path(once).iterdir()):
    print("… waiting (50%)", file=sys.stderr, flush=True)
    time.sleep(600)
if x == 2 and Path(out, "run.json").exists():
    from racing_core.lab.tracking import note
    note(out, figures=dict(doubled=dict(value=doubled(x))))
if x == 4 and Path(out, "run.json").exists():  # nobody beats it but the worker
    os.utime(file := Path(out, "run.json"), (0, 0))
    while not file.stat().st_mtime:
        time.sleep(0.1)
Path(out, "doubled.txt").write_text(str(doubled(x)))
Path(out, "home").write_text(str(home))
"""


class Dask:
    "A scheduler, and workers that come and go."

    def __init__(self, folder: Path, env: dict[str, str]):
        self.folder, self.env, self.processes = folder, os.environ | env, []
        file = folder / "scheduler.json"
        self.scheduler = self.start(
            "scheduler",
            "--host=127.0.0.1",
            "--port=0",
            f"--scheduler-file={file}",
            "--no-dashboard",
        )
        while not file.exists() or not file.read_text().strip().endswith("}"):
            assert self.scheduler.poll() is None
            time.sleep(0.1)
        self.address = json.loads(file.read_text())["address"]

    def start(self, *words: str, **env: str) -> subprocess.Popen:
        log = (self.folder / f"{len(self.processes)}.log").open("w")
        dask = [sys.executable, "-m", "dask", *words]
        process = subprocess.Popen(
            dask, env=self.env | env, stdout=log, stderr=log, cwd=self.folder
        )
        self.processes.append(process)
        return process

    def worker(self, *words: str, **env: str) -> subprocess.Popen:
        "A worker that is there when this returns."
        with self.client() as client:
            before = set(client.scheduler_info()["workers"])
            one = ("--nthreads=1", "--no-dashboard", f"--local-directory={self.folder}")
            process = self.start("worker", self.address, *one, *words, **env)
            while not set(client.scheduler_info()["workers"]) - before:
                assert process.poll() is None
                time.sleep(0.1)
        return process

    def client(self) -> Client:
        return Client(self.address, set_as_default=False)

    def kill(self, address: str) -> int:
        "Kill -9 the worker at an address."
        with self.client() as client:
            pid = client.run(os.getpid, workers=[address])[address]
        os.kill(pid, signal.SIGKILL)
        return pid

    def at_least(self, workers: int) -> None:
        "A killed worker comes back by its nanny; one that has none, not."
        alive = [p for p in self.processes if p.poll() is None and p is not self.scheduler]
        for _ in range(workers - len(alive)):
            self.worker("--nanny")
        with self.client() as client:
            client.wait_for_workers(workers)

    def stop(self, process: subprocess.Popen) -> None:
        "Kill a process and what it has started, nanny first."
        family = (
            psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        )
        for p in [process, *family]:
            with suppress(psutil.Error):
                p.kill()
        process.wait()

    def no_workers(self) -> None:
        for p in self.processes:
            if p is not self.scheduler:
                self.stop(p)
        with self.client() as client:
            while client.scheduler_info()["workers"]:
                time.sleep(0.1)

    def end(self) -> None:
        for p in self.processes:
            self.stop(p)


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    "A home with races, and a notebook with a module beside it."
    base = tmp_path_factory.mktemp("homes")
    python = dict(name="python3", display_name="Python 3", language="python")
    told = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    write(
        new_notebook(cells=[told, new_code_cell(BODY)], metadata=dict(kernelspec=python)),
        base / "toy.ipynb",
    )
    ingest_world(simulate(races=60, seed=1), home(base / "a", env={}))
    (base / "helper.py").write_text("def doubled(x):\n    return 2 * x\n")
    return base


@pytest.fixture(scope="module")
def dask(homes, tmp_path_factory, s3_store):
    "A scheduler that gives a job up after its second dead worker; workers find the S3 store."
    one = Dask(
        tmp_path_factory.mktemp("dask"),
        s3_store.env
        | dict(PYTHONPATH=str(ROOT), RACING_HOME=str(homes / "a"))
        | dict(DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1"),
    )
    yield one
    one.end()


@pytest.fixture
def job(homes, tmp_path):
    "Makes jobs of the notebook; x=1 waits for ever."
    (tmp_path / "never").mkdir()

    def make(number: int, **parameters) -> Job:
        folder = tmp_path / "runs" / f"{number:03}-x={number}"
        given = {"x": number, "once": str(tmp_path / "never")} | parameters
        return Job(f"{number:016x}", f"x={number}", homes / "toy.ipynb", given, folder, homes / "a")

    return make


class Teller:
    "Hears what is told, and does something when a job waits."

    def __init__(self, act=lambda id, where: None):
        self.act, self.said, self.where, self.workers = act, [], {}, set()

    def __call__(self, id: str, step: str, done: float) -> None:
        if step.startswith("on tcp") or step.startswith("again, on tcp"):
            self.where[id] = step.split("on ")[1].split(": ")[0]
            self.workers.add(self.where[id])
        if (id, step) != (self.said or [None])[-1]:
            self.said.append((id, step))
            if step == "waiting":
                self.act(id, self.where[id])


@pytest.fixture
def experiment(homes, tmp_path):
    "Plans an experiment; x=1 waits until there is something in `once`."
    (once := tmp_path / "once").mkdir()

    def plan(values: list[int], resume: bool = False) -> grid.Experiment:
        asked = ask(homes / "toy.ipynb", {"once": str(once)}, {"x": values})
        return grid.begin(home(homes / "a", env={}), asked, resume)

    return plan


def test_six_notebooks_on_two_workers_of_which_one_is_killed(dask, experiment, s3, tmp_path):
    dask.worker("--no-nanny")
    dask.worker("--nanny")
    x, killed = experiment([0, 1, 2, 3, 4, 5]), []

    def kill(id: str, where: str) -> None:
        (tmp_path / "once" / "done").touch()
        killed.append(dask.kill(where))

    tell, depot = Teller(kill), Depot(s3 + "/labs")
    outcomes = list(grid.run(x, Cluster(dask.address, depot), LIMITS, tell))
    assert sorted(o.id for o in outcomes) == sorted(j.id for j in x.jobs)  # each once
    assert [o.state for o in outcomes] == ["finished"] * 6, outcomes
    assert len(killed) == 1
    assert [id for id, step in tell.said if step.startswith("again")] == [x.jobs[1].id]
    assert len(tell.workers) >= 2  # both have worked
    accounts = grid.attempts(x.folder)
    assert [(r.name, r.state) for r in accounts] == [(f"x={k}", "finished") for k in range(6)]
    assert accounts[2].figures["doubled"]["value"] == 4  # noted on a worker
    for k, run in enumerate(accounts):
        assert (run.folder / "doubled.txt").read_text() == str(2 * k)
        executed = json.loads((run.folder / "toy.ipynb").read_text())
        assert executed["cells"][-1]["execution_count"], "the executed notebook has come home"
    assert depot.names() == sorted(j.id for j in x.jobs)
    assert not experiment([0, 1, 2, 3, 4, 5], resume=True).todo


def test_what_a_job_brings_upon_itself_costs_no_other_one(dask, job, homes, tmp_path):
    "Killed with each worker that has it; refused because of other races; and one that is well."
    dask.at_least(1)
    data = Store(home(homes / "a", env={}), "simulated").fingerprint
    poison, stranger = job(1), replace(job(0), data="0123456789ab")
    jobs = [poison, stranger, replace(job(4, home="/away"), data=data)]
    tell, depot = Teller(lambda id, where: dask.kill(where)), Depot(str(tmp_path / "shared"))
    outcomes = {o.id: o for o in Cluster(dask.address, depot).outcomes(jobs, LIMITS, tell)}
    assert [outcomes[j.id].state for j in jobs] == ["killed", "failed", "finished"]
    assert outcomes[poison.id].complaint == "2 workers died while they ran it"
    said = outcomes[stranger.id].complaint
    assert "this worker has other races" in said and f"simulated {data}" in said, said
    assert "set RACING_HOME" in said
    assert depot.names() == [jobs[2].id]
    assert (jobs[2].folder / "home").read_text() == str(homes / "a")  # the worker's own


def test_who_stops_waiting_ends_the_notebooks(dask, job, tmp_path):
    dask.at_least(1)
    waits, kernel = job(1), []

    class Enough(Exception):
        pass

    def stop(id: str, where: str) -> None:
        kernel.extend(p for p in psutil.process_iter(["environ"]) if _is_kernel(p, waits.id))
        raise Enough

    with pytest.raises(Enough):
        list(Cluster(dask.address, Depot(str(tmp_path))).outcomes([waits], LIMITS, Teller(stop)))
    assert kernel
    psutil.wait_procs(kernel, timeout=60)
    assert not [p for p in kernel if p.is_running()]


def _is_kernel(p: psutil.Process, id: str) -> bool:
    return (p.info["environ"] or {}).get("RACING_JOB") == id


def test_other_code_is_refused_by_name_before_anything_runs(dask, job, tmp_path):
    dask.at_least(1)
    shutil.copytree(ROOT / "racing_core", tmp_path / "racing_core")
    with (tmp_path / "racing_core" / "odds.py").open("a") as f:
        f.write("\n# another formula\n")
    other = dask.worker("--no-nanny", "--name=other", PYTHONPATH=str(tmp_path))
    tell = Teller()
    with pytest.raises(BadInput, match="the cluster runs other code than we do") as e:
        list(Cluster(dask.address, Depot(str(tmp_path / "d"))).outcomes([job(0)], LIMITS, tell))
    assert "code of racing-core" in str(e.value) and str(e.value).count("worker tcp") == 1
    assert not tell.said and not (tmp_path / "d" / "index").exists()
    dask.stop(other)
    late = replace(
        rooms._packed(job(1), LIMITS, Depot("x"), ""), here=rooms._here() | {"polars": "0.1"}
    )
    with pytest.raises(BadInput, match="polars .* \\(here 0.1\\)"):  # by a worker that came later
        rooms._perform(late)


def test_a_worker_that_does_not_see_the_shared_place_gets_nothing(dask, job, s3):
    dask.at_least(1)
    blind = dask.worker("--no-nanny", AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}")
    depot, tell = Depot(s3), Teller()
    with pytest.raises(RacingError, match="a worker does not see the shared place") as e:
        list(Cluster(dask.address, depot).outcomes([job(0)], LIMITS, tell))
    assert s3 in str(e.value) and SECRET not in str(e.value)
    assert not tell.said and depot.names() == []
    dask.stop(blind)


def test_a_shared_place_that_comes_back_gets_what_was_done(job, tmp_path):
    one, place = job(0), tmp_path / "shared"
    one.folder.mkdir(parents=True)
    place.write_text("no folder yet")

    def mended():
        yield 0
        place.unlink()
        yield 0

    rooms._send(Depot(str(place)), one, mended())
    assert Depot(str(place)).names() == [one.id]
    (tmp_path / "file").touch()
    with pytest.raises(RacingError, match="the shared place cannot be used"):
        rooms._send(Depot(str(tmp_path / "file")), one, [0, 0])


def test_a_cluster_that_is_away_is_said_to_be(dask, job, tmp_path):
    depot, waits = Depot(str(tmp_path / "d")), job(1)

    def asked(address: str, act=lambda id, where: None) -> str:
        with pytest.raises(RacingError) as e:
            list(Cluster(address, depot, patience=5).outcomes([waits], LIMITS, Teller(act)))
        return str(e.value)

    assert "no Dask scheduler answers" in asked(f"tcp://127.0.0.1:{free_port()}")
    for address in ("127.0.0.1:8786", "http://127.0.0.1:8786", f"tcp://me:{SECRET}@host:8786"):
        said = asked(address)
        assert "not the address of a Dask scheduler" in said and SECRET not in said
    dask.no_workers()
    assert f"dask worker {dask.address}" in asked(dask.address)
    dask.worker("--no-nanny")
    said = asked(dask.address, lambda id, where: dask.no_workers())
    assert "all workers have gone" in said and "--resume" in said


def test_a_scheduler_that_goes_away_leaves_a_plan_to_go_on_with(dask, experiment, tmp_path):
    worker, x = dask.worker("--no-nanny"), experiment([1, 0])
    tell = Teller(lambda id, where: dask.stop(dask.scheduler))
    cluster = Cluster(dask.address, Depot(str(tmp_path / "d")))
    with pytest.raises(RacingError, match="the Dask scheduler has gone away.*--resume"):
        list(grid.run(x, cluster, LIMITS, tell))
    assert list(x.states.values()) == ["interrupted", "waiting"]
    worker.wait(60)  # without a scheduler it ends, and takes its notebook along
    left = [p for p in psutil.process_iter(["environ"]) if _is_kernel(p, x.jobs[0].id)]
    psutil.wait_procs(left, 60)
    assert not [p for p in left if p.is_running()]
    (tmp_path / "once" / "done").touch()
    outcomes = grid.run(experiment([1, 0], resume=True), grid.Local(1), LIMITS)
    assert [o.state for o in outcomes] == ["finished", "finished"]
