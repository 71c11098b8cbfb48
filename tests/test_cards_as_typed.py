"""Cards as people type them: characters with two meanings, words for a withdrawal, names for ids, prices of no book."""

import json
import zlib
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from racing_core.data import cards
from racing_core.errors import BadInput, Tampered
from racing_core.features.matrix import History, compute
from racing_core.folds import Races
from racing_core.models.linear import ConditionalLogit
from racing_core.pipeline import Pipeline
from racing_core.release import bundle
from racing_core.release.names import remembered
from racing_core.serving import bets
from racing_core.serving.book import BOOKS, limits, no_book, total
from racing_core.serving.cardfile import read_cards
from racing_core.serving.contract import EXAMPLE, Card
from racing_core.serving.guard import FORM_ALONE
from racing_core.serving.names import Memory, alike, identify
from racing_core.serving.predictor import Predictor, sample_card
from racing_core.simulate import simulate

HEAD = "country,date,course,race,distance,surface,number,horse,weight,price"
RACE = "GB,2024-02-13,Ascot,3,1m2f,turf"


def typed(*runners: str, head: str = HEAD, race: str = RACE, comma: str = ",") -> bytes:
    "A card with these ends of lines."
    return "\n".join([head, *(f"{race}{comma}{r}" for r in runners)]).encode()


def read(data: bytes, tmp_path, lenient: bool = False, name: str = "card.csv") -> Card:
    "The card that a file of these bytes is."
    file = tmp_path / name
    file.write_bytes(data)
    (card,), _ = read_cards(str(file), lenient)
    return card


def refused(data: bytes, tmp_path, lenient: bool = False) -> str:
    with pytest.raises(BadInput) as e:
        read(data, tmp_path, lenient)
    return str(e.value)


# --- characters with two meanings ------------------------------------------------------------------------------------
@pytest.mark.parametrize("comma", [";", "\t"])
def test_between_semicolons_and_tabs_a_comma_is_a_decimal_one(comma, tmp_path):
    def fields(*runners: str) -> list[tuple]:
        head, race = (text.replace(",", comma) for text in (HEAD, RACE))
        rows = [r.replace(";", comma) for r in runners]
        card = read(typed(*rows, head=head, race=race, comma=comma), tmp_path)
        return [(r.weight_kg, r.odds) for r in card.runners]

    rows = "1;Alpha;57,5;3,5", "2;Beta;56;2,1", "3;Gamma;55,25;1,080", "4;Delta;54;12,0"
    assert fields(*rows) == [(57.5, 3.5), (56, 2.1), (55.25, 1.08), (54, 12)]
    assert fields("1;Alpha;57,5;1,080") == [(57.5, 1.08)]  # no column shows it, the separator does


def test_in_a_file_of_commas_the_column_shows_which_one_is_meant(tmp_path):
    card = read(typed('1,Alpha,57,"3,5"', '2,Beta,56,"2,1"'), tmp_path)
    assert [r.odds for r in card.runners] == [3.5, 2.1]
    card = read(typed('1,Alpha,57,"1,080"', "2,Beta,56,1.5"), tmp_path)
    assert [r.odds for r in card.runners] == [1080, 1.5]


def test_a_blank_inside_a_number_is_a_fault_that_shows_the_value(tmp_path):
    said = refused(typed("1,Alpha,9-7,2 1/2", "2,Beta,11 4,6 4"), tmp_path)
    for part in (
        "row 1, column price: got '2 1/2'",
        "row 2, column weight: got '11 4'",
        "row 2, column price: got '6 4'",
    ):
        assert part in said
    loose = read(typed("1,Alpha,9-7,2 1/2", "2,Beta,11 4,6 4"), tmp_path, lenient=True)
    assert [(r.odds, r.weight_kg) for r in loose.runners] == [(None, 60.328), (None, None)]


@pytest.mark.parametrize(
    ("said", "odds"),
    [("9-4f", 3.25), ("9-4jf", 3.25), ("EvensF", 2), ("33/1", 34), ("9–4", 3.25), ("9/4 F", 3.25)],
)
def test_marks_of_a_favourite_and_long_dashes(said, odds, tmp_path):
    assert read(typed(f"1,Alpha,9-7,{said}"), tmp_path).runners[0].odds == odds


