"""Settlement from outside: the rules by hand, money that must balance, and the real dividends of two jurisdictions."""

from datetime import date
from fractions import Fraction

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from racing_core.betting import settlement as s
from racing_core.errors import BadInput


@pytest.mark.parametrize(
    ("jurisdiction", "runners", "handicap", "terms"),
    [
        ("HK", 3, False, (0, 0)),
        ("HK", 4, False, (2, 0)),
        ("HK", 6, False, (2, 0)),
        ("HK", 7, False, (3, 0)),
        ("HK", 14, True, (3, 0)),
        ("JP", 4, False, (0, 0)),
        ("JP", 5, False, (2, 0)),
        ("JP", 7, False, (2, 0)),
        ("JP", 8, False, (3, 0)),
        ("JP", 18, True, (3, 0)),
        ("GB", 4, True, (0, 0)),
        ("GB", 5, False, (2, 0.25)),
        ("GB", 7, True, (2, 0.25)),
        ("GB", 8, False, (3, 0.2)),
        ("GB", 11, True, (3, 0.2)),
        ("GB", 12, False, (3, 0.2)),
        ("GB", 12, True, (3, 0.25)),
        ("IE", 15, True, (3, 0.25)),
        ("IE", 16, True, (4, 0.25)),
        ("IE", 16, False, (3, 0.2)),
        ("US_place", 6, False, (2, 0)),
        ("US_show", 6, False, (3, 0)),
    ],
)
def test_place_terms(jurisdiction, runners, handicap, terms):
    assert s.place_terms(jurisdiction, runners, handicap) == terms


@given(st.lists(st.integers(0, 3), min_size=1, max_size=14), st.integers(1, 4))
def test_no_more_places_are_paid_than_there_are(steps, places):
    "Positions with any pattern of dead heats: 0 in `steps` is a tie with the runner before."
    position, rank = [], 1
    for i, step in enumerate(steps):
        rank = rank if step == 0 and i else i + 1
        position.append(rank)
    share = s.placed(position, np.zeros(len(steps), int), places)
    assert share.sum() == pytest.approx(min(places, len(steps)))
    assert ((share >= 0) & (share <= 1)).all()
    assert (np.diff(share) <= 1e-12).all()


def test_places_by_race_and_a_runner_that_never_finished():
    share = s.placed([1, 2, 3, 1, 2, np.nan], np.array([0, 0, 0, 1, 1, 1]), np.array([2, 3]))
    assert share.tolist() == [1, 1, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("to_one", "deduction"),
    [
        (1 / 10, 0.9),
        (1 / 9, 0.9),
        (1 / 8, 0.85),
        (1 / 5, 0.8),
        (2 / 7, 0.75),
        (1 / 3, 0.7),
        (1 / 2, 0.65),
        (4 / 7, 0.6),
        (4 / 6, 0.55),
        (5 / 6, 0.5),
        (1, 0.45),
        (6 / 5, 0.45),
        (5 / 4, 0.4),
        (13 / 8, 0.35),
        (2, 0.3),
        (3, 0.25),
        (4, 0.2),
        (5, 0.15),
        (9, 0.1),
        (14, 0.05),
        (15, 0.0),
    ],
)
def test_rule_4_by_its_table(to_one, deduction):
    assert s.rule_4([to_one + 1]) == deduction


@pytest.mark.parametrize(
    ("printed", "deduction"),
    [
        (1.11, 0.9),  # 1/9
        (1.12, 0.85),  # 2/17
        (1.29, 0.75),  # 2/7
        (1.53, 0.65),  # 8/15
        (1.57, 0.6),  # 4/7
        (1.62, 0.6),  # 8/13, of which it is the longer
        (1.64, 0.6),  # nearer to 8/13 than to 4/6
        (1.65, 0.55),
        (1.67, 0.55),  # 4/6
        (1.83, 0.5),  # 5/6, of which it is the shorter
        (1.95, 0.5),  # 20/21
        (3.2, 0.3),  # 11/5, of no step's own, within the step that ends at 9/4
        (4.33, 0.2),  # 10/3
        (10.4, 0.1),
        (10.6, 0.05),
        (15.0, 0.05),
        (15.5, 0.0),  # over 14/1
    ],
)
def test_rule_4_on_printed_decimals(printed, deduction):
    assert s.rule_4([printed]) == deduction


@settings(deadline=None)
@given(st.fractions(min_value="1/20", max_value=13, max_denominator=33))
def test_printing_to_two_places_moves_no_price_of_the_scale_across_a_step(to_one):
    ends = [Fraction(x).limit_denominator(33) for _, *e in s._RULE_4[:-1] for x in e if x]
    nearest = min(ends, key=lambda end: abs(end - to_one))
    assert s.rule_4([round(float(nearest) + 1, 2)]) == s.rule_4([float(nearest) + 1])


@settings(deadline=None)
@given(st.floats(1.01, 100), st.floats(1.01, 100))
def test_a_longer_price_is_never_deducted_more(one, other):
    assert s.rule_4([min(one, other)]) >= s.rule_4([max(one, other)])


