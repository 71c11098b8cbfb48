"Batch experiments: what is asked is checked first, whatever happens is noticed, nothing is run twice."

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from racing_core.config import home
from racing_core.data.ingest import ingest_world
from racing_core.errors import BadInput
from racing_core.features.kept import built
from racing_core.features.matrix import build
from racing_core.lab import grid, plan
from racing_core.lab.kernels import JOB
from racing_core.simulate import simulate

CELL = """source = "simulated"
seed = 0
number = 0
share = 0.5
on = False
only = ["a"]
settings = {}
day = None
limit: int | None = None
"""


def notebook(folder: Path, *codes: str, cell: str = CELL, name: str = "small") -> Path:
    "A notebook with parameters."
    cells = [new_code_cell(cell, metadata=dict(tags=["parameters"])), *map(new_code_cell, codes)]
    nbformat.write(new_notebook(cells=cells), folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


def racing(*arguments: str, **more) -> subprocess.Popen:
    "The command, in a session of its own."
    code = "import sys; from racing_core.app.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, start_new_session=True, **pipes, **more)


def told(process: subprocess.Popen, patience_s: float = 400) -> tuple[int, dict, str]:
    "Exit code, answer and notes of a command with --json."
    out, notes = process.communicate(timeout=patience_s)
    return process.returncode, json.loads(out), notes


def until(there, patience_s: float = 120):
    "Wait for something to be."
    end = time.monotonic() + patience_s
    while not (found := there()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)
    return found


def started_by_runs(place: Path) -> list[psutil.Process]:
    "Living processes that runs of a home have started."
    found = []
    for p in psutil.process_iter():
        try:
            env = p.environ()
            if JOB in env and env.get("RACING_HOME") == str(place) and p.status() != "zombie":
                found.append(p)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("on", "no", False),
        ("on", "Yes", True),
        ("on", "1", True),
        ("source", "no", "no"),
        ("number", "-3", -3),
        ("share", "1", 1.0),
        ("share", "1e-3", 0.001),
        ("only", "b,c", ["b", "c"]),
        ("only", "[1, 2]", [1, 2]),
        ("only", "", []),
        ("settings", '{"a": 1}', {"a": 1}),
        ("day", "2022-01-31", "2022-01-31"),
        ("day", "null", None),
        ("limit", "5", 5),
    ],
)
def test_a_text_is_read_by_the_type_of_the_default(tmp_path, name, text, value):
    asked = plan.ask_typed(notebook(tmp_path), [f"{name}={text}"], [])
    assert asked.given == {name: value} and type(asked.given[name]) is type(value)
    assert plan.ask(asked.notebook, {name: value}) == asked


