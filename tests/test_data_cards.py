"""Cards typed by hand: every notation there and back, every fault told by row and column."""

import contextlib
import json
from datetime import date
from fractions import Fraction
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from racing_core.data import cards, readers
from racing_core.data.readers import POUND_KG
from racing_core.errors import BadInput
from racing_core.features.outcomes import PRE_RACE
from racing_core.serving.contract import Card, card_frame
from racing_core.starts import starts_frame

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "sample"
quick = settings(max_examples=40, deadline=None)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)


def one(parser, said):
    return (
        pl.DataFrame({"said": [said]}, schema={"said": pl.String})
        .select(parser(pl.col("said")))
        .to_series()
        .item()
    )


@quick
@given(st.integers(2, 9999).map(lambda n: n / 100 + 1))
def test_decimal_odds_there_and_back(price):
    assert one(readers.odds, f"{price:.2f}") == pytest.approx(price)


@quick
@given(
    st.fractions(Fraction(1, 40), Fraction(1000), max_denominator=40),
    st.sampled_from(["/", "-", " / "]),
    st.sampled_from(["", "F", "JF"]),
)
def test_fractional_odds_there_and_back(f, dash, favourite):
    said = f"{f.numerator}{dash}{f.denominator}{favourite if dash == '/' else ''}"
    assert one(readers.odds, said) == pytest.approx(1 + float(f))


@quick
@given(st.integers(100, 99_900), st.sampled_from("+-"))
def test_american_odds_there_and_back(n, sign):
    assert one(readers.odds, f"{sign}{n}") == pytest.approx(
        max(1 + (n / 100 if sign == "+" else 100 / n), 1.001)
    )


@quick
@given(
    st.integers(6, 13),
    st.integers(0, 13),
    st.sampled_from(["{}-{}", "{}st {}lb", "{}st{}", "{} - {}"]),
)
def test_stones_there_and_back(stone, pounds, how):
    assert one(readers.weight_kg, how.format(stone, pounds)) == pytest.approx(
        (stone * 14 + pounds) * POUND_KG, abs=1e-3
    )


@quick
@given(st.integers(910, 1980).map(lambda n: n / 10), st.sampled_from(["{}", "{}lb", "{} lbs"]))
def test_pounds_there_and_back(pounds, how):
    assert one(readers.weight_kg, how.format(pounds)) == pytest.approx(pounds * POUND_KG, abs=1e-3)


@quick
@given(st.integers(350, 900).map(lambda n: n / 10), st.sampled_from(["{}", "{}kg", "{} KG"]))
def test_kilograms_there_and_back(kilos, how):
    assert one(readers.weight_kg, how.format(kilos)) == kilos


@quick
@given(
    st.integers(0, 5),
    st.integers(0, 7),
    st.integers(0, 219),
    st.sampled_from(["", " "]),
    st.sampled_from(["y", "yds", " yards"]),
)
def test_miles_furlongs_yards_there_and_back(miles, furlongs, yards, gap, unit):
    parts = [
        f"{miles}m" if miles else "",
        f"{furlongs}f" if furlongs else "",
        f"{yards}{unit}" if yards else "",
    ]
    metres = miles * 1609.344 + furlongs * 201.168 + yards * 0.9144
    said = gap.join(p for p in parts if p)
    assert one(readers.distance_m, said or None) == (
        pytest.approx(metres, abs=0.51) if said else None
    )


@quick
@given(st.integers(1000, 9000), st.sampled_from(["y", " yds", " yards"]))
def test_yards_there_and_back(yards, unit):
    assert one(readers.distance_m, f"{yards}{unit}") == pytest.approx(yards * 0.9144, abs=0.51)


@quick
@given(st.integers(100, 9999), st.sampled_from(["", "m", " metres", " meters"]))
def test_metres_there_and_back(metres, unit):
    assert one(readers.distance_m, f"{metres}{unit}") == metres


@pytest.mark.parametrize(
    ("said", "metres"),
    [("1m", 1609), ("9m", 14484), ("16m", None), ("160m", 160), ("1600m", 1600), ("16000m", None)],
)
def test_an_m_is_a_mile_or_a_metre_by_its_digits(said, metres):
    assert one(readers.distance_m, said) == metres