@given(st.lists(st.floats(1.01, 100), max_size=5), st.floats(1.01, 200))
def test_rule_4_takes_from_winnings_and_never_all_of_them(withdrawn, odds):
    paid = s.reduced(odds, s.rule_4(withdrawn))
    assert 1 < paid <= odds
    assert s.rule_4(withdrawn) <= 0.9
    assert s.rule_4([*withdrawn, 2.0]) >= s.rule_4(withdrawn)


@given(
    st.floats(0.5, 5000),
    st.sampled_from(["HK", "JP", "US"]),
    st.sampled_from(["win", "place", "trio", "exacta"]),
)
def test_breakage_rounds_down_to_the_step_but_not_below_the_least(dividend, jurisdiction, pool):
    declared = float(s.breakage(dividend, jurisdiction, pool))
    least = {"HK": 1.0, "JP": 1.0, "US": 1.05}[jurisdiction]
    assert declared <= max(dividend, least) + 1e-6
    assert declared > dividend - 0.1 - 1e-6
    assert declared >= least
    assert float(s.breakage(declared, jurisdiction, pool)) == pytest.approx(declared)


@pytest.mark.parametrize(
    ("dividend", "jurisdiction", "pool", "declared"),
    [
        (2.499, "HK", "win", 2.45),
        (1.049, "HK", "place", 1.04),
        (1.0, "HK", "place", 1.0),
        (24.79, "HK", "trio", 24.7),
        (24.79, "HK", "quinella", 24.75),
        (2.49, "JP", "win", 2.4),
        (0.93, "JP", "place", 1.0),
        (1.02, "US", "US_show", 1.05),
        (4.39, "US", "win", 4.3),
    ],
)
def test_breakage_by_hand(dividend, jurisdiction, pool, declared):
    assert float(s.breakage(dividend, jurisdiction, pool)) == pytest.approx(declared)


STATES = st.sampled_from([None, "NY", "KY", "ny", "FL"])
DAYS = st.dates(date(2000, 1, 1), date(2030, 1, 1))


@settings(deadline=None)
@given(st.floats(0.5, 5000), STATES, DAYS)
def test_a_state_pays_on_its_own_steps_and_never_more_than_the_pool_has(dividend, state, day):
    declared = float(s.breakage(dividend, "US", state=state, day=day))
    step = next(step for below, step in s.us_steps(state, day) if declared < below)
    assert declared <= max(dividend, 1.05) + 1e-6
    assert dividend - declared < 0.5
    assert declared == 1.05 or abs(declared / step - round(declared / step)) < 1e-6
    assert float(s.breakage(declared, "US", state=state, day=day)) == pytest.approx(declared)
    assert declared >= s.breakage(dividend, "US", state=state, day=day.replace(year=2000)) - 1e-9


@pytest.mark.parametrize(
    ("dividend", "state", "day", "declared"),
    [
        (4.99, "NY", date(2019, 7, 1), 4.95),
        (5.04, "NY", date(2019, 7, 1), 5.0),
        (5.19, "NY", date(2019, 7, 1), 5.1),
        (25.3, "NY", date(2019, 7, 1), 25.25),
        (260.7, "NY", date(2019, 7, 1), 260.5),
        (4.99, "NY", date(2025, 8, 31), 4.95),
        (4.99, "NY", date(2025, 9, 1), 4.99),
        (4.99, "NY", None, 4.99),
        (4.99, "KY", date(2022, 7, 13), 4.9),
        (4.99, "KY", date(2022, 7, 14), 4.99),
        (4.99, None, None, 4.9),
    ],
)
def test_breakage_of_a_state_by_hand(dividend, state, day, declared):
    assert float(s.breakage(dividend, "US", state=state, day=day)) == pytest.approx(declared)


def test_new_york_of_2019_broke_by_the_size_of_the_payoff(shared_data):
    file = shared_data / "nyra" / "starts.parquet"
    if not file.is_file():
        pytest.skip(f"no New York starts in {shared_data}")
    cents = pl.read_parquet(file)["odds"].str.strip_chars().cast(pl.Float64)
    paid = (1 + cents.filter(cents > 0) / 100).to_numpy()  # 0: nobody could bet
    assert len(paid) > 14_800
    assert s.breakage(paid, "US", state="NY", day=date(2019, 7, 1)) == pytest.approx(paid)
    dimes = np.isclose(s.breakage(paid, "US"), paid)  # the usual rule would be wrong
    assert dimes.mean() < 0.8


def test_what_has_no_rule_is_refused():
    for call in (
        lambda: s.place_terms("XX", 8),
        lambda: s.breakage(2.0, "GB"),
        lambda: s.rule_4([1.0]),
    ):
        with pytest.raises(BadInput):
            call()


def unexplained(table):
    return table.filter(~pl.col("explained"))