@pytest.mark.parametrize(
    ("given", "tried", "said"),
    [
        (["on=maybe"], [], "true or false"),
        (["number=1.5"], [], "a whole number"),
        (["share=nan"], [], "a number"),
        (["settings=[1]"], [], "a JSON object"),
        (["sead=1"], [], "unknown parameter.*seed"),
        (["out=/tmp"], [], "`out` cannot be given"),
        (["seed"], [], "name=value"),
        (["seed=1", "seed=2"], [], "given twice"),
        (["seed=1"], ["seed=1,2"], "given and tried at once"),
        ([], ["seed=1,01"], "name each value once"),
        ([], ["seed="], "one at least"),
        ([], ["on=yes,nay"], "got 'nay'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path, given, tried, said):
    with pytest.raises(BadInput, match=said):
        plan.ask_typed(notebook(tmp_path), given, tried)


def test_a_word_is_no_boolean_in_python_either(tmp_path):
    for wrong in (dict(on="no"), dict(seed=True), dict(seed=1.0), dict(share="1"), dict(on=None)):
        with pytest.raises(BadInput, match="no value of"):
            plan.ask(notebook(tmp_path), wrong)


def test_an_identity_is_of_everything_that_a_result_hangs_on(tmp_path, monkeypatch):
    place, book = home(tmp_path / "home", env={}), notebook(tmp_path, "import helper")
    (tmp_path / "helper.py").write_text("x = 1")
    (pointed := tmp_path / "a.toml").write_text("a = 1")

    def of(**given) -> str:
        [job] = plan.jobs(plan.ask(book, given), place)
        return job.id

    first, file = of(), of(day=pointed)
    assert of() == first == of(seed=0, share=0.5) == of(share=0.5, seed=0)
    ids = [first, file, of(seed=1), of(share=0.25), of(on=True)]
    ingest_world(simulate(races=30, seed=1), place)
    ids.append(of())
    ingest_world(simulate(races=40, seed=2), place)
    ids.append(of())
    pointed.write_text("a = 2")
    ids.append(of(day=pointed))
    (tmp_path / "helper.py").write_text("x = 2")
    ids.append(of())
    notebook(tmp_path, "import helper  # and more")
    ids.append(of())
    monkeypatch.setattr(plan, "environment", lambda: "another")
    ids.append(of())
    assert len(set(ids)) == len(ids)


def test_repeats_get_seeds_where_there_is_a_seed(tmp_path):
    place = home(tmp_path / "home", env={})
    seeded = plan.jobs(plan.ask(notebook(tmp_path), {}, {"share": [0.1, 0.2]}, 2), place)
    assert [j.name for j in seeded][:2] == ["share=0.1, seed=0", "share=0.1, seed=1"]
    plain = notebook(tmp_path, cell="share = 0.5", name="plain")
    repeated = plan.jobs(plan.ask(plain, {}, {}, 3), place)
    assert [j.parameters for j in repeated] == [{}] * 3 and len({j.id for j in repeated}) == 3


COUNTED = (
    "from pathlib import Path\nwith open(Path(settings['file']), 'a') as f: print(seed, file=f)"
)


def through(place, asked: plan.Question, resume: bool = True, **how) -> tuple:
    "Go through an experiment here: how its runs came out, by folder."
    x = grid.begin(place, asked, resume)
    with closing(grid.run(x, grid.Local(2), **how)) as outcomes:
        return x, {o.folder.name: o.state for o in outcomes}


def test_an_experiment_goes_on_to_n_and_numbers_are_never_used_twice(tmp_path):
    place, file = home(tmp_path / "home", env={}), tmp_path / "seen"
    fails = "if seed == 1 and not Path(settings['file'] + '.mended').is_file(): raise ValueError"
    book = notebook(tmp_path, COUNTED, fails)
    asked = plan.ask(book, dict(settings=dict(file=str(file))), {}, 2)
    x, came = through(place, asked)
    assert came == {"001-seed=0": "finished", "002-seed=1": "failed"}
    before = {p: p.stat().st_mtime_ns for p in x.folder.glob("00*/*")}
    (tmp_path / "seen.mended").touch()
    same, came = through(place, replace(asked, repeat=3))
    assert same.folder == x.folder and same.run.id == x.run.id
    assert came == {"003-seed=1": "finished", "004-seed=2": "finished"}
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert through(place, replace(asked, repeat=3))[1] == {}
    assert Counter(file.read_text().split()) == {"0": 1, "1": 2, "2": 1}
    notebook(tmp_path, COUNTED, fails, "1")
    other, came = through(place, replace(asked, repeat=1))
    assert other.folder == x.folder and came == {"005-small": "finished"}
    [s] = grid.experiments(place)
    assert (s.expected, s.finished, s.state) == (1, 1, "finished")
    assert {r.parent for r in grid.attempts(x.folder)} == {x.run.id}
    fresh = grid.begin(place, replace(asked, repeat=1))
    assert fresh.folder.name == f"{x.folder.name}-2" and len(fresh.todo) == 1


LEFT = ["sleep", "3333"]
PLANTS = {
    3: ("failed", "raise ValueError('planted')"),
    8: ("failed", "import no_such_module"),
    11: ("killed", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
    17: ("killed", "import os; os._exit(0)"),
    20: ("memory", "held = [bytearray(2**20) for _ in range(1500)]; import time; time.sleep(60)"),
    26: ("memory", "raise MemoryError"),
    30: ("hung", "import time; time.sleep(600)"),
    33: ("hung", "while True: pass"),
    38: ("interrupted", "import os, signal; os.kill(os.getpid(), signal.SIGINT)"),
    41: ("killed", "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"),
    44: ("finished", "for i in range(40_000): print('much', i, 'x' * 50)"),
    49: ("finished", "import subprocess; subprocess.Popen(['sleep', '3333'])"),
    52: (
        "finished",
        "import subprocess\nfor env in ({}, None):\n"
        "    subprocess.Popen(['sh', '-c', 'sleep 3333 &'], env=env, start_new_session=True)",
    ),
}
STRESS = f"PLANTS = {PLANTS!r}\nexec(PLANTS.get(number, ('', 'pass'))[1])\nprint('through', number)"


@pytest.fixture(scope="module")
def stress(tmp_path_factory):
    "Sixty small notebooks on four workers, some of them planted with failures."
    folder = tmp_path_factory.mktemp("stress")
    book, place = notebook(folder, "print('begins')", STRESS), folder / "home"
    numbers = "number=" + ",".join(map(str, range(60)))
    limits = ["--memory", "700", "--hang", "15", "--workers", "4"]
    command = racing(
        *("experiment", "run", book, "--grid", numbers, *limits, "--json", "--home", place)
    )
    code, answer, notes = told(command)
    return place, code, answer, notes


def test_sixty_notebooks_and_every_planted_failure_is_told(stress):
    place, code, answer, notes = stress
    planted = {n: state for n, (state, _) in PLANTS.items()}
    came = {r["settings"]["number"]: r["state"] for r in answer["runs"]}
    assert came == {n: planted.get(n, "finished") for n in range(60)}
    failed = sum(state != "finished" for state in planted.values())
    assert (code, answer["expected"], answer["finished"]) == (1, 60, 60 - failed)
    assert notes.count(" after ") == 60 and "60/60" in notes
    assert not started_by_runs(place)
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == LEFT]


def test_whatever_happened_the_notebook_and_the_log_are_kept(stress):
    *_, answer, _ = stress
    for run in answer["runs"]:
        folder, number = Path(run["folder"]), run["settings"]["number"]
        text = (folder / "small.ipynb").read_text()
        assert "begins" in (folder / "run.log").read_text() and '"begins\\n"' in text
        finished = run["state"] == "finished"
        assert (f'"through {number}\\n"' in text) is finished or number == 44
        assert bool(run["complaint"]) is not finished
        kept = {p.name for p in folder.iterdir()}
        assert kept >= {"run.json", "run.log", "small.ipynb", "small.html"}
        assert not [name for name in kept if name.startswith(".")]
    hung = next(r for r in answer["runs"] if r["settings"]["number"] == 33)
    assert "KeyboardInterrupt" in Path(hung["folder"], "small.ipynb").read_text()


SLOW = """import sys, time
for i in range(wait := int(number)):
    print(f"… waiting ({100 * i // wait}%)", file=sys.stderr, flush=True)
    time.sleep(0.25)
"""


@pytest.fixture
def long_runs(tmp_path):
    "The arguments of an experiment of two runs that take their time, unless they are told not to."
    quick = f"import os\nif not os.path.exists({str(tmp_path / 'quick')!r}):\n    number = 2000"
    book = notebook(tmp_path, quick, SLOW)
    where = ["--json", "--home", str(place := tmp_path / "home")]
    return ["experiment", "run", str(book), "--repeat", "2", *where], place


def both_work(place: Path) -> list[Path]:
    "Logs of two runs that are in the midst of their work."
    logs = list(place.glob("runs/experiment-*/0*/run.log"))
    return logs if len(logs) == 2 and all("waiting" in f.read_text() for f in logs) else []


def test_killed_outright_it_leaves_no_process_and_goes_on(long_runs, tmp_path):
    arguments, place = long_runs
    first = racing(*arguments)
    until(lambda: both_work(place))
    code, answer, _ = told(racing(*arguments, "--resume"))
    assert code == 2 and "another process" in answer["what"] and both_work(place)
    first.kill()
    first.communicate()
    until(lambda: not started_by_runs(place))
    (tmp_path / "quick").touch()
    code, answer, _ = told(racing(*arguments, "--resume"))
    assert code == 0 and (answer["expected"], answer["finished"], answer["before"]) == (2, 2, 0)
    came = {Path(r["folder"]).name: r["state"] for r in answer["runs"]}
    assert list(came.values()) == ["lost", "lost", "finished", "finished"] and len(came) == 4


def test_ctrl_c_ends_all_in_order_and_it_goes_on(long_runs, tmp_path):
    arguments, place = long_runs
    first = racing(*arguments)
    until(lambda: both_work(place))
    first.send_signal(signal.SIGINT)
    code, answer, _ = told(first)
    assert code == 130 and not started_by_runs(place)
    assert answer["states"] == {"interrupted": 2} and answer["finished"] == 0
    for run in answer["runs"]:
        assert "KeyboardInterrupt" in Path(run["folder"], "small.ipynb").read_text()
    (tmp_path / "quick").touch()
    code, answer, _ = told(racing(*arguments, "--resume"))
    assert (code, answer["finished"]) == (0, 2)


def test_fail_fast_stops_the_others(tmp_path):
    code = "import time\nif number == 0: raise ValueError\ntime.sleep(60)"
    asked = plan.ask(notebook(tmp_path, code), {}, dict(number=[0, 1, 2, 3]))
    x, came = through(home(tmp_path / "home", env={}), asked, fail_fast=True)
    assert came == {"001-number=0": "failed"}
    assert list(x.states.values()) == ["failed", "interrupted", "waiting", "waiting"]
    assert grid.experiments(x.home)[0].state == "failed"


def test_a_matrix_is_built_once_for_all_that_ask(tmp_path):
    starts, place = simulate(races=60, seed=3).starts(), home(tmp_path, env={})
    frame = built(starts, place)
    [file] = (tmp_path / "cache/features").glob("*.parquet")
    (other := frame.head(3)).write_parquet(file)
    assert frame.equals(build(starts)) and built(starts, place).equals(other)
    file.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="made anew"):
        assert built(starts, place).equals(frame)


def test_a_grid_that_cannot_be_starts_nothing(tmp_path):
    book, place = notebook(tmp_path, "1"), tmp_path / "home"
    arguments = ["experiment", "run", book, "--grid", "on=yes,maybe", "--json", "--home", place]
    code, answer, _ = told(racing(*arguments))
    assert code == 2 and answer["got"] == "maybe" and not place.exists()