@pytest.mark.parametrize(
    ("said", "metres"), [("1¼m", 2012), ("1½m", 2414), ("1m2f", 2012), ("2m½f", 3319)]
)
def test_distances_with_fractions(said, metres, tmp_path):
    race = RACE.replace("1m2f", said)
    assert read(typed("1,Alpha,9-7,2", race=race), tmp_path).distance_m == metres


@pytest.mark.parametrize("head", ["weight_lbs", "Weight_LB", "lbs"])
def test_pounds_by_their_head(head, tmp_path):
    card = read(typed("1,Alpha,126,2", head=HEAD.replace("weight", head)), tmp_path)
    assert card.runners[0].weight_kg == pytest.approx(57.153)


def test_a_year_of_two_digits_is_of_this_century_until_49(tmp_path):
    for said, day in (("13/02/24", date(2024, 2, 13)), ("13-02-49", date(2049, 2, 13))):
        race = RACE.replace("2024-02-13", said)
        assert read(typed("1,Alpha,9-7,2", race=race), tmp_path).date == day


@pytest.mark.parametrize("said", ["1707782400", "45335", "0024-02-13", "13/02/0024", "9999-01-01"])
def test_numbers_of_seconds_and_impossible_years_are_no_dates(said, tmp_path):
    race = RACE.replace("2024-02-13", said)
    assert f"column date: got '{said}'" in refused(typed("1,Alpha,9-7,2", race=race), tmp_path)
    for value in (said, int(said)) if said.isdecimal() else (said,):
        with pytest.raises(ValidationError, match="date"):
            Card.model_validate(EXAMPLE | dict(date=value))
        assert "date" in refused(json.dumps(EXAMPLE | dict(date=value)).encode(), tmp_path)


def test_who_made_the_prices_and_when_may_stand_on_the_card(tmp_path):
    head, race = f"{HEAD},market,as_of", RACE
    card = read(typed("1,Alpha,9-7,2,Exchange,t-60", head=head, race=race), tmp_path)
    assert (card.price_kind, card.as_of) == ("exchange", "T-60")
    assert "column market: got 'pub'" in refused(typed("1,Alpha,9-7,2,pub,", head=head), tmp_path)
    plain = read(typed("1,Alpha,9-7,2"), tmp_path)
    assert (plain.price_kind, plain.as_of) == (None, None)


# --- words with a meaning --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("word", ["NR", "non runner", "Non-Runner", "scr", "Scratched", "void"])
@pytest.mark.parametrize("lenient", [False, True])
def test_a_withdrawal_in_words_is_one_wherever_it_stands(word, lenient, tmp_path):
    head = HEAD + ",jockey"
    for beta in (
        f"2,Beta,9-5,{word},B Rider",
        f"2,Beta,{word},4,B Rider",
        f"2,Beta,9-5,4,{word}",
        f"{word},Beta,9-5,4,B Rider",
    ):
        card = read(
            typed("1,Alpha,9-7,5/2,A Rider", beta, "3,Gamma,9-5,6/4,", head=head),
            tmp_path,
            lenient,
        )
        assert [r.horse_name for r in card.starters] == ["Alpha", "Gamma"], beta
        assert {r.horse_name: r.non_runner for r in card.runners}["Beta"]


def test_true_is_no_number(tmp_path):
    for field in ("runner_no", "draw", "age", "rating", "odds", "weight_kg", "jockey"):
        runners = [EXAMPLE["runners"][0] | {field: True}]
        with pytest.raises(ValidationError, match="true and false"):
            Card.model_validate(EXAMPLE | dict(runners=runners))
        sent = EXAMPLE | dict(distance="1m", runners=runners)
        del sent["distance_m"]
        assert "true" in refused(json.dumps(sent).encode(), tmp_path), field
    for field in ("race_no", "prize", "distance_m"):
        with pytest.raises(ValidationError, match="true and false"):
            Card.model_validate(EXAMPLE | {field: True})


