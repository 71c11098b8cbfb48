"""Betting from outside: chances of places and pools, stakes under limits, what may come back, what was paid."""

import json
from datetime import UTC, date, datetime
from itertools import permutations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from racing_core.app import main as cli
from racing_core.app.mainjob import next_week
from racing_core.betting import backtest
from racing_core.betting.exotics import POOLS, learn_powers
from racing_core.betting.settlement import settle_win
from racing_core.config import home as home_of
from racing_core.data.store import Store
from racing_core.errors import BadInput
from racing_core.lab.places import evidence
from racing_core.models.linear import ConditionalLogit
from racing_core.pipeline import Pipeline
from racing_core.release import registry
from racing_core.release.bundle import read
from racing_core.release.training import train
from racing_core.serving import bets
from racing_core.serving.answer import Prediction, Ranked
from racing_core.serving.contract import EXAMPLE, Card
from racing_core.serving.places import (
    HARVILLE,
    NO_POWERS,
    exotics,
    place_probabilities,
    places_paid,
    with_places,
)
from racing_core.serving.predictor import Predictor
from racing_core.starts import winners

weights = st.lists(st.floats(0.01, 1), min_size=4, max_size=9)
fields = weights.map(lambda w: np.array(w) / sum(w))
powers_of = st.tuples(*[st.floats(0.2, 1.3)] * 3).map(lambda later: (1.0, *later))


def enumerated(p, powers, k):
    "Chance of each order of the first k, multiplied out runner by runner."
    found = {}
    for order in permutations(range(len(p)), k):
        left, product = set(range(len(p))), 1.0
        for runner, power in zip(order, powers, strict=False):
            product *= p[runner] ** power / sum(p[i] ** power for i in left)
            left.discard(runner)
        found[order] = product
    return found


def race(odds, p, place_odds=None, powers=(1.0, 0.8, 0.65, 0.6), jurisdiction="HK", **more):
    "A card with these prices and the answer of a model that gives these chances."
    one = {k: v for k, v in EXAMPLE["runners"][0].items() if k != "odds"}
    prices = enumerate(zip(odds, place_odds or [None] * len(odds), strict=True), 1)
    runners = [
        one | dict(runner_no=i, horse_id=f"H{i}", odds=o, place_odds=q) for i, (o, q) in prices
    ]
    card = Card.model_validate(EXAMPLE | dict(jurisdiction=jurisdiction, runners=runners) | more)
    priced = all(r.odds for r in card.starters)
    ranked = [
        Ranked(
            rank=1,
            runner_no=r.runner_no,
            horse_id=r.horse,
            horse_name=None,
            win_probability=q,
            fair_odds=1 / q,
            odds=r.odds,
            edge=q * r.odds - 1 if priced else None,
            known_horse=True,
            scored_by={},
        )
        for r, q in zip(card.starters, p, strict=True)
    ]
    stage = "combined" if priced else "fundamental"
    answer = Prediction(
        race_id="r", model="m", version="1", stage=stage, ranked=ranked, warnings=["a warning"]
    )
    return card, with_places(answer, card, powers)


# --- chances ---------------------------------------------------------------------------------------------------------
@given(fields, powers_of, st.integers(1, 4))
@settings(deadline=None)
def test_place_chances_are_chances_sum_to_the_places_and_rise_with_the_win(p, powers, places):
    chance = place_probabilities(p, powers, places)
    assert ((chance >= 0) & (chance <= 1 + 1e-12)).all()
    assert chance.sum() == pytest.approx(places)
    assert (np.diff(chance[np.argsort(p)]) >= -1e-12).all()
    assert (chance >= p - 1e-12).all()


@given(fields.filter(lambda p: len(p) < 7), powers_of)
@settings(deadline=None, max_examples=40)
def test_place_chances_and_combinations_are_every_order_added_up(p, powers):
    orders = enumerated(p, powers, 3)
    for runner, chance in enumerate(place_probabilities(p, powers, 3)):
        assert chance == pytest.approx(sum(q for o, q in orders.items() if runner in o))
    numbers = [10 + i for i in range(len(p))]
    for c in exotics(p, numbers, "trifecta", powers, top=5):
        assert c.probability == pytest.approx(orders[tuple(n - 10 for n in c.runners)])
    for c in exotics(p, numbers, "trio", powers, top=5):
        named = {n - 10 for n in c.runners}
        chance = sum(q for o, q in orders.items() if set(o) == named)
        assert c.probability == pytest.approx(chance)
        assert c.fair_dividend == pytest.approx(1 / chance)
        assert c.runners == sorted(c.runners)


