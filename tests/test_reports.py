"""The backtest report from outside: run as a user runs it, on small worlds, and read what it leaves behind."""

import json
import re
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import nbformat
import polars as pl
import pytest

from racing_core.config import home
from racing_core.data.base import Parsed, Quarantine
from racing_core.data.ingest import ingest_world
from racing_core.data.store import Store, write
from racing_core.errors import BadInput, Leak, RacingError
from racing_core.lab import backtest as lab
from racing_core.lab import notebook, tracking
from racing_core.lab.ablation import quick
from racing_core.pages import report as reports
from racing_core.simulate import simulate

REPORTS = Path(__file__).resolve().parent.parent / "reports"
NOTEBOOK = REPORTS / "10_backtest.ipynb"
FROM, TO = "2019-05-01", "2019-08-31"
PROMISED = {
    "races",
    "starters",
    "uniform_logloss",
    "boards",
    "delta_r2",
    "by_year",
    "left_out",
}
PROMISED |= {"test_looks", "tripwires", "seconds", "peak_mb"}
WANTED = [
    "Backtest of a simulated world",
    "first look",
    "the price recalibrated",
    "oracle",
    "of attainable",
    "correcting the market",
    "optimistic",
]
WANTED += ["Where the rows went", "bet_everything"]
ORDER = [
    "uniform",
    "price",
    "market",
    "conditional logit",
    "LightGBM LambdaRank",
    "softmax trees",
    "fundamental",
    "blend",
    "combined",
    "oracle",
]


def restated(world) -> Parsed:
    "The world without its truth, the winners' body weights edited after the race."
    won = (
        world.tables["results"]
        .filter(pl.col("position") == 1)
        .select("race_id", "runner_no", won=True)
    )
    runners = world.tables["runners"].join(
        won, on=["race_id", "runner_no"], how="left", maintain_order="left"
    )
    runners = runners.with_columns(
        body_weight_kg=pl.col("body_weight_kg") + 30 * pl.col("won").fill_null(False)
    ).drop("won")
    return Parsed(
        world.tables | {"runners": runners},
        Quarantine().faults,
        dict(source="restated", rows_read=len(runners)),
    )


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    "A home with a simulated world, and the same as if it were real and leaked."
    where, world = (
        home(tmp_path_factory.mktemp("reports"), env={}),
        simulate(races=1900, seed=4, inefficiency=0.2),
    )
    ingest_world(world, where)
    write(Store(where, "restated"), restated(world))
    with pytest.MonkeyPatch.context() as env:
        env.delenv("RACING_TRACKING_URI", raising=False)
        env.setenv("OMP_NUM_THREADS", "1")  # the suite runs in several processes
        yield where


def asked(house, source: str, **more) -> dict:
    return dict(source=source, home=str(house.root), test_from=FROM, test_to=TO) | more


@pytest.fixture(scope="module")
def page(house):
    "The report on the simulated world, and the steps that were told."
    steps = []
    file = reports.publish(
        NOTEBOOK,
        house.runs / "sim",
        asked(house, "simulated"),
        lambda step, done: steps.append((step, done)),
    )
    return file, steps


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def test_the_page_holds_what_a_reader_wants(page):
    text = page[0].read_text(encoding="utf-8")
    assert [what for what in WANTED if what not in text] == []
    order = [text.index(f'<td class="text">{name}<small>') for name in ORDER]
    assert order == sorted(order)
    assert text.count("<svg") == 9, "six pictures, three of them also for a narrow page"


def test_the_page_shows_no_code_and_fetches_nothing(page):
    text = page[0].read_text(encoding="utf-8")
    assert not re.search(r"reports\.|import |Traceback|… |%\)</pre>|Warning", text)
    assert not re.search(
        r"""(src|href)\s*=\s*["']?(https?:)?//|@import|<script|url\((?!#|'#|"#)""", text
    )


def test_the_figures_are_kept_for_programs(page):
    found = result(page[0].parent)
    assert found.keys() >= PROMISED
    assert found["test_looks"] == 1 and found["tripwires"]
    assert list(found["boards"])[:3] == ["uniform", "price", "market"]
    assert found["boards"]["combined"]["r2"].keys() == {"value", "low", "high"}
    low, high = found["placebo"]["drawn_roi_range"]
    assert (
        low <= found["placebo"]["drawn_roi"] <= high
        and found["placebo"]["own_bets"] == 0
        and found["placebo"]["draws"] <= 20
    )
    assert "Placebo" in page[0].read_text(encoding="utf-8")
    rows = pl.read_parquet(page[0].parent / "predictions.parquet")
    assert rows.height == found["starters"] and rows["race_id"].n_unique() == found["races"]
    assert not [p.name for p in page[0].parent.iterdir() if p.name.startswith(".")], (
        "no draft is left"
    )