# --- files -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-mark"])
def test_a_mark_in_front_changes_nothing(form, tmp_path):
    def coded(text: str) -> bytes:
        return (
            "\ufeff".encode("utf-16-le") + text.encode("utf-16-le")
            if "mark" in form
            else (text.encode(form))
        )

    plain = Card.model_validate(EXAMPLE)
    assert read(coded(json.dumps(EXAMPLE)), tmp_path, name="card.json") == plain
    by_hand = typed("1,Éclair,9-7,5/2").decode()
    assert read(coded(by_hand), tmp_path).runners[0].horse_name == "Éclair"


def test_what_is_no_text_is_named_before_it_is_read(tmp_path):
    packed = zlib.compressobj(wbits=31)
    gzip = packed.compress(typed("1,Alpha,9-7,2") * 100) + packed.flush()
    zipped = zlib.compress(typed("1,Alpha,9-7,2"), 1)
    for data, word in (
        (gzip, "gzip"),
        (b"PK\x03\x04" + b"\0" * 30, "workbook"),
        (b"PAR1" + b"\0" * 30, "parquet"),
        (zipped, "zlib"),
        (typed("1,Éclair,9-7,2").decode().encode("cp1252"), "byte 0xc9"),
        (typed("1,Alpha,9-7,2").decode().encode("utf-16-le"), "NUL"),
        (b" " * (cards.MAX_BYTES + 1), "5000001 bytes"),
    ):
        said = refused(data, tmp_path)
        assert word in said and "Traceback" not in said
        with pytest.raises(BadInput, match="cannot be read"):
            cards.parse_card(data)


@pytest.mark.parametrize("place", ["course", "horse"])
def test_half_a_character_is_refused_and_no_traceback(place, tmp_path):
    race = dict(country="GB", date="2024-02-13", course="Ascot", race=1, distance="1m")
    race |= dict(runners=[dict(no=1, horse="Alpha")])
    (race if place == "course" else race["runners"][0])[place] = "A\ud800"
    said = refused(json.dumps(race).encode(), tmp_path)
    assert "surrogates" in said or "whole characters" in said
    assert "hex escape" in refused(b'{"course": "\\ud800"}', tmp_path)


def test_what_steers_a_terminal_never_gets_into_a_name(tmp_path):
    loud = "Al\x1b[2Jpha\x07"
    card = read(typed(f"1,{loud},9-7,2"), tmp_path)
    assert not any(ord(c) < 32 for c in card.runners[0].horse_name)
    for name in (loud, "Al\u202epha", "Al\x9bpha"):
        with pytest.raises(ValidationError, match="control character"):
            Card.model_validate(
                EXAMPLE | dict(runners=[EXAMPLE["runners"][0] | dict(horse_name=name)])
            )


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda s: s.encode("utf-8", "replace")))
def test_any_bytes_are_a_text_or_refused(data):
    try:
        said = cards.as_text(data)
    except BadInput:
        return
    assert (
        "\0" not in said and not said.startswith("\ufeff\ufeff\ufeff") and said.encode() is not None
    )


# --- coupled entries and reserves ------------------------------------------------------------------------------------
COUPLED = "1,Alpha,126,7/2", "1A,Beta,126,7/2", "2,Gamma,120,6/4", "2B,Delta,120,", "3,Eps,119,5/2"


def test_coupled_entries_are_one_interest_with_one_price(tmp_path):
    card = read(typed(*COUPLED), tmp_path)
    assert [r.printed for r in card.runners] == ["1", "2", "3", "2B", "1A"]
    assert card.prices == {1: 4.5, 2: 2.5, 3: 3.5}
    assert total(card) == pytest.approx(1 / 4.5 + 1 / 2.5 + 1 / 3.5)
    again = read(card.model_dump_json(exclude_none=True).encode(), tmp_path)
    assert again == card
    assert "one price for coupled entries" in refused(
        typed(*COUPLED[:1], "1A,Beta,126,9/2"), tmp_path
    )
    assert "one line for each runner" in refused(typed("1A,Alpha,126,2", "1A,Beta,126,2"), tmp_path)