@pytest.mark.parametrize("pool", [name for name in POOLS if name != "win"])
def test_the_list_of_a_pool_is_its_likeliest_combinations_each_once(pool):
    p = np.array([0.3, 0.25, 0.2, 0.1, 0.08, 0.07])
    every = exotics(p, range(1, 7), pool, HARVILLE, top=10_000)
    assert sum(c.probability for c in every) == pytest.approx(3 if pool == "quinella_place" else 1)
    assert len({tuple(c.runners) for c in every}) == len(every)
    listed = [c.probability for c in every]
    assert listed == sorted(listed, reverse=True)
    assert exotics(p, range(1, 7), pool, HARVILLE, top=3) == every[:3]
    assert exotics(np.array([1.0]), [1], pool, HARVILLE) == []


@pytest.mark.parametrize(
    ("jurisdiction", "size", "places"),
    [("HK", 3, None), ("HK", 4, 2), ("HK", 7, 3), ("JP", 7, 2), ("US", 7, 3), ("GB", 8, 3)]
    + [("SIM", 4, None), ("SIM", 7, 2), ("SIM", 8, 3), ("TR", 12, 3)],
)
def test_an_answer_says_how_many_places_count(jurisdiction, size, places):
    card, answer = race([None] * size, np.full(size, 1 / size), jurisdiction=jurisdiction)
    assert places_paid(card) == answer.places == places
    chance = [r.place_probability for r in answer.ranked]
    assert chance == (pytest.approx([places / size] * size) if places else [None] * size)


def test_powers_are_relative_to_the_first_and_missing_places_take_the_last():
    rng = np.random.default_rng(0)
    race_of = np.repeat(np.arange(1500), 8)
    p = rng.dirichlet(np.ones(8), 1500).ravel()
    position = np.empty(len(p))
    score = (np.log(p) + rng.gumbel(size=len(p))).reshape(-1, 8)
    position[:] = (np.argsort(np.argsort(-score, axis=1), axis=1) + 1).ravel()
    assert learn_powers(p, position, race_of) == pytest.approx((1, 1, 1, 1), abs=0.1)
    sure = p**2 / np.bincount(race_of, p**2)[race_of]
    assert learn_powers(sure, position, race_of) == pytest.approx((1, 1, 1, 1), abs=0.1)
    two = learn_powers(p, np.where(position <= 2, position, np.nan), race_of)
    assert two[1] == two[2] == two[3]
    assert learn_powers(p, np.where(position == 1, 1, np.nan), race_of) == ()


def test_an_offer_must_be_a_combination_of_runners_on_the_card():
    p = np.full(4, 0.25)
    for offer in (
        dict(pool="trio", runners=[1, 2], odds=9),
        dict(pool="exacta", runners=[2, 2], odds=9),
        dict(pool="win", runners=[2], odds=9),
        dict(pool="exacta", runners=[1, 9], odds=9),
        dict(pool="exacta", runners=[1, 2], odds=1),
    ):
        with pytest.raises(ValidationError):
            race([4.0] * 4, p, offers=[offer])
    with pytest.raises(ValidationError):
        race([4.0] * 4, p, exotics=["superfecta"])


# --- stakes ----------------------------------------------------------------------------------------------------------
prices = st.tuples(st.floats(0.5, 1.6), st.floats(0.5, 1.6))  # how far win and place are from fair
shares = st.floats(0.001, 1)


