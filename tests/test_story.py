"""The whole story through the real command, without any server: from an edited cell to a champion, and back."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent
FROM, TO = "2018-11-01", "2018-12-31"  # what the experiment tests on; later days stay unseen
RECIPES = "\n".join(
    f"[l2-{l2}]\nabout = 'a linear model'\n[l2-{l2}.models.conditional_logit]\nl2 = {l2}\n"
    for l2 in (30, 100, 300, 1000, 3000, 10000)
)
NAMES = [line[1:-1] for line in RECIPES.splitlines() if line.startswith("[l2-") and "." not in line]
SPACE = """
[study]
trials = 20
screen = 8
startup = 4
folds = 2
hours = 1.0
seed = 0
[fundamental.conditional_logit]
l2 = { low = 20.0, high = 5000.0, log = true }
"""
IDEA = """
@feature("share", after=HORSE, lo=0, hi=1)
def win_share_L4():
    "Share of races won among the last 4 starts."
    return last_n("won", 4)
"""
PARAMETERS = """source = "simulated"
home = None
out = "."
test_from = None
test_to = None
recipe = "best"
recipes = ""
as_of = "close"
"""
WALK = """import os
from datetime import UTC, datetime
from pathlib import Path

(Path(out) / "pid").write_text(str(os.getpid()))
from racing_core import config, pipeline
from racing_core.data.store import Store
from racing_core.lab import notebook, tracking, walk
from racing_core.lab.backtest import backtest, figures
from racing_core.records import to_json
from racing_core.semantic.opinions import matrix_of