@quick
@given(st.dates(date(1900, 1, 1), date(2100, 1, 1)), st.sampled_from(["%Y-%m-%d", "%d/%m/%Y"]))
def test_dates_there_and_back(day, fmt):
    assert one(readers.calendar, day.strftime(fmt)) == day


@quick
@given(texts)
def test_no_text_breaks_a_parser(said):
    price, weight, distance = (
        one(p, said) for p in (readers.odds, readers.weight_kg, readers.distance_m)
    )
    assert price is None or 1.001 <= price <= 100_000
    assert weight is None or weight >= 0
    assert distance is None or distance >= 0


HEAD = "date,country,course,race,distance,going,no,horse,stall,weight,odds\n"
ROWS = [
    "2024-06-08,GB,Made,1,1m,good,1,Ada,3,9-0,5/2\n",
    "2024-06-08,GB,Made,1,1m,good,2,Bo,1,8-7,evens\n",
]


def csv(*rows, head=HEAD):
    return (head + "".join(rows or ROWS)).encode()


def complaint(data, strict=True):
    with pytest.raises(BadInput) as e:
        cards.parse_card(data, "mine.csv", strict)
    return str(e.value)


def test_strict_names_every_fault_at_once_by_row_and_column():
    bad = csv(
        "2024-06-08,GB,Made,1,1m,wettish,1,Ada,99,9-0,5/2\n",
        "2024-06-08,GB,Made,1,1m,wettish,2,Bo,1,light,0.5\n",
        head=HEAD.replace("stall", "Stall"),
    )
    said = complaint(bad)
    parts = (
        "4 faults",
        "mine.csv",
        "row 1, column going: got 'wettish'",
        "row 1, column Stall: got '99'",
        "row 2, column weight: got 'light'",
        "column odds: got '0.5'",
    )
    assert all(p in said for p in parts), said
    loose = cards.parse_card(bad, "mine.csv", strict=False)
    assert loose.quarantine.select("row", "column").rows() == [
        (1, "going"),
        (1, "Stall"),
        (2, "weight"),
        (2, "odds"),
    ]
    starts = starts_frame(loose.tables)
    assert starts.select("going", "draw", "weight_kg", "odds").rows() == [
        (None, None, 57.153, 3.5),
        (None, 1, None, None),
    ]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([ROWS[0].replace("2024-06-08", "soon")], "column date"),
        ([ROWS[0].replace("2024-06-08", "")], "column date: got 'nothing'"),
        ([ROWS[0].replace(",1,Ada", ",,Ada")], "column no: got 'nothing'"),
        ([ROWS[0].replace(",1,Ada", ",100,Ada")], "expected at most 99"),
        ([ROWS[0].replace("Ada", " ")], "column horse: got 'nothing'"),
        ([ROWS[0], ROWS[0].replace(",1,Ada", ",2,Ada")], "one line for each runner"),
        ([ROWS[0], ROWS[1].replace(",2,Bo", ",1,Bo")], "one line for each runner"),
        ([ROWS[0], ROWS[1].replace("GB", "FR")], "what the race's first line says"),
    ],
)
def test_what_says_which_race_or_runner_is_never_let_go(rows, said):
    for strict in (True, False):
        assert said in complaint(csv(*rows), strict)


def test_a_contradiction_about_the_race_keeps_the_first_line():
    data = csv(ROWS[0], ROWS[1].replace("good", "soft"))
    assert "row 2, column going: got 'soft'" in complaint(data)
    assert starts_frame(cards.parse_card(data, strict=False).tables)["going"].to_list() == [
        "good",
        "good",
    ]


def test_unknown_columns_are_a_fault_or_a_warning():
    data = csv(*(r.replace("\n", ",x\n") for r in ROWS), head=HEAD.replace("\n", ",colours\n"))
    assert "column colours" in complaint(data)
    assert cards.parse_card(data, strict=False).quarantine["column"].to_list() == ["colours"]