@st.composite
def days(draw):
    "Some races of one day and the terms they are betted on."
    found = []
    for _ in range(draw(st.integers(1, 3))):
        p = draw(fields)
        generous = np.array(draw(st.lists(prices, min_size=len(p), max_size=len(p))))
        placed = place_probabilities(p, (1.0, 0.8, 0.65, 0.6), 2 if len(p) < 7 else 3)
        odds = np.clip(generous[:, 0] / p, 1.01, 9e4).tolist()
        place_odds = np.clip(generous[:, 1] / placed, 1.01, 9e4).tolist()
        offers = [
            dict(pool="quinella", runners=[1, 2], odds=draw(st.floats(1.1, 500))),
            dict(pool="quinella_place", runners=[1, 3], odds=draw(st.floats(1.1, 100))),
            dict(pool="trifecta", runners=[3, 1, 2], odds=draw(st.floats(1.1, 5000))),
        ]
        found.append(race(odds, p, place_odds, offers=offers))
    terms = bets.Terms(
        strategy=draw(st.sampled_from(sorted(bets.STRATEGIES))),
        fraction=draw(shares),
        minimum_edge=draw(st.floats(0, 0.5)),
        cap=draw(shares),
        cap_race=draw(shares),
        cap_day=draw(shares),
        pool_size=draw(st.floats(100, 1e7)),
    )
    return found, terms


@given(days())
@settings(deadline=None, max_examples=80)
def test_no_stake_breaks_a_limit_and_each_cut_has_a_name(day):
    races, terms = day
    slips = bets.slips(*zip(*races, strict=True), terms)
    room = terms.bankroll * (1 + 1e-9)
    for slip in slips:
        for bet in slip.bets:
            assert 0 <= bet.stake <= terms.cap * room
            assert bet.stake == 0 or bet.edge >= max(terms.minimum_edge, 0)
            assert bet.wanted - sum(bet.cuts.values()) == pytest.approx(bet.stake, abs=1e-6)
            assert all(cut > 0 for cut in bet.cuts.values())
        assert slip.outlay == pytest.approx(sum(b.stake for b in slip.bets))
        assert slip.outlay <= terms.cap_race * room
    assert sum(slip.outlay for slip in slips) <= terms.cap_day * room


def test_the_same_day_shares_its_cap_and_another_day_has_its_own():
    p = np.array([0.4, 0.3, 0.2, 0.1])
    one = race((1.5 / p).tolist(), p)
    other = one[0].model_copy(update=dict(date=date(2024, 1, 7))), one[1]
    terms = bets.Terms(cap=1, cap_race=1, cap_day=0.06)
    outlay = [s.outlay for s in bets.slips(*zip(one, one, other, strict=True), terms)]
    assert outlay == pytest.approx([300, 300, 600])


def test_every_control_is_named_with_what_it_cut():
    p = np.array([0.5, 0.2, 0.15, 0.1, 0.05])
    card, answer = race([2.6, 5.1, 9.0, 9.0, 15.0], p)
    deep = bets.slips([card], [answer], bets.Terms(cap=0.015, cap_race=0.02, cap_day=0.01))[0]
    shallow = bets.slips([card], [answer], bets.Terms(pool_size=5_000))[0]
    named = {name for slip in (deep, shallow) for bet in slip.bets for name in bet.cuts}
    every = {"minimum_edge", "liquidity", "within_pool", "cap", "cap_race", "cap_day"}
    assert named == every, every - named
    two = next(b for b in deep.bets if b.runners == (2,))  # an edge of 2%
    assert two.cuts == {"minimum_edge": pytest.approx(two.wanted)} and two.stake == 0


def test_bets_that_can_win_together_are_staked_as_if_alone():
    p = np.array([0.3, 0.25, 0.15, 0.12, 0.08, 0.06, 0.04])
    placed = place_probabilities(p, (1.0, 0.8, 0.65, 0.6), 3)
    pair = race((1.1 / p).tolist(), p, (1.2 / placed).tolist())
    each, joint = (
        {
            (b.pool, b.runners): b.wanted
            for b in bets.slips(*zip(pair, strict=True), bets.Terms(strategy=name))[0].bets
        }
        for name in ("fractional_kelly", "simultaneous_kelly")
    )
    place_bets = {k: v for k, v in each.items() if k[0] == "place"}
    assert len(place_bets) == 7
    assert {k: v for k, v in joint.items() if k[0] == "place"} == pytest.approx(place_bets)
    assert joint["win", (1,)] > each["win", (1,)]  # one win pays for the others