def test_hong_kong_dividends_are_what_the_rules_say(hong_kong, hong_kong_store):
    starts, paid = (
        hong_kong.filter(pl.col("date") < date(2023, 1, 1)),
        hong_kong_store.read("dividends"),
    )
    table = s.reconcile(starts, paid)
    assert unexplained(table).is_empty()
    count = {(r["check"], r["pool"], r["cause"]): r["rows"] for r in table.to_dicts()}
    assert count["price", "win", "odds are the dividend rounded down"] == 5587
    assert count["price", "win", "dead heat, pool divided by the rule"] == 14
    assert count["price", "win", "printed as 1, the dividend itself"] == 4
    assert (
        table.filter(cause="disqualified after the pools were paid")["rows"].sum() == 8
    )  # one race
    assert (
        count["complete", "place", "the source keeps one dividend of a pool"] == 11192
    )  # two of three a race, the flaw of the source
    # ... and of its step, on every pool
    paid = paid.filter(pl.col("race_id").is_in(starts["race_id"].unique().implode()))
    for (pool,), part in paid.group_by("pool"):
        assert s.breakage(part["dividend"], "HK", pool) == pytest.approx(
            part["dividend"].to_numpy()
        )


def test_the_hong_kong_source_itself_has_one_dividend_of_a_pool(shared_data):
    raw = pl.read_parquet(shared_data / "hkjc" / "dividends.parquet").unique()
    assert raw.group_by("date", "venue", "race_no", "pool").agg(rows=pl.len())["rows"].max() == 1


def test_a_wrong_result_does_not_reconcile(hong_kong, hong_kong_store):
    starts = hong_kong.filter(pl.col("date") < date(2016, 7, 1)).with_columns(
        position=pl.col("position").shift(1).over("race_id")
    )
    table = s.reconcile(starts, hong_kong_store.read("dividends"))
    named = table.filter(check="runners")
    assert named.filter(~pl.col("explained"))["rows"].sum() > 0.8 * named["rows"].sum()
    dear = s.reconcile(
        hong_kong.filter(pl.col("date") < date(2016, 7, 1)),
        hong_kong_store.read("dividends").with_columns(pl.col("dividend") * 1.2),
    )
    price = dear.filter(check="price")
    assert price.filter(~pl.col("explained"))["rows"].sum() > 0.9 * price["rows"].sum()


def test_japanese_dividends_are_what_the_rules_say(japan, japan_store):
    table = s.reconcile(japan, japan_store.read("dividends"))
    assert unexplained(table).is_empty()
    count = {(r["check"], r["pool"], r["cause"]): r["rows"] for r in table.to_dicts()}
    assert count["price", "win", "odds are the dividend rounded down"] == 3566
    assert count["price", "win", "dead heat, pool divided by the rule"] == 14
    assert count["runners", "place", "place terms fixed before a withdrawal"] == 5
    assert count["runners", "bracket_quinella", "as the result says"] == 3340
    assert (
        count["runners", "bracket_quinella", "brackets drawn before the last number withdrew"] == 4
    )
    assert "the source keeps one dividend of a pool" not in table["cause"]
    turned = s.reconcile(
        japan.with_columns(position=pl.col("position").shift(5).over("race_id")),
        japan_store.read("dividends"),
    )
    brackets = turned.filter(pool="bracket_quinella")
    assert brackets.filter(~pl.col("explained"))["rows"].sum() > 0.8 * brackets["rows"].sum()
    for dividend in japan_store.read("dividends").partition_by("pool"):
        assert s.breakage(dividend["dividend"], "JP") == pytest.approx(
            dividend["dividend"].to_numpy()
        )


def test_backing_every_runner_for_a_place_in_japan_loses_the_takeout(japan, japan_store):
    bets = japan.select(
        "race_id",
        pool=pl.lit("place"),
        combination=pl.col("runner_no").cast(pl.String),
        stake=pl.lit(100.0),
    )
    settled = s.settle_dividends(bets, japan_store.read("dividends"))
    assert settled["returned"].null_count() == 0
    placed = settled.filter(pl.col("returned") > 0)
    assert 2.9 < len(placed) / bets["race_id"].n_unique() < 3.01
    assert -0.32 < settled["returned"].sum() / settled["stake"].sum() - 1 < -0.15


@given(st.permutations([3, 11, 7]))
@settings(max_examples=6)
def test_combinations_are_looked_up_in_any_order_where_order_does_not_count(order):
    paid = pl.DataFrame(
        {
            "race_id": ["a", "a"],
            "pool": ["trio", "trifecta"],
            "combination": ["3-7-11", "3-11-7"],
            "dividend": [50.0, 300.0],
        }
    )
    name = "-".join(map(str, order))
    asked = pl.DataFrame(
        {
            "race_id": ["a", "a", "b"],
            "pool": ["trio", "trifecta", "trio"],
            "combination": [name] * 3,
            "stake": [2.0] * 3,
        }
    )
    assert s.settle_dividends(asked, paid)["returned"].to_list() == [
        100,
        600 if order == [3, 11, 7] else 0,
        None,
    ]
