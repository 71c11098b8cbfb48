"""One vocabulary: a metric or a model that is added in one place is seen by every reader."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from racing_core import metrics
from racing_core.app import boards as terminal
from racing_core.errors import BadInput
from racing_core.features.matrix import build
from racing_core.folds import Races
from racing_core.lab import backtest as lab
from racing_core.lab import contest, notebook, tracking
from racing_core.lab.ablation import quick
from racing_core.lab.headline import parts
from racing_core.lab.walk import last_window, walk
from racing_core.market import YARDSTICKS
from racing_core.models.base import KINDS
from racing_core.models.linear import ConditionalLogit
from racing_core.pages import contest as contest_page
from racing_core.pages import plots
from racing_core.pages import report as pages
from racing_core.pipeline import Pipeline
from racing_core.records import to_json
from racing_core.simulate import simulate
from racing_core.vocabulary import STAGES, about, ordered, title


@dataclass
class Stubborn(ConditionalLogit):
    "Believes in the weight carried alone."

    kind = "stubborn_punter"

    def _reads(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        return ("weight_carried",)


def made() -> Pipeline:
    "The quick pipeline, and a model that no table has heard of, twice."
    base = quick()
    strange = {"stubborn_punter": Stubborn(), "nobody's model": Stubborn(l2=10.0)}
    return replace(base, fundamental=base.fundamental | strange, refit=False)


@pytest.fixture(scope="module")
def starts():
    return simulate(races=1300, seed=71).starts()


@pytest.fixture(scope="module")
def walked(starts):
    return lab.backtest(starts, starts["date"].max() - timedelta(150), make=made)


@pytest.fixture(scope="module")
def finding(walked):
    return lab.figures(walked, 1)


def shown(finding, tmp_path, predictions) -> dict[str, str]:
    "What each reader of a finding makes of it."
    file, _ = notebook.keep(tmp_path, finding, predictions)
    read = json.loads(file.read_text(encoding="utf-8"))
    return {
        "report": pages.comparison(finding),
        "order": pages.ranking(finding),
        "picture": plots.svg(plots.ladder(finding.boards)),
        "terminal": terminal.scoreboard(read | dict(report="r.html")),
        "json": file.read_text(encoding="utf-8"),
        "mlflow": " ".join(p.name for p in parts(to_json(finding))),
    }


def test_a_model_added_to_the_pipeline_is_in_every_table(finding, walked, tmp_path):
    said = shown(finding, tmp_path, walked.predictions)
    names = {"report": "stubborn punter", "order": "stubborn punter", "picture": "stubborn punter"}
    names |= {"terminal": "stubborn punter", "json": "stubborn_punter", "mlflow": "stubborn_punter"}
    assert {k: name in said[k] for k, name in names.items()} == dict.fromkeys(said, True)
    assert "nobody&#39;s model" in said["report"] and "nobody's model" in said["terminal"]
    assert "Believes in the weight carried alone" in said["report"]
    models = ["conditional_logit", "stubborn_punter", "nobody's model"]
    made_of = ["fundamental", "blend", "combined", "oracle"]
    assert list(finding.boards) == ["uniform", "price", *YARDSTICKS, *models, *made_of]


def test_a_metric_is_added_in_one_place(walked, tmp_path, monkeypatch):
    longest = metrics.Metric(
        "longest_price",
        "dearest winner",
        ".2f",
        "higher",
        lambda p, win, position, race, day: float(1 / p[win > 0].min()),
        "odds of the winner that was least foreseen",
    )
    monkeypatch.setitem(metrics.METRICS, longest.name, longest)
    finding = lab.figures(walked, 1)
    value = finding.boards["combined"]["longest_price"].value
    p = walked.predictions
    assert value == 1 / p.filter(p["win"] > 0)["combined"].min() > 5
    said = shown(finding, tmp_path, walked.predictions)
    assert "dearest winner" in said["report"] and f"{value:.2f}" in said["report"]
    assert "dearest winner" in said["terminal"] and f"{value:.2f}" in said["terminal"]
    assert json.loads(said["json"])["boards"]["combined"]["longest_price"]["value"] == value
    assert tracking.headline(to_json(finding))["longest_price"]["value"] == value
    monkeypatch.setitem(metrics.METRICS, longest.name, replace(longest, table="order"))
    assert "dearest winner" in pages.ranking(finding)
    assert "dearest winner" not in pages.comparison(finding)


def test_price_and_market_are_the_same_things_everywhere(finding, walked):
    p = walked.predictions
    share = 1 / p["odds"].to_numpy()
    race = p["race_id"].rle_id().to_numpy()
    assert np.allclose(p["price"], share / np.bincount(race, share)[race])
    assert not np.allclose(p["price"], p["market"])
    seen = p["win"].to_numpy(), p["position"].to_numpy(), race.astype(int), p["date"].to_numpy()
    for name in ("price", "market", "combined"):
        assert finding.boards[name] == metrics.summary(p[name].to_numpy(), *seen)
    for over in YARDSTICKS:
        gain = finding.boards["combined"]["r2"].value - finding.boards[over]["r2"].value
        assert finding.over[over].value == pytest.approx(gain)
    assert finding.delta_r2 == finding.over[finding.yardstick]


def test_nothing_is_renamed_on_the_way():
    "The words of former figures are gone from the package, the notebooks and the reports."
    root = Path(__file__).resolve().parent.parent
    files = [
        f for part in ("racing_core", "nbs", "reports", "serve") for f in (root / part).rglob("*")
    ]
    words = ("market_raw", "market_recalibrated", "delta_r2_ci")
    texts = [f for f in files if f.suffix in (".py", ".ipynb", ".j2", ".toml")]
    assert len(texts) > 100
    assert [f.name for f in texts if any(w in f.read_text(encoding="utf-8") for w in words)] == []


def test_a_title_is_found_though_no_model_was_imported():
    ask = "from racing_core.vocabulary import title; print(title('catboost_yetirank'))"
    run = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "CatBoost YetiRank"
    assert title("never heard of") == "never heard of" and about("never heard of") == ""
    assert all(title(kind) for kind in KINDS) and not set(KINDS) & set(STAGES)


def test_every_name_keeps_its_place_and_none_is_lost():
    names = ["combined", "b", "oracle", "uniform", "a", "market_shape", "market", "fundamental"]
    found = ordered([*names, "price"])
    first, last = ["uniform", "price", *YARDSTICKS], ["fundamental", "combined", "oracle"]
    assert found == [*first, "b", "a", *last]


def test_a_contestant_that_learnt_nothing_is_told(starts, tmp_path):
    entries = contest.Entries(
        {"logit": ConditionalLogit(l2=300), "idle": ConditionalLogit(l2=1e12)},
        {"exploded_logit": ConditionalLogit(l2=300, weights=(1.0, 0.6, 0.4))},
        3,
        make=lambda: replace(quick(), refit=False),
    )
    last = starts["date"].max()
    walked = contest.contest(starts, last - timedelta(150), None, entries, tmp_path)
    found = contest.figures(walked, 1)
    assert not found["idle"].learnt and found["logit"].learnt and found["price"].learnt
    table = contest_page.page(found)
    row = next(r for r in table.split("<tr") if ">idle<" in r)
    assert "learnt nothing" in row and table.count("learnt nothing") == 1
    read = json.loads(json.dumps(found.to_json())) | dict(report="r.html")
    lines = [x for x in terminal.standings(read).splitlines() if "learnt nothing" in x]
    assert len(lines) == 1 and lines[0].startswith("idle")


def test_one_walk_for_all(starts):
    "What the backtest, the ablation and the contest train, tune and test on."
    whole = Races.of(starts, build(starts), ["days_since_last"])
    from_day = starts["date"].max() - timedelta(150)
    here = np.unique(whole.race[whole.dates >= np.datetime64(from_day)])
    first, second = (whole.race == here[0]), (whole.race == here[1])
    y = replace(whole.y, win=np.where(second, 0.0, whole.y.win))
    races = replace(whole, y=y, odds=np.where(first, np.nan, whole.odds))
    (step,) = walk(races, from_day)
    assert step.left_out == {"no winner": 1, "not fully priced": 1}
    assert not step.test[first | second].any()
    assert (step.test == step.window.test & ~(first | second)).all()
    assert races.dates[step.past].max() < races.dates[step.test].min()
    assert races.dates[step.train].min() == races.dates.min(), "a short past is not cut shorter"
    days = races.dates.astype("datetime64[D]")
    oldest, older = (days < days[len(days) * k // 4] for k in (1, 2))
    old = days - 1000 * oldest - 500 * older  # a past of years
    long = next(walk(replace(races, dates=old), from_day))
    assert old[long.train].min() > old[long.early].max(), "what has no past trains no model alone"
    assert old[long.early].min() == old.min() and not (long.early & long.past).any()
    own, inner = step.used(races)
    assert (own.dates[inner.tune] == races.dates[step.tune]).all() and not (first & step.past).any()

    last = last_window(races)
    assert not last.test.any() and races.dates[last.past].max() == races.dates.max()
    assert last.past[first].all() and not last.past[second].any(), "prices are not asked for"
    for lost in (step.train, step.tune, step.test):
        with pytest.raises(BadInput, match="no market"):
            next(walk(replace(races, odds=np.where(lost, np.nan, races.odds)), from_day))