def test_expected_profit_and_spread_are_those_of_races_that_are_run():
    p, powers = np.array([0.3, 0.25, 0.15, 0.12, 0.08, 0.06, 0.04]), (1.0, 0.8, 0.65, 0.6)
    offers = [
        dict(pool="quinella_place", runners=[1, 3], odds=8.0),
        dict(pool="trifecta", runners=[2, 1, 3], odds=90.0),
        dict(pool="first_four", runners=[4, 1, 3, 2], odds=40.0),
    ]
    placed = place_probabilities(p, powers, 3)
    odds = [(1.2 / p).tolist(), (1.15 / placed).tolist()]
    card, answer = race(odds[0], p, odds[1], powers, offers=offers)
    slip = bets.slips([card], [answer], bets.Terms(cap=0.05, cap_race=0.5))[0]
    assert {b.pool for b in slip.bets if b.stake > 0} >= {"win", "place", "quinella_place"}
    rng, runs = np.random.default_rng(1), 100_000
    left, first = np.ones((runs, len(p)), bool), []
    for power in powers:
        score = np.where(left, power * np.log(p) + rng.gumbel(size=left.shape), -np.inf)
        first.append(score.argmax(axis=1))
        left[np.arange(runs), first[-1]] = False
    first, profit = np.stack(first, axis=1) + 1, np.full(runs, -slip.outlay)
    for bet in slip.bets:
        count, ordered = POOLS.get(bet.pool, (3, False))
        if ordered:
            won = (first[:, :count] == bet.runners).all(axis=1)
        else:
            won = np.all([(first[:, :count] == n).any(axis=1) for n in bet.runners], axis=0)
        profit += bet.stake * bet.odds * won
        assert won.mean() == pytest.approx(bet.p, abs=5 * (bet.p / runs) ** 0.5)
    assert slip.expected_profit == pytest.approx(profit.mean(), abs=5 * slip.spread / runs**0.5)
    assert slip.spread == pytest.approx(profit.std(), rel=0.02)
    assert slip.chance_of_profit == pytest.approx((profit > 0).mean(), abs=0.01)
    assert slip.expected_profit == pytest.approx(sum(b.stake * b.edge for b in slip.bets))


def test_own_money_in_a_shallow_pool_lowers_what_is_expected():
    p = np.array([0.4, 0.3, 0.2, 0.1])
    pair = race((np.array([1.3, 0.7, 0.7, 0.7]) / p).tolist(), p)
    deep, shallow = (
        bets.slips(*zip(pair, strict=True), bets.Terms(pool_size=size))[0] for size in (1e9, 15_000)
    )
    assert deep.expected_return == pytest.approx(0.3, abs=1e-3)
    assert 0 < shallow.expected_return < 0.29
    assert shallow.bets[0].edge == pytest.approx(0.3)


def test_why_nothing_is_staked():
    p = np.array([0.4, 0.3, 0.2, 0.1])
    said = {
        "the card carries no win odds": race([None] * 4, p, [2.0] * 4),
        "win odds of 3 of 4 runners": race([3.0, 4.0, 5.0, None], p),
        "the best edge is -20.0% (win 1), asked for are +5.0%": race((0.8 / p).tolist(), p),
        "the best edge is +3.0%": race((1.03 / p).tolist(), p),
    }
    for words, pair in said.items():
        slip = bets.slips(*zip(pair, strict=True))[0]
        assert words in " ".join(slip.notes)
        assert slip.outlay == slip.expected_profit == slip.spread == 0
        assert slip.expected_return is None
        assert slip.warnings == ("a warning",)
    unknown = race((1.5 / p).tolist(), p)
    blind = unknown[1].model_copy(
        update=dict(ranked=[r.model_copy(update=dict(edge=None)) for r in unknown[1].ranked])
    )
    assert "gives no edge" in bets.slips([unknown[0]], [blind])[0].notes[0]


