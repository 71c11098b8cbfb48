"""In a market that knows everything nobody may claim an edge oftener than chance does: many small worlds."""

import os
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pytest
from scipy.stats import binom

from racing_core import starts as st
from racing_core.fields import field_size
from racing_core.lab.ablation import quick
from racing_core.lab.backtest import backtest, figures
from racing_core.metrics import delta_r2
from racing_core.simulate import simulate

WORLDS = int(os.environ.get("FAIR_WORLDS", "3"))  # 40 in `make nightly`


@dataclass(frozen=True)
class World:
    "What one fair world made of the pipeline."

    claimed: bool  # an edge of `combined`, over the stronger yardstick
    opened: bool  # was the correction let speak?
    blended: bool  # an edge of `blend`, which nothing withholds, over the market
    covered: bool  # does the blend's interval hold what its gain is worth in truth?


def world(seed: int) -> World:
    starts = simulate(races=1900, seed=seed, inefficiency=0.0).starts()
    walked = backtest(starts, starts["date"].max() - timedelta(180), make=quick)
    found, p = figures(walked, 1), walked.predictions
    race, day = st.race_codes(p), p["date"].to_numpy()
    blend, market, true_p, win = (p[c].to_numpy() for c in ("blend", "market", "true_p", "win"))
    gain = delta_r2(blend, market, win, race, day)
    worth = true_p @ np.log(blend / market) / np.log(field_size(race)).sum()
    return World(
        found.delta_r2.low > 0,
        not found.corrections[0].withheld,
        gain.low > 0,
        gain.low <= worth <= gain.high,
    )


def most(chance: float, worlds: int) -> int:
    "So often luck does it in 99 of 100 nights."
    return int(binom.ppf(0.99, worlds, chance))


@pytest.fixture(scope="module")
def worlds() -> list[World]:
    return [world(seed) for seed in range(500, 500 + WORLDS)]


def test_an_edge_is_claimed_no_oftener_than_chance_allows(worlds):
    told = {k: sum(getattr(w, k) for w in worlds) for k in ("claimed", "opened", "blended")}
    print(f"{told} of {len(worlds)} fair worlds")
    assert max(told.values()) <= most(0.025, len(worlds)), told
    assert told["claimed"] <= told["opened"], "what is withheld claims nothing"


def test_the_interval_covers_as_often_as_it_says(worlds):
    missed = sum(not w.covered for w in worlds)
    print(f"the 95% interval covered the truth in {len(worlds) - missed} of {len(worlds)} worlds")
    assert missed <= most(0.05, len(worlds)), missed
