"""Calibrators from outside: what each must keep, whatever it was fitted on; none is chosen by chance."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from racing_core import calibration as cal
from racing_core.errors import BadInput
from racing_core.metrics import logloss, uniform
from racing_core.odds import softmax

MAKERS = {**cal.CANDIDATES, "bends and size": lambda: cal.RaceSoftmax(bends=3, sized=True)}


def season(races=300, seed=0, spread=1.0, dead_heats=0.0, least=1):
    "True probabilities, shares of the win (a few dead heats), races, days."
    rng = np.random.default_rng(seed)
    race = np.repeat(np.arange(races), rng.integers(least, 15, races))
    utility = rng.normal(0, spread, len(race))
    finish = utility + rng.gumbel(size=len(race))
    best = np.full(races, -np.inf)
    np.maximum.at(best, race, finish)
    first = (finish == best[race]) | (
        (rng.random(len(race)) < dead_heats) & (finish > best[race] - 1)
    )
    return softmax(utility, race), first / np.bincount(race, first)[race], race, race // 8


seasons = st.builds(
    season,
    races=st.integers(1, 40),
    seed=st.integers(0, 10_000),
    spread=st.floats(0.01, 4),
    dead_heats=st.sampled_from([0.0, 0.3]),
)


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=40, deadline=None)
@given(learnt=seasons, met=seasons, hopeless=st.booleans())
def test_a_share_of_one_in_the_same_order_and_nobody_without_a_chance(name, learnt, met, hopeless):
    p, win, race, _ = learnt
    q, _, other, _ = met
    if hopeless:  # a probability that was rounded to nothing
        q = np.where(np.random.default_rng(0).random(len(q)) < 0.2, 0, q)
        q = np.where(np.bincount(other, q)[other] > 0, q, 1)
        q = q / np.bincount(other, q)[other]
    fitted = MAKERS[name]().fit(p, win, race)
    r = fitted.apply(q, other)
    assert np.allclose(np.bincount(other, r), 1, rtol=0, atol=1e-12)
    assert r.min() > 0.9 * cal.FLOOR / 1.1
    order = np.lexsort((q, other))
    down = np.diff(r[order]) < -1e-12
    assert not (down & (np.diff(other[order]) == 0)).any(), "somebody was overtaken"
    assert np.array_equal(
        cal.from_dict(json.loads(json.dumps(fitted.to_dict()))).apply(q, other), r
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), name=st.sampled_from(list(MAKERS)))
def test_no_fit_sees_the_order_of_runners(seed, name):
    p, win, race, _ = season(60, seed)
    shuffle = np.lexsort((np.random.default_rng(seed).random(len(race)), race))
    one, other = (
        MAKERS[name]().fit(p[rows], win[rows], race).apply(p, race)
        for rows in (np.arange(len(race)), shuffle)
    )
    assert np.allclose(one, other, atol=2e-4)


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_calibrated_stays_nearly_as_it_is(name):
    p, win, race, _ = season(4000, 1, dead_heats=0.0)
    unseen, won, code, _ = season(4000, 2)
    q = MAKERS[name]().fit(p, win, race).apply(unseen, code)
    assert np.average(np.abs(q - unseen), weights=unseen) < 0.02
    assert abs(logloss(q, won, code) - logloss(unseen, won, code)) < 0.005


@pytest.mark.parametrize("name", [n for n in MAKERS if n != "identity"])
def test_a_forecaster_too_sure_of_itself_is_set_right_on_unseen_races(name):
    p, win, race, _ = season(3000, 3)
    unseen, won, code, _ = season(3000, 4)
    wrong = softmax(1.8 * np.log(unseen), code)
    q = MAKERS[name]().fit(softmax(1.8 * np.log(p), race), win, race).apply(wrong, code)
    assert logloss(unseen, won, code) <= logloss(q, won, code) + 0.002
    lost = logloss(wrong, won, code) - logloss(unseen, won, code)
    assert (
        logloss(q, won, code) - logloss(unseen, won, code)
        < (0.5 if name in ("isotonic", "platt") else 0.1) * lost
    )


def test_bends_mend_what_one_slope_cannot():
    "A crowd that overrates longshots only."
    p, win, race, day = season(6000, 5, least=6)
    bent = cal.shares(p + 0.03, race)
    choice = cal.choose(bent, win, race, day)
    assert choice.name == "bends", choice.table
    slopes = np.array(choice.calibrator.slopes)
    assert slopes[0] > slopes[-1] > 0.8, "longshots are spread most"


def test_a_slope_by_field_size_is_found():
    p, win, race, day = season(6000, 6, least=3)
    size = np.bincount(race)[race]
    choice = cal.choose(softmax(np.log(p) * np.where(size > 8, 0.6, 1.4), race), win, race, day)
    c = choice.calibrator
    assert choice.name == "size" and c.by_size > 0 and c.sizes == (3, 14)
    pair, field = np.array([0.2, 0.8]), np.zeros(2, int)
    at_three = c.slopes[0] + c.by_size * (np.log(3) - c.centre)
    assert np.allclose(c.apply(pair, field), softmax(at_three * np.log(pair), field)), (
        "nothing is extrapolated to fields it has not seen"
    )


def test_freedom_is_not_rewarded_for_itself():
    """On a hundred races of a calibrated forecaster the stiff ones win; isotonic steps fit what
    they saw and nothing else."""
    unseen, won, code, _ = season(2000, 50)
    names, seen_gain, fold_gain, cost = [], [], [], []
    for seed in range(10):
        p, win, race, day = season(100, seed)
        choice = cal.choose(p, win, race, day)
        names.append(choice.name)
        seen_gain.append(
            logloss(p, win, race)
            - logloss(cal.Isotonic().fit(p, win, race).apply(p, race), win, race)
        )
        fold_gain.append(choice.table.filter(name="isotonic")["gain"][0])
        cost.append(
            logloss(choice.calibrator.apply(unseen, code), won, code) - logloss(unseen, won, code)
        )
    assert min(seen_gain) > 0 > np.mean(fold_gain)
    assert set(names) <= {"identity", "temperature"} and names.count("identity") >= 7, names
    assert max(cost) < 0.02


def test_a_fold_holds_whole_days(monkeypatch):
    p, win, race, day = season(
        60, 0, least=6
    )  # a walkover's probability of one would tell no race from another
    seen = []

    class Spy(cal.Calibrator):
        kind = "spy"

        def _fit(self, p, win, race):
            seen.append(set(p.tolist()))

    monkeypatch.delitem(cal.KINDS, "spy")
    choice = cal.choose(p, win, race, day, {"spy": Spy}, folds=4)
    assert len(seen) == 5 and choice.name == "spy"
    for kept in seen[:-1]:  # a day is seen whole or not at all
        inside = np.array([x in kept for x in cal.shares(p, race)])
        assert set(np.bincount(day, inside) / np.bincount(day)) == {0.0, 1.0}
    assert all(sum(x in kept for kept in seen[:-1]) == 3 for x in seen[-1])


def test_the_uniform_cannot_be_calibrated():
    _, win, race, day = season(400, 7)
    for make in MAKERS.values():
        assert np.allclose(
            make().fit(uniform(race), win, race).apply(uniform(race), race), uniform(race)
        )


@pytest.mark.parametrize(
    "call",
    [
        lambda: cal.Platt().fit([0.5, 0.5], [0, 0], [0, 0]),
        lambda: cal.Isotonic().fit([0.5, 0.5], [1], [0, 0]),
        lambda: cal.Calibrator().apply([0.5, -0.5], [0, 0]),
        lambda: cal.Calibrator().apply([0.0, 0.0], [0, 0]),
        lambda: cal.from_dict({"kind": "magic"}),
        lambda: cal.choose(*season(10, 0), folds=9),
        lambda: cal.choose(*season(10, 0), folds=1),
    ],
    ids=["undecided", "shape", "negative", "nobody", "kind", "days", "fold"],
)
def test_what_cannot_be_used_is_refused(call):
    with pytest.raises(BadInput):
        call()