def test_an_offer_with_a_non_runner_is_void():
    p = np.array([0.4, 0.3, 0.2, 0.1])
    runners = [
        dict(runner_no=i, horse_id=f"H{i}", odds=4.0, non_runner=i == 5) for i in range(1, 6)
    ]
    offers = [dict(pool="quinella", runners=[1, n], odds=50.0) for n in (2, 5)]
    card, _ = race([4.0] * 5, np.full(5, 0.2))
    card = Card.model_validate(card.model_dump() | dict(runners=runners, offers=offers))
    _, answer = race([4.0] * 4, p)
    slip = bets.slips([card], [answer])[0]
    assert [b.runners for b in slip.bets if b.pool == "quinella"] == [(1, 2)]
    assert "1 offers name a non-runner" in slip.notes[-1]


@pytest.mark.parametrize(
    ("terms", "word"),
    [
        (dict(strategy="martingale"), "fractional_kelly"),
        (dict(bankroll=0), "bankroll"),
        (dict(bankroll=-5), "bankroll"),
        (dict(bankroll=float("inf")), "bankroll"),
        (dict(cap=1.5), "cap"),
        (dict(cap_day=0), "cap_day"),
        (dict(minimum_edge=-0.1), "minimum_edge"),
        (dict(minimum_edge=float("nan")), "minimum_edge"),
        (dict(strategy="pool_kelly"), "pool_size"),
        (dict(pool_size=0), "pool_size"),
    ],
)
def test_impossible_terms_are_refused(terms, word):
    with pytest.raises(BadInput, match=word):
        bets.Terms(**terms)


# --- from a trained bundle to the command ----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def house(tmp_path_factory):
    "A home with a small world and a promoted linear model."
    from racing_core.data.ingest import ingest_world
    from racing_core.simulate import simulate

    home, now = home_of(tmp_path_factory.mktemp("home"), env={}), datetime(2026, 1, 1, tzinfo=UTC)
    ingest_world(simulate(races=1200, seed=5), home)
    linear = lambda: Pipeline(
        {"conditional_logit": ConditionalLogit()}, {"conditional_logit": ConditionalLogit(l2=5000)}
    )
    train(home, "simulated", home.bundles / "b", now, make=linear)
    registry.promote(home, str(home.bundles / "b"), "champion", now)
    return home


@pytest.fixture(scope="module")
def predictor(house):
    return Predictor.of(read(registry.locate(house, "champion")), house)


@pytest.fixture(scope="module")
def card(house):
    return next_week(Store(house, "simulated").starts())


def test_a_trained_bundle_answers_with_place_chances_by_its_own_powers(predictor, card):
    answer = predictor.predict(card.model_copy(update=dict(exotics=["quinella", "quartet"])))
    assert answer.stage_powers == predictor.bundle.stage_powers["combined"]
    assert answer.stage_powers[0] == 1 and NO_POWERS not in answer.warnings
    assert sum(r.place_probability for r in answer.ranked) == pytest.approx(answer.places)
    assert [c.pool for c in answer.exotics] == ["quinella"] * 10 + ["quartet"] * 10
    plain = predictor.predict(card)
    assert plain.exotics == [] and plain.ranked == answer.ranked
    unpriced = [r.model_copy(update=dict(odds=None)) for r in card.runners]
    form = predictor.predict(card.model_copy(update=dict(runners=unpriced)))
    assert form.stage_powers == predictor.bundle.stage_powers["fundamental"]


def test_a_bundle_without_powers_says_that_it_uses_harville(predictor, card):
    from dataclasses import replace

    bare = Predictor(replace(predictor.bundle, stage_powers={}))
    answer = bare.predict(card)
    assert answer.stage_powers == [1, 1, 1, 1] and NO_POWERS in answer.warnings
    assert [r.win_probability for r in answer.ranked] == [
        r.win_probability for r in predictor.predict(card).ranked
    ]


def racing(house, capsys, *argv):
    "Exit code and standard output of the command."
    code = cli.main(["--home", str(house.root), *map(str, argv)])
    return code, capsys.readouterr().out