def test_spreadsheet_habits():
    data = csv(
        "2024-06-08,GB,Made,1,1m,good,1,Ada,3,9-0,5/2\n",
        ",,,,,,2,Bo,1,8-7,evens\n",
        ",,,,,,,,,,\n",
        ",,,2,6f,soft,1,Cy,1,8-7,4\n",
    )
    for form in (
        data,
        b"\xef\xbb\xbf" + data,
        data.replace(b",", b";"),
        data.replace(b"\n", b"\r\n"),
    ):
        card = cards.parse_card(form)
        assert card.tables["races"].select("race_id", "distance_m", "going").rows() == [
            ("card:20240608-Made-1", 1609, "good"),
            ("card:20240608-Made-2", 1207, "soft"),
        ]
        assert card.reconciliation["starters"] == 3


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        HEAD.encode(),
        b"\xff\xfe\x00",
        b"{",
        b"[]",
        b"{}",
        b"[1]",
        b'{"runners": []}',
        b'{"runners": {}}',
        b'{"races": 3}',
        b'[{"runners": [1]}]',
        b"[" * 100_000,
        b"a,b\n1,2,3,4\n",
    ],
)
def test_what_is_no_card_is_refused_in_our_words(data):
    for strict in (True, False):
        complaint(data, strict)
    with pytest.raises(BadInput):
        cards.parse_card(b"[" + b" " * cards.MAX_BYTES)


def test_json_values_of_the_wrong_kind():
    race = {
        "date": "2024-06-08",
        "country": "GB",
        "course": "Made",
        "race": 1,
        "runners": [
            {"no": 1, "horse": "Ada", "draw": [1], "jockey": {"a": 1}, "odds": True, "age": 1e400}
        ],
    }
    data = json.dumps(race).encode()
    assert all(f"column {c}" in complaint(data) for c in ("draw", "jockey", "odds"))
    assert cards.parse_card(data, strict=False).tables["runners"].select(
        "draw", "jockey_id", "age"
    ).row(0) == (None, None, None)
    race["runners"][0] = {"no": 1, "horse": ["Ada"]}
    assert "column horse" in complaint(json.dumps(race).encode(), strict=False)


@quick
@given(st.lists(st.lists(texts, min_size=11, max_size=11), min_size=1, max_size=4), st.booleans())
def test_no_card_fails_but_by_a_complaint(rows, strict):
    field = [dict(zip(HEAD.strip().split(","), r, strict=True)) for r in rows]
    race = {k: field[0][k] for k in ("date", "country", "course", "race", "distance", "going")}
    runners = [{k: r[k] for k in ("no", "horse", "stall", "weight", "odds")} for r in field]
    with contextlib.suppress(BadInput):
        cards.parse_card(json.dumps({**race, "runners": runners}).encode(), strict=strict)


@pytest.mark.parametrize("name", ["card.csv", "card_manual.json"])
def test_the_examples_that_ship(name):
    card = cards.read_card(SAMPLE / name)
    starts = starts_frame(card.tables)
    assert set(PRE_RACE) <= set(starts.columns) and not len(card.quarantine)
    assert (
        starts.select("distance_m", "going", "odds", "weight_kg", "draw", "class_level")
        .null_count()
        .sum_horizontal()
        .item()
        == 0
    )
    assert card.reconciliation["non_runners"] == 1 and starts["n_starters"].unique().to_list() == [
        len(starts)
    ]


@pytest.mark.parametrize("name", ["card.csv", "card_manual.json", "card.json"])
def test_the_service_sees_the_same_card(name):
    card = cards.read_card(SAMPLE / name)
    starts, (request,) = starts_frame(card.tables), cards.as_requests(card)
    frame, odds = card_frame(Card.model_validate(json.loads(json.dumps(request))))
    here = [c for c in PRE_RACE if c != "name"]
    assert (
        frame.select(here).equals(starts.select(here)) and odds.tolist() == starts["odds"].to_list()
    )


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match="card cannot be opened"):
        cards.read_card(tmp_path / "none.csv")