def test_the_executed_notebook_is_kept_with_its_parameters(page):
    nb = nbformat.read(page[0].with_suffix(".ipynb"), 4)
    injected = [c.source for c in nb.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert len(injected) == 1 and FROM in injected[0] and str(page[0].parent) in injected[0]


def test_progress_runs_forward_through_the_steps_of_the_long_cell(page):
    steps, shares = zip(*page[1], strict=True)
    assert list(shares) == sorted(shares) and shares[-1] == 1
    assert any("lightgbm_softmax" in s for s in steps)


def test_the_run_is_logged(house, page):
    import mlflow

    client = mlflow.MlflowClient(house.tracking_uri)
    account = tracking.open_run(page[0].parent)
    run = client.get_run(tracking.mirrored(house, account)[0])
    assert run.info.status == "FINISHED" and run.data.tags["racing.run"] == account.id
    r2 = result(page[0].parent)["boards"]["combined"]["r2"]
    for end, name in (("value", ""), ("low", "_low"), ("high", "_high")):
        assert run.data.metrics[f"r2{name}"] == pytest.approx(r2[end])
    kept = house.runs / ".mlflow" / run.info.run_id / "artifacts"
    files = {f.name for f in kept.iterdir()}
    assert {"result.json", "predictions.parquet", "run.json", "10_backtest.ipynb"} <= files
    assert {"environment.txt", "features.json", "reconciliation.json", "ranks.png"} <= files
    first = run.data.tags["racing.importances"].split(", ")
    assert len(first) == 10 and set(first) <= account.features.keys()
    assert 14 <= len(run.data.metrics) <= 45 and run.inputs.dataset_inputs
    below = client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    )
    names = {r.info.run_name: r for r in below}
    assert {"model=lightgbm_softmax", f"fold={FROM[:4]}"} <= names.keys()
    assert names["model=market"].data.metrics.keys() >= {"r2", "r2_low", "r2_high"}
    above = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert above.info.run_name == "best_v1"
    assert account.id in page[0].read_text(encoding="utf-8")


def test_a_leak_on_real_results_fails_the_run_by_name_and_keeps_its_figures(house):
    tracking.look(
        house, "restated", date(2019, 8, 1), date(2019, 12, 31), datetime(2026, 1, 1, tzinfo=UTC)
    )
    out = house.runs / "leaking"
    with pytest.raises(Leak, match="top1") as raised:
        reports.publish(NOTEBOOK, out, asked(house, "restated", override="auc"))
    assert "Traceback" not in str(raised.value) and "\n" not in str(raised.value)
    found = result(out)
    assert "top1" in found["tripped"] and found["test_looks"] == 2, (
        "an overlapping window was looked at before"
    )
    text = (out / "10_backtest.html").read_text(encoding="utf-8")
    assert (
        "TRIPPED" in text
        and 'class="failed"' in text
        and "look number 2" in text
        and "Do not believe it yet" in text
    )
    assert "oracle" not in found["boards"] and "of attainable" not in text


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (dict(test_form=FROM), "test_form"),
        (dict(override=["top2"]), "top2"),
        (dict(test_from="May"), "May"),
        (dict(source="nowhere"), "nowhere"),
    ],
    ids=["parameter", "wire", "date", "source"],
)
def test_what_cannot_be_run_is_refused_in_a_sentence(house, tmp_path, more, word):
    with pytest.raises(BadInput, match=word):
        reports.publish(NOTEBOOK, tmp_path / "out", asked(house, "simulated") | more)
    assert not (tmp_path / "out" / "result.json").exists()


def small(folder: Path, *sources: str) -> Path:
    "A notebook of these cells."
    kernel = dict(kernelspec=dict(name="python3", language="python", display_name="Python 3"))
    nbformat.write(
        nbformat.v4.new_notebook(
            metadata=kernel, cells=[nbformat.v4.new_code_cell(s) for s in sources]
        ),
        folder / "small.ipynb",
    )
    return folder / "small.ipynb"