@pytest.fixture(scope="module")
def typed(card, tmp_path_factory):
    "The card as a file, at prices that are too good, all of them, and with place odds."
    sent = json.loads(card.model_dump_json(exclude_none=True))
    for r in sent["runners"]:
        r["odds"] = round(1.28 * r["odds"], 2)
        r["place_odds"] = round(1 + (r["odds"] - 1) / 3, 2)
    sent["offers"] = [dict(pool="quinella", runners=[1, 2], odds=200.0)]
    file = tmp_path_factory.mktemp("cards") / "card.json"
    file.write_text(json.dumps(sent), encoding="utf-8")
    return file


def test_the_command_prints_stakes_pool_by_pool_and_as_json(house, typed, predictor, capsys):
    code, out = racing(
        house, capsys, "bets", typed, "--bankroll", 5000, "--json", "--exotic", "trio"
    )
    slip = json.loads(out)
    assert code == 0 and slip["terms"]["bankroll"] == 5000 and out.count("\n") == 1
    assert {"win", "place", "quinella"} <= {b["pool"] for b in slip["bets"]}
    assert slip["outlay"] == pytest.approx(250)  # the race's cap
    assert slip["expected_return"] == pytest.approx(slip["expected_profit"] / 250)
    assert slip["spread"] > 0 and len(slip["chances"]) == 10
    code, shown = racing(house, capsys, "bets", typed, "--bankroll", 5000)
    assert code == 0 and "cap_race -" in shown and "outlay 250.00" in shown
    answer = predictor.predict(Card.model_validate_json(typed.read_text()))
    assert slip["warnings"] == answer.warnings and all(w in shown for w in answer.warnings)


def test_the_command_says_why_there_is_no_bet_and_refuses_what_it_cannot_do(
    house, card, tmp_path, capsys
):
    bare = tmp_path / "bare.json"
    unpriced = [r.model_copy(update=dict(odds=None)) for r in card.runners]
    text = card.model_copy(update=dict(runners=unpriced)).model_dump_json(exclude_none=True)
    bare.write_text(text, encoding="utf-8")
    code, out = racing(house, capsys, "bets", bare)
    assert code == 0 and "no stakes: the card carries no win odds" in out
    for more, word in (
        (["--strategy", "martingale"], "martingale"),
        (["--exotic", "superfecta"], "superfecta"),
        (["--cap", "0"], "cap"),
        (["--strategy", "isaacs"], "win pool"),
    ):
        code, out = racing(house, capsys, "bets", bare, "--json", *more)
        assert code == 2 and word in out


def test_predict_shows_the_chance_of_a_place(house, typed, capsys):
    code, out = racing(house, capsys, "predict", typed, "--json")
    answer = json.loads(out)
    assert code == 0 and answer["places"] and all(r["place_probability"] for r in answer["ranked"])
    assert "place" in racing(house, capsys, "predict", typed)[1].splitlines()[1]


# --- what the pools paid ---------------------------------------------------------------------------------------------
def rows_of(*races):
    "Starters of races given as lists of (odds, share of the win)."
    return pl.DataFrame(
        [(f"r{i}", n, *r) for i, race in enumerate(races) for n, r in enumerate(race, 1)],
        schema=["race_id", "runner_no", "odds", "win"],
        orient="row",
    )


def paid(*rows):
    return pl.DataFrame(
        [(r, pool, c, float(d)) for r, pool, c, d in rows],
        schema=["race_id", "pool", "combination", "dividend"],
        orient="row",
    )


def test_a_race_is_settled_at_its_dividends_where_every_winner_has_one():
    starts = rows_of([(12.0, 1.0), (1.5, 0.0)], [(3.0, 0.5), (4.0, 0.5)], [(2.0, 0.0), (4.0, 1.0)])
    unit = np.ones(6)
    table = paid(
        ("r0", "win", "1", 12.65), ("r1", "win", "1", 1.6), ("r1", "win", "2", 2.1),
        ("r2", "place", "2", 1.7),
    )  # fmt: skip
    win, odds, label = backtest.at_dividends(starts, table)
    assert settle_win(unit, odds, win).tolist() == [12.65, 0, 1.6, 2.1, 0, 4.0]
    assert label.startswith("optimistic") and "(2 of 3 races)" in label
    win, odds, _ = backtest.at_dividends(starts, table.filter(pl.col("combination") == "1"))
    assert settle_win(unit, odds, win).tolist() == [12.65, 0, 1.5, 2.0, 0, 4.0]
    everything = pl.concat([table, paid(("r2", "win", "2", 1.0))])
    win, odds, label = backtest.at_dividends(starts, everything)
    assert settle_win(unit, odds, win) == pytest.approx([12.65, 0, 1.6, 2.1, 0, 1.0])
    assert label == "optimistic: chosen at the closing price, settled at the dividends paid"
    assert backtest.at_dividends(starts, table.clear())[2] == backtest.OPTIMISTIC