def test_a_reserve_runs_only_if_promoted(tmp_path):
    rows = "1,Alpha,9-7,5/2", "2,Beta,9-5,6/4"
    for number in ("R1", "res 1", "AE1", "17E"):
        card = read(typed(*rows, f"{number},Gamma,9-4,"), tmp_path)
        assert [r.horse_name for r in card.starters] == ["Alpha", "Beta"], number
        assert [r.horse_name for r in card.runners if r.reserve] == ["Gamma"]
    head, race = HEAD + ",promoted", RACE
    ready = typed(*(r + "," for r in rows), "R1,Gamma,9-4,10/1,yes", head=head, race=race)
    card = read(ready, tmp_path)
    assert [r.printed for r in card.starters] == ["1", "2", "R1"]
    assert cards.parse_card(typed(*rows, "R1,Gamma,9-4,")).reconciliation["reserves"] == 1


# --- a bundle that remembers names -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def world() -> pl.DataFrame:
    return simulate(races=600, seed=23).starts()


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    "A bundle that has not seen the last day."
    past = world.filter(pl.col("date") < world["date"].max())
    history = History.learn(past)
    late = (past["date"].rank("dense") > 0.8 * past["date"].n_unique()).to_numpy()
    models = (
        {"conditional_logit": ConditionalLogit()},
        {"conditional_logit": ConditionalLogit(l2=5000)},
    )
    pipeline = Pipeline(*models).fit(Races.of(past, compute(past, history)), ~late, late)
    days = dict(trained_from=past["date"].min(), trained_until=past["date"].max())
    origin = bundle.Origin("named", "simulated", **days, now=datetime(2026, 1, 1, tzinfo=UTC))
    folder = tmp_path_factory.mktemp("bundles") / "named"
    bundle.write(folder, pipeline, history, origin, names=remembered(past))
    return folder


@pytest.fixture(scope="module")
def predictor(folder) -> Predictor:
    return Predictor(bundle.read(folder))


@pytest.fixture(scope="module")
def card(world) -> Card:
    "The last field that the bundle knows, declared again a week later."
    past = world.filter(pl.col("date") < world["date"].max())
    last = sample_card(past, past["race_id"][-1])
    return last.model_copy(update=dict(date=last.date + timedelta(7), race_id=None))


def changed(card: Card, **by_number: dict) -> Card:
    return card.model_copy(
        update=dict(
            runners=[
                r.model_copy(update=by_number.get(f"_{r.runner_no}", {}) | by_number.get("all", {}))
                for r in card.runners
            ]
        )
    )


def shares(answer) -> list[tuple]:
    return [(r.runner_no, r.win_probability, r.edge) for r in answer.ranked]


def by_name(card: Card, how) -> Card:
    "The card with names for ids."
    runners = [
        r.model_copy(update=dict(horse_id=None, horse_name=how(r.horse_name))) for r in card.runners
    ]
    return card.model_copy(update=dict(runners=runners))


@pytest.mark.parametrize(
    "how",
    [str, str.upper, "{} (IRE)".format, "  {}  ".format, lambda n: n.replace("a", "á")],
    ids=["as printed", "capitals", "country", "blanks", "accents"],
)
def test_a_name_gets_the_answer_of_its_id(how, predictor, card):
    typed, known = predictor.predict(by_name(card, how)), predictor.predict(card)
    assert shares(typed) == shares(known) and not known.identified
    assert [(i.kind, i.id) for i in typed.identified] == [("horse", r.horse) for r in card.runners]
    assert all(r.known_horse for r in typed.ranked)


def test_a_claim_behind_a_jockey_is_no_part_of_the_name(predictor, card):
    claims = {f"_{r.runner_no}": dict(jockey=f"{r.jockey.lower()} (5)") for r in card.runners}
    typed = predictor.predict(changed(card, **claims))
    assert shares(typed) == shares(predictor.predict(card))
    assert {i.kind for i in typed.identified} == {"jockey"}


def test_two_horses_of_a_name_are_asked_about(predictor, card):
    twin = dict(kind="horse", id="X1", name=card.runners[0].horse_name, last=date(2015, 5, 1))
    names = pl.concat([predictor.bundle.names, pl.DataFrame([twin])])
    typed, memory = by_name(card, str), Memory(names)
    with pytest.raises(BadInput, match="two horses of this name") as e:
        identify(typed, memory)
    assert "X1 (last seen 2015-05-01)" in str(e.value) and card.runners[0].horse in str(e.value)
    assert identify(card, memory)[0] == card  # an id is an id
    one = card.runners[0].model_copy(update=dict(runner_no=90, horse_id=None))
    with pytest.raises(BadInput, match="two runners are one horse"):
        identify(card.model_copy(update=dict(runners=[*card.runners, one])), Memory(names.head(-1)))