def test_the_kernel_is_this_interpreter_whatever_is_called_python3(tmp_path, monkeypatch):
    other = tmp_path / "share" / "kernels" / "python3"
    other.mkdir(parents=True)
    (other / "kernel.json").write_text(
        json.dumps(
            dict(
                argv=["/nowhere/python", "-f", "{connection_file}"],
                display_name="another",
                language="python",
            )
        )
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    page = reports.publish(
        small(tmp_path, "import sys; print(sys.executable)"), tmp_path / "out", {}
    )
    assert sys.executable in page.read_text(encoding="utf-8")


def test_the_whole_run_has_a_deadline(tmp_path):
    with pytest.raises(RacingError, match="did not finish"):
        notebook.execute(
            small(tmp_path, "import time; time.sleep(60)"), tmp_path / "out", {}, timeout=2
        )


def test_a_failure_that_is_not_ours_says_where(tmp_path):
    with pytest.raises(RacingError, match=r"ZeroDivisionError.*In \[2\] of small\.ipynb"):
        reports.publish(small(tmp_path, "x = 0", "1 / x"), tmp_path / "out", {})
    assert "ZeroDivisionError" in (tmp_path / "out" / "small.html").read_text(encoding="utf-8")


FEW = dict(only="lightgbm_lambdarank,logistic_regression", folds=3, config="zoo.toml")
ZOO = "[lightgbm_lambdarank]\ntrees = 8\nthreads = 1\n[logistic_regression]\n"
STUDIES = {  # notebook to parameters, words of its headline, pictures
    "30_base_models": (FEW | dict(beyond=False), "Base models on a simulated world", 8),
    "31_stack_and_calibration": (FEW, "the ensemble comes to", 7),
    "32_return": ({}, "Return on investment of a simulated world", 4),
    "33_feature_families": (dict(top=4), "linear models reach an R²", 4),
    "34_drift_study": ({}, "features moved further", 4),
}


@pytest.fixture(scope="module")
def small_house(tmp_path_factory):
    "A home with a small world, and the predictions of a walk through its end."
    where, world = home(tmp_path_factory.mktemp("studies"), env={}), simulate(races=500, seed=4)
    ingest_world(world, where)
    starts = Store(where, "simulated").starts()
    last = starts["date"].max()
    walked = lab.backtest(starts, last - timedelta(40), make=quick)
    with tracking.tracked(where, "backtest", "simulated", dict(recipe="quick")) as run:
        notebook.keep(run.folder, lab.figures(walked, 1), walked.predictions)
    (where.root / "zoo.toml").write_text(ZOO)
    with pytest.MonkeyPatch.context() as env:
        env.delenv("RACING_TRACKING_URI", raising=False)
        env.setenv("OMP_NUM_THREADS", "1")
        yield where, last - timedelta(40), run.id


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_a_report_that_a_stranger_can_read(name, small_house):
    where, first, walk = small_house
    more, words, pictures = STUDIES[name]
    asked = dict(home=str(where.root)) | more
    asked |= dict(run=walk) if name == "32_return" else dict(test_from=str(first))
    asked |= dict(config=str(where.root / "zoo.toml")) if "config" in more else {}
    log = notebook.execute(REPORTS / f"{name}.ipynb", where.runs / name, asked)
    text = reports.paged(log).read_text(encoding="utf-8")
    assert words in text and text.count("<svg") == pictures, text.count("<svg")
    assert text.index("<h1") < text.index('class="lead"') < text.index("<svg")
    for wanted in ("What to conclude", "How it was made", "commit", "versions", "95%"):
        assert wanted in text, wanted
    assert not re.search(r"import |Traceback|Warning|… |class=\"failed\"", text)
    assert not re.search(
        r"""(src|href)\s*=\s*["']?(https?:)?//|@import|<script|url\((?!#|'#|"#)""", text
    )
    run, found = tracking.open_run(where.runs / name), result(where.runs / name)
    assert run.state == "finished" and run.figures and run.id in text and found
    told = nbformat.read(REPORTS / f"{name}.ipynb", 4).cells[0]
    assert told.metadata.tags == ["parameters"]
    assert all("  # " in line for line in told.source.splitlines()), "each one is explained"
    assert (run.looks is None) == (name == "30_base_models"), "the past alone needs no look"


def test_base_models_never_read_the_window_that_stays_unseen(small_house):
    where, first, _ = small_house
    rows = pl.read_parquet(where.runs / "30_base_models" / "predictions.parquet")
    assert rows["date"].max() < first and rows["lightgbm_lambdarank"].is_between(0, 1).all()


def test_ways_of_staking_are_asked_of_a_walk_that_there_is(tmp_path):
    where = home(tmp_path, env={})
    with pytest.raises(BadInput, match="no backtest to bet on"):
        notebook.execute(REPORTS / "32_return.ipynb", tmp_path / "out", dict(home=str(where.root)))