def test_a_dividend_paid_to_a_horse_disqualified_later_is_paid_to_it():
    starts = rows_of([(3.0, 0.0), (5.0, 1.0)])
    win, odds, _ = backtest.at_dividends(starts, paid(("r0", "win", "1", 3.1)))
    assert settle_win(np.ones(2), odds, win).tolist() == [3.1, 0]


def test_hong_kong_pays_a_little_more_than_it_prints(hong_kong, hong_kong_store):
    starts = hong_kong.filter(pl.col("date").dt.year() == 2021, pl.col("odds") > 1)
    starts = starts.with_columns(win=winners(starts))
    dividends = hong_kong_store.read("dividends", date(2021, 1, 1), date(2022, 1, 1))
    win, odds, label = backtest.at_dividends(starts, dividends)
    printed = starts["odds"].to_numpy()
    unit = np.ones(len(starts))
    ratio = (
        settle_win(unit, odds, win).sum()
        / settle_win(unit, printed, starts["win"].to_numpy()).sum()
    )
    assert "dividends paid" in label and 1.0 < ratio < 1.03
    alone = (starts["win"] == 1).to_numpy() & (win == 1)
    assert (odds[alone] >= printed[alone] - 1e-9).all()


def test_backing_everything_in_hong_kong_loses_its_takeout_at_the_dividends(
    hong_kong, hong_kong_store
):
    starts = hong_kong.filter(pl.col("odds") > 1).with_columns(
        win=winners(hong_kong.filter(pl.col("odds") > 1))
    )
    starts = starts.filter((pl.col("win") > 0).any().over("race_id"))
    win, odds, label = backtest.at_dividends(starts, hong_kong_store.read("dividends"))
    assert "of 6,4" in label  # a few races of 6,439 are settled at the odds, and it says how many
    printed = starts["odds"].to_numpy()
    stake = 1 / printed  # to return one whoever wins
    at_dividends = settle_win(stake, odds, win).sum() / stake.sum()
    at_odds = settle_win(stake, printed, starts["win"].to_numpy()).sum() / stake.sum()
    assert at_dividends == pytest.approx(0.825, abs=0.002)  # the pool keeps 17.5%
    assert 0.009 < at_dividends - at_odds < 0.012  # printed whole numbers: 1% of the turnover


def test_place_evidence_finds_places_that_are_open_and_none_in_a_field_of_exponentials():
    rng, size, count = np.random.default_rng(2), 8, 2400
    p = rng.dirichlet(np.ones(size), count)
    day = np.repeat(np.arange(count // 8), 8)
    gains = []
    for power in (1.0, 0.6):
        left, position = np.ones((count, size), bool), np.empty((count, size))
        for place, a in enumerate([1.0] + [power] * (size - 1), 1):
            score = np.where(left, a * np.log(p) + rng.gumbel(size=p.shape), -np.inf)
            best = score.argmax(axis=1)
            position[np.arange(count), best] = place
            left[np.arange(count), best] = False
        frame = pl.DataFrame(
            dict(
                race_id=np.repeat([f"r{i:05d}" for i in range(count)], size),
                date=np.repeat(day, size),
                position=position.ravel(),
                combined=p.ravel(),
            )
        ).with_columns(pl.date(2020, 1, 1).dt.offset_by(pl.format("{}d", "date")).alias("date"))
        gains.append(evidence(frame))
    assert gains[0].low < 0.005 and gains[1].low > 0.02
    assert gains[1].powers[1:] == pytest.approx((0.6,) * 3, abs=0.1)
    assert all(g.groups["z"].abs().max() < 4.5 for g in gains)