def test_names_in_either_script_and_marks_of_japan():
    day = date(2024, 1, 6)
    rows = [
        ("horse", "D105", "北極光", day),
        ("horse", "D105", "NORTHERN LIGHT", day),
        ("horse", "2021105073", "パカーラン", day),
        ("trainer", "01132", "[西]池江泰寿", day),
        ("jockey", "05339", "Ｃ．ルメール", day),
    ]
    memory = Memory(pl.DataFrame(rows, schema=["kind", "id", "name", "last"], orient="row"))
    for said in ("北極光", "北極光 (D105)", "Northern Light", "northern light (AUS)"):
        assert memory.find("horse", said) == ["D105"], said
    assert memory.find("horse", "ﾊﾟｶｰﾗﾝ") == ["2021105073"] and not memory.find(
        "horse", "バカーラン"
    )
    assert memory.find("trainer", "池江泰寿") == ["01132"]
    assert memory.find("horse", "Northern Light (IRE)") == ["D105"]
    assert memory.find("jockey", "C.ルメール") == ["05339"]


def test_two_countries_are_two_horses():
    rows = [("horse", key, key, date(2024, 1, 6)) for key in ("Alpha (IRE)", "Alpha (FR)", "Beta")]
    memory = Memory(pl.DataFrame(rows, schema=["kind", "id", "name", "last"], orient="row"))
    assert memory.find("horse", "ALPHA (ire)") == ["Alpha (IRE)"]
    assert memory.find("horse", "Alpha") == ["Alpha (FR)", "Alpha (IRE)"]
    assert memory.find("horse", "Alpha (USA)") == [] and memory.find("horse", "Beta (GB)") == [
        "Beta"
    ]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_a_folded_name_folds_to_itself_and_any_text_is_a_stranger(name):
    assert alike(alike(name)) == alike(name) or "(" in alike(name)
    assert alike(name.upper()) == alike(name) or not name.isascii()
    memory = Memory(
        pl.DataFrame(schema=dict(kind=pl.String, id=pl.String, name=pl.String, last=pl.Date))
    )
    assert memory.find("horse", name) == []