house = config.home(home)
starts = Store(house, source).starts(as_of=as_of)
first, last = walk.test_window(starts["date"], test_from, test_to)
frame = matrix_of(starts, home=house)
make = lambda: pipeline.recipe(recipe, Path(recipes))
found = backtest(starts, first, last, notebook.tell, make, frame=frame)
run = tracking.open_run(out)
looks = tracking.look(house, source, first, last, datetime.now(UTC), run=run and run.id)
finding = figures(found, looks)
notebook.keep(out, finding, found.predictions)
noted = dict(figures=tracking.headline(to_json(finding)), looks=looks)
tracking.record(house, out, "walk", source, dict(recipe=recipe), **noted)
"""


def cpu_s() -> float:
    "Seconds of processor that processes started here have used so far."
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


class Desk:
    "A researcher's checkout and home; the command; and the time of each step."

    def __init__(self, folder: Path):
        self.folder, self.tree, self.home = folder, folder / "tree", folder / "home"
        self.tree.mkdir()
        for part in ("nbs", "racing_core", "reports", "settings.ini", "ruff.toml"):
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, self.tree / part)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RACING_")}
        self.env = kept | dict(PYTHONPATH=str(self.tree))

    @contextmanager
    def step(self, name: str):
        began, spent = time.perf_counter(), cpu_s()
        yield
        took = f"{time.perf_counter() - began:6.1f} s, {cpu_s() - spent:5.1f} s of CPU"
        print(f"{took}  {name}", flush=True)

    def write(self, name: str, text: str) -> Path:
        (self.folder / name).write_text(text, encoding="utf-8")
        return self.folder / name

    def begin(self, *argv: object) -> subprocess.Popen:
        code = "import sys; from racing_core.app.main import main; sys.exit(main())"
        command = [sys.executable, "-c", code, *map(str, argv), "--home", str(self.home), "--json"]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return subprocess.Popen(command, cwd=self.folder, env=self.env, **pipes)

    def racing(self, *argv: object, code: int = 0) -> dict:
        return self.told(self.begin(*argv), code)

    def told(self, process: subprocess.Popen, code: int = 0) -> dict:
        out, notes = process.communicate(timeout=900)
        assert process.returncode == code, f"{process.args[3:]}: {out[-2000:]} {notes[-3000:]}"
        return json.loads(out)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    "A desk with a small world in the store."
    made = Desk(tmp_path_factory.mktemp("story"))
    with made.step("simulate"):
        made.racing("simulate", "--races", 1200, "--seed", 3, "--inefficiency", 0.2)
    return made


def edited(desk: Desk) -> Path:
    "The notebook of form, its first cell of a feature with one more."
    file = desk.tree / "nbs" / "22_features.form.ipynb"
    nb = nbformat.read(file, 4)
    cell = next(c for c in nb.cells if "def avg_position_L5" in c.source)
    cell.source += f"\n\n\n{IDEA.strip()}"
    nbformat.write(nb, file)
    return file


def killed_one(desk: Desk, asked: list) -> dict:
    "The grid, of which the kernel of the second run is killed at its work."
    process, there = desk.begin(*asked), []
    while process.poll() is None and not there:
        time.sleep(0.02)
        there = list(desk.home.glob("runs/experiment-*/002-*/pid"))
    assert there, process.communicate()
    os.kill(int(there[0].read_text()), signal.SIGKILL)
    return desk.told(process, 1)


def test_from_an_edited_cell_to_a_champion_and_back(desk):
    recipes, space = desk.write("recipes.toml", RECIPES), desk.write("space.toml", SPACE)
    cells = [new_code_cell(PARAMETERS, metadata=dict(tags=["parameters"])), new_code_cell(WALK)]
    nbformat.write(new_notebook(cells=cells), desk.folder / "walk.ipynb")
    with desk.step("a cell edited, features try --from"):
        tried = desk.racing("features", "try", "win_share_L4", "--from", edited(desk))
        assert "win_share_L4" in tried["registered"] and not tried["complaints"]
    with desk.step("export"):
        export = [sys.executable, "-c", "import nbdev; nbdev.nbdev_export()"]
        subprocess.run(export, cwd=desk.tree, env=desk.env, check=True, capture_output=True)
        known = {f["name"] for f in desk.racing("features", "list")["features"]}
        assert "win_share_L4" in known
    given = dict(source="simulated", test_from=FROM, test_to=TO, recipes=recipes)
    asked = ["experiment", "run", "walk.ipynb", "--grid", f"recipe={','.join(NAMES)}"]
    asked += ["--workers", 2, *(x for k, v in given.items() for x in ("-p", f"{k}={v}"))]
    with desk.step("a grid of 6 on 2 workers, one killed"):
        found = killed_one(desk, asked)
        assert found["states"] == dict(finished=5, killed=1)
    with desk.step("--resume"):
        found = desk.racing(*asked, "--resume")
        assert (found["expected"], found["finished"], found["before"]) == (6, 6, 5)
    with desk.step("compare"):
        found = desk.racing("experiment", "compare", "--no-page")
        assert len(found["rivals"]) == 6 and found["tests"] == 15 and not found["left_out"]
        assert found["unseen"]["window"]["first"] > TO
        best = found["rivals"][0]["name"].removeprefix("recipe=")
    with desk.step("tune 20 trials, choose"):
        mine = ["--recipe", best, "--recipes", recipes]
        how = [*mine, "--space", space, "--until", FROM, "--study", "mine", "--no-report"]
        found = desk.racing("tune", "--source", "simulated", *how)
        assert len(found["screened"]) + len(found["tried"]) == 20
        looked = [e["purpose"] for e in desk.racing("looks")["looks"]]
        assert looked.count("test") >= 6 and "tuning" in looked
        chosen = desk.racing("tune", "choose", "mine", "--trial", found["front"][0])
    versions = {}
    tuned = ["--recipe", chosen["recipe"], "--recipes", chosen["recipes"]]
    for name, recipe in (("plain", mine), ("tuned", tuned)):
        with desk.step(f"train the {name} recipe"):
            out = desk.home / "bundles" / name
            made = desk.racing(
                "train", "--source", "simulated", *recipe, "--until", TO, "--out", out
            )
            versions[name] = made["version"]
            assert "win_share_L4" in (out / "manifest.json").read_text(encoding="utf-8")
    for name, title in (("plain", "champion"), ("tuned", "challenger"), ("challenger", "champion")):
        with desk.step(f"gates: {name} to {title}"):
            what = desk.home / "bundles" / name if name in versions else name
            found = desk.racing("promote", what, "--to", title)
            assert found["gates"] and all(g["passed"] for g in found["gates"])
    assert found["champion"] == versions["tuned"]
    with desk.step("roll back, history"):
        assert desk.racing("rollback")["champion"] == versions["plain"]
        found = desk.racing("history")
        assert found["chain"] == "verified" and len(found["changes"]) == 4
        held = [(c["title"], c["version"]) for c in found["changes"]]
        assert held[0] == held[-1] == ("champion", versions["plain"])
