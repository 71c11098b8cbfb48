"""What each family adds, from outside: the sets, the figures of a small world, and a leak in one family."""

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from racing_core import starts as st
from racing_core.errors import BadInput
from racing_core.features.matrix import names
from racing_core.features.registry import FAMILIES, features
from racing_core.lab.ablation import ablate, columns, sets
from racing_core.lab.backtest import backtest
from racing_core.metrics import mcfadden_r2
from racing_core.models.linear import ConditionalLogit
from racing_core.pages.ablation import page
from racing_core.pipeline import Pipeline
from racing_core.simulate import simulate


@pytest.fixture(scope="module")
def starts():
    return simulate(races=1900, seed=21).starts()  # more than a year before the test


@pytest.fixture(scope="module")
def test_from(starts) -> date:
    return starts["date"].max() - timedelta(120)


@pytest.fixture(scope="module")
def found(starts, test_from):
    return ablate(starts, test_from)


def test_the_sets_are_the_base_with_each_family_and_all_without_each():
    assert {f.family for f in features()} == set(FAMILIES)
    wanted = {frozenset({"historical"}), frozenset(FAMILIES)}
    wanted |= {frozenset({"historical", f}) for f in FAMILIES} | {
        frozenset(FAMILIES) - {f} for f in FAMILIES
    }
    assert {frozenset(f) for f in sets().values()} == wanted and len(sets()) == len(wanted) == 9


def test_a_set_reads_the_columns_of_its_families_and_no_other():
    family = {f.name: f.family for f in features()}
    for families in sets().values():
        assert list(columns(families)) == [n for n in names() if family[n] in families]


def test_one_row_for_each_set_with_its_number_of_features(found):
    assert [r.set for r in found.rows] == list(sets())
    assert [r.features for r in found.rows] == [len(columns(f)) for f in sets().values()]
    assert np.isfinite([(*r.r2, *r.change, *r.gain) for r in found.rows]).all()


@pytest.mark.parametrize("what", ["r2", "change", "gain"])
def test_values_lie_in_their_intervals(found, what):
    estimates = [getattr(r, what) for r in found.rows]
    assert all(e.low <= e.value <= e.high for e in estimates)


def test_all_families_are_what_the_backtest_finds_with_the_same_models(starts, test_from, found):
    def make() -> Pipeline:
        return Pipeline(
            {"conditional_logit": ConditionalLogit(l2=200)},
            {"conditional_logit": ConditionalLogit(l2=3000)},
        )

    p = backtest(starts, test_from, make=make).predictions
    r2 = {
        name: mcfadden_r2(p[name].to_numpy(), p["win"].to_numpy(), st.race_codes(p))
        for name in ("fundamental", "market", "combined")
    }
    row = found["all"]
    assert row.races == p["race_id"].n_unique()
    assert row.r2.value == pytest.approx(r2["fundamental"], abs=1e-6)
    assert row.gain.value == pytest.approx(r2["combined"] - r2["market"], abs=1e-6)


def test_a_leak_in_one_family_shows_as_the_gain_of_that_family(starts, test_from, found):
    """The mark of gear worn for the first time is read by the semantic family only; here a third of
    the winners get it."""
    marked = (pl.Series(st.winners(starts)) > 0) & pl.Series(
        np.random.default_rng(0).random(len(starts)) < 1 / 3
    )
    told = ablate(
        starts.with_columns(gear=pl.when(marked).then(pl.lit("B1")).otherwise(pl.lit("B"))),
        test_from,
    )
    assert told["historical + semantic"].gain.low > 0.05 and told["all"].gain.low > 0.05
    assert told["all − semantic"].change.high < -0.05
    for name, families in sets().items():
        if "semantic" not in families:
            moved = abs(told[name].r2.value - found[name].r2.value)
            assert moved < 0.02 and told[name].gain.value < 0.02, name


def test_progress_runs_forward_and_names_each_set(starts, test_from):
    steps = []

    def told(step: str, done: float) -> None:
        steps.append((step, done))
        if step == "historical + weather":
            raise StopIteration

    with pytest.raises(StopIteration):
        ablate(starts, test_from, progress=told)
    assert [s for s, _ in steps] == ["features", "historical", "historical + weather"]
    assert [d for _, d in steps] == sorted(d for _, d in steps)


def test_without_prices_it_is_refused(starts, test_from):
    with pytest.raises(BadInput, match="no market"):
        ablate(starts.with_columns(odds=pl.lit(None, pl.Float64)), test_from)


def test_the_page_names_every_set(found):
    assert [name for name in sets() if name not in page(found)] == []