def test_the_names_of_a_bundle_are_vouched_for_like_the_rest(folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    names = pl.read_parquet(copy / bundle.NAMES)
    names.with_columns(id=pl.col("id").reverse()).write_parquet(copy / bundle.NAMES)
    with pytest.raises(Tampered):
        bundle.read(copy)


# --- prices that are no book -----------------------------------------------------------------------------------------
def test_a_book_that_cannot_be_makes_no_edge_and_says_what_it_sums_to(predictor, card):
    whole = predictor.predict(card)
    assert whole.stage == "combined" and all(r.edge is not None for r in whole.ranked)
    favourite = min(card.runners, key=lambda r: r.odds)
    alone = card.model_copy(update=dict(runners=[favourite]))
    gone = changed(card, **{f"_{favourite.runner_no}": dict(non_runner=True)})
    unsaid = changed(gone, **{f"_{favourite.runner_no}": dict(odds=None)})
    for poor in (
        alone,
        gone,
        unsaid,
        changed(card, all=dict(odds=1000.0)),
        changed(card, all=dict(odds=2.0)),
    ):
        answer = predictor.predict(poor)
        assert answer.stage == "fundamental" and {r.edge for r in answer.ranked} == {None}
        assert any(f"1/odds sum to {total(poor):.2f}" in w for w in answer.warnings)
        slip = bets.slips([poor], [answer])[0]
        assert not slip.bets and "no edge" in slip.notes[0]
    said = predictor.predict(gone).warnings
    assert any("is withdrawn" in w and "Rule 4 would deduct" in w for w in said)
    with pytest.raises(BadInput, match="no answer of this stage"):
        predictor.look(alone, "combined")


def test_a_placeholder_for_everybody_is_no_book():
    field = [dict(runner_no=i, horse_name=f"H{i}", odds=10.0) for i in range(1, 11)]
    assert total(Card.model_validate(EXAMPLE | dict(runners=field))) == pytest.approx(1)
    assert "placeholder" in no_book(Card.model_validate(EXAMPLE | dict(runners=field)))
    sure = [dict(runner_no=1, horse_name="Walkover", odds=1.05)]
    assert "no market" in no_book(Card.model_validate(EXAMPLE | dict(runners=sure)))


@given(st.sampled_from([None, *BOOKS]), st.integers(2, 40))
def test_the_limits_hold_a_fair_book_and_widen_with_the_field(kind, n):
    lo, hi = limits(kind, n)
    assert lo <= 1 < 1.1 < hi < 3 and limits(kind, n + 1)[1] >= hi
    assert all(
        limits(None, n)[0] <= limits(k, n)[0] and limits(k, n)[1] <= limits(None, n)[1]
        for k in BOOKS
    )


def test_from_form_alone_there_is_no_edge_over_a_price(predictor, card):
    alone = predictor.predict(card, "fundamental")
    assert FORM_ALONE in alone.warnings and {r.edge for r in alone.ranked} == {None}
    assert all(r.odds and r.market_probability for r in alone.ranked)
    assert FORM_ALONE not in predictor.predict(card).warnings


def test_coupled_entries_have_the_edge_of_their_interest(predictor, card):
    a, b = sorted(card.runners, key=lambda r: r.odds)[:2]
    price = 1 / (1 / a.odds + 1 / b.odds)
    both = dict(odds=price, interest=a.runner_no)
    coupled = changed(card, **{f"_{a.runner_no}": both, f"_{b.runner_no}": both | dict(label="1A")})
    answer = predictor.predict(coupled)
    pair = [r for r in answer.ranked if r.interest]
    assert len(pair) == 2 and pair[0].edge == pair[1].edge
    assert pair[0].edge == pytest.approx(sum(r.win_probability for r in pair) * price - 1)
    odds = predictor.look(coupled).odds
    assert (1 / odds).sum() == pytest.approx(total(coupled)) == pytest.approx(total(card))
    form = predictor.look(coupled).probabilities["fundamental"]
    mine = np.array([r.interest is not None for r in coupled.starters])
    assert 1 / odds[mine] / (1 / odds[mine]).sum() == pytest.approx(form[mine] / form[mine].sum())
    lines = bets.lines(0, coupled, answer)
    assert (
        sorted(len(x.runners) for x in lines)[-2:] == [1, 2] and len(lines) == len(card.runners) - 1
    )
    sure = changed(coupled, **{f"_{r.runner_no}": dict(odds=price * 1.1) for r in (a, b)})
    slip = bets.slips([sure], [predictor.predict(sure)], bets.Terms(minimum_edge=0))[0]
    assert {b.pool for b in slip.bets} <= {"win"} and slip.expected_profit == pytest.approx(
        sum(b.stake * b.edge for b in slip.bets)
    )


# --- real sources ----------------------------------------------------------------------------------------------------
def test_a_horse_of_hong_kong_is_found_in_either_script(hong_kong_store):
    starts = hong_kong_store.starts()
    aliases = hong_kong_store.read("aliases")
    memory = Memory(remembered(starts, aliases))
    named = memory.names.filter(kind="horse").with_columns(bearers=pl.len().over("id"))
    both = named.filter(pl.col("bearers") == 2)
    assert len(both) > 500 and both["name"].str.contains("^[A-Z]").sum() == len(both) / 2
    for horse, name in both.head(200).select("id", "name").iter_rows():
        assert horse in memory.find("horse", name.title()) and memory.find("horse", horse) == [
            horse
        ]
        assert memory.find("horse", f"{name} ({horse})") == [horse]
    assert memory.find("jockey", "Z Purton") == memory.find("jockey", "潘頓") == ["潘頓"]


def test_a_horse_of_japan_is_found_by_its_name(japan):
    memory = Memory(remembered(japan))
    few = japan.unique("horse_id", maintain_order=True).head(200)
    for who in ("horse", "jockey", "trainer"):
        for key, name in few.select(f"{who}_id", f"{who}_name").drop_nulls().iter_rows():
            assert key in memory.find(who, name), (who, name)
