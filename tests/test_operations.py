"""Backtest, bundle, titles and training from outside, on simulated and on real results."""

import json
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from racing_core.config import Home
from racing_core.data.ingest import ingest_world
from racing_core.errors import BadInput, Tampered
from racing_core.lab.backtest import backtest, figures, gain_by_year
from racing_core.models.linear import ConditionalLogit
from racing_core.pipeline import Pipeline
from racing_core.release import bundle, registry
from racing_core.release.training import train
from racing_core.simulate import simulate

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def small() -> Pipeline:
    return Pipeline(
        {"conditional_logit": ConditionalLogit()}, {"conditional_logit": ConditionalLogit(l2=5000)}
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    where = Home(tmp_path_factory.mktemp("home"), "")
    ingest_world(simulate(races=2000, seed=303), where)
    return where


@pytest.fixture(scope="module")
def made(home):
    folder = home.root / "made"
    train(home, "simulated", folder, NOW, make=small)
    return folder


def test_the_walk_is_yearly_and_every_test_race_is_predicted_once():
    starts = simulate(races=3200, seed=304).starts()
    last = starts["date"].max()
    found = backtest(starts, last - timedelta(500), make=small)
    assert len(found.windows) == len(found.pipelines) == 2
    keys = found.predictions.select("race_id", "runner_no")
    assert keys.is_unique().all() and found.predictions["date"].min() >= last - timedelta(500)
    finding = figures(found, 1)
    assert finding.by_year == gain_by_year(found.predictions, finding.yardstick)
    assert sum(y.races for y in finding.by_year) == finding.races
    assert finding.simulated and finding.share_of_attainable and finding.attainable_delta_r2 > 0
    json.dumps(finding.to_json(), allow_nan=False)


def test_races_that_cannot_be_compared_are_counted_not_dropped_in_silence():
    starts = simulate(races=1600, seed=305).starts()
    last = starts["date"].max()
    victim = starts.filter(pl.col("date") > last - timedelta(100))["race_id"].unique().sort()
    unpriced = starts.with_columns(
        odds=pl.when((pl.col("race_id") == victim[0]) & (pl.col("runner_no") == 1))
        .then(None)
        .otherwise("odds")
    )
    void = unpriced.with_columns(
        status=pl.when(pl.col("race_id") == victim[1])
        .then(pl.lit("did_not_finish").cast(starts.schema["status"]))
        .otherwise("status"),
        position=pl.when(pl.col("race_id") == victim[1]).then(None).otherwise("position"),
    )
    found = backtest(void, last - timedelta(100), make=small)
    assert found.left_out == {"no winner": 1, "not fully priced": 1}


def test_the_test_window_cannot_reach_the_fit():
    "Scrambling every result of the test window changes no prediction in it."
    starts = simulate(races=1600, seed=306).starts()
    day = starts["date"].max() - timedelta(
        3
    )  # the last race days, so that no feature of the window may see its results
    later = starts["date"] >= day
    one = backtest(starts, day, make=small).predictions
    changed = starts.with_columns(
        time_s=pl.when(later).then(99.0).otherwise("time_s"),
        margin_lengths=pl.when(later).then(0.0).otherwise("margin_lengths"),
    )
    other = backtest(changed, day, make=small).predictions
    first = one["date"].min()
    assert one.filter(date=first)["combined"].equals(other.filter(date=first)["combined"])


@pytest.mark.parametrize("damage", ["change", "remove", "add"])
def test_a_tampered_bundle_is_refused_with_the_name_of_the_file(made, tmp_path, damage):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    victim = next((copy / "history").glob("horse.parquet"))
    if damage == "change":
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(bytes(data))
    elif damage == "remove":
        victim.unlink()
    else:
        victim = copy / "pipeline" / "stowaway.txt"
        victim.write_text("hello")
    with pytest.raises(Tampered, match=victim.name):
        bundle.read(copy)


def test_a_bundle_of_features_that_are_no_longer_made_is_refused(made, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest = bundle.sealed(manifest | {"features": ["phase_of_the_moon"]})
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="phase_of_the_moon"):
        bundle.read(copy)


def test_promote_and_roll_back(home, made):
    first = registry.promote(home, made, "champion", NOW)["champion"]
    other = home.root / "other"
    until = date.fromisoformat(bundle.manifest_of(made)["trained_until"]) - timedelta(60)
    second = train(home, "simulated", other, NOW, until=until, make=small)["version"]
    assert registry.promote(home, other, "champion", NOW)["champion"] == second != first
    assert registry.rollback(home, NOW)["champion"] == first
    assert bundle.read(registry.locate(home, "champion")).manifest["version"] == first
    with pytest.raises(BadInput, match="nothing to roll back to"):
        registry.rollback(home, NOW)


def test_hong_kong_fundamentals_and_market(hong_kong):
    """A year that is not the reserved test year, with the linear model alone: the market as
    published, fundamentals well above chance."""
    found = backtest(hong_kong, date(2021, 1, 1), date(2021, 12, 31), make=small)
    result = figures(found, 0)
    assert result.races > 800
    assert 0.185 < result.boards["price"]["r2"].value < 0.20
    assert result.boards["fundamental"]["r2"].value > 0.14
    assert abs(result.delta_r2.value) < 0.003
    assert not result.tripped
