"""Turkey's results from outside: made days, and ten real months reconciled to the row."""

import json
import random

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from racing_core.data import tjk
from racing_core.data.ingest import SOURCES
from racing_core.errors import BadInput

BOOK = [1.5, 2.5, 3.75]  # 1/odds sum to 1.333


def runner(position, no, name, odds, time="1.29.68", **more):
    made = dict(position=position, no=no, name=name, odds=odds, finishTime=time, age=4)
    return made | dict(weight=57.5, jockey="A BİNİCİ", trainer="B EĞİTMEN") | more


def field(odds=BOOK, **more):
    return [runner(i, str(i), f"AT {i}", o, **more) for i, o in enumerate(odds, 1)]


def race(horses, venue="İzmir", number=1, **more):
    head = dict(date="2025-03-01", raceNo=number, venue=venue, surface="Kum", raceClass="Maiden")
    return head | dict(distance=1400, horses=horses) | more


def day(tmp_path, *races, log=()):
    (tmp_path / "day.json").write_text(json.dumps(races), encoding="utf-8")
    if log:
        (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, log)), encoding="utf-8")
    return tjk.parse(tmp_path)


def test_it_is_a_source():
    assert SOURCES["tjk"] is tjk.parse


def test_rows_in_any_order_give_the_same_tables(tmp_path):
    heat = field()
    heat[1]["position"] = 1
    races = [race(heat), race(field([1.5, 2.5, 3.75, 3.75]), number=2)]
    tidy = day(tmp_path, *races)
    for made in races:
        random.Random(0).shuffle(made["horses"])
    mixed = day(tmp_path, *races[::-1])
    for name, table in tidy.tables.items():
        assert table.equals(mixed.tables[name])
    assert tidy.reconciliation["dead_heats_first"] == 1
    assert tidy.tables["results"]["position"].to_list() == [1, 1, 3, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("horses", "reason"),
    [
        (field()[1:], "position: expected positions without a hole"),
        (
            [*field()[:1], runner(3, "3", "AT 3", 1.4)],
            "position: expected positions without a hole",
        ),
        (field([4.0, 5.0, 9.0]), "odds: expected a book of which 1/odds sum to one or more"),
        (field([1.01])[:1], "horses: expected a field of two or more"),
        (
            [runner(1, str(i), f"AT {i}", 2.0) for i in range(1, 6)],
            "position: expected at most three in one place",
        ),
        (
            [runner(1, "1", "A", 1.5), runner(1, "2", "B", 2.0, "1.31.00"), runner(3, "3", "C", 3)],
            "finishTime: expected one time for the winner",
        ),
        (
            [*field(), runner(4, "3", "AT 4", 9.0)],
            "race_id+runner_no: expected one row for each key",
        ),
    ],
)
def test_a_race_that_is_not_whole_is_set_aside(tmp_path, horses, reason):
    done = day(tmp_path, race(horses), race(field(), number=2))
    assert reason in done.reconciliation["why"]
    assert done.tables["races"]["race_no"].to_list() == [2]
    assert done.reconciliation["quarantined"] == len(horses)


def test_a_price_of_two_is_left_out_and_one_that_is_equal_by_chance_stays(tmp_path):
    usual = [race(field(), number=i) for i in range(1, 4)]
    pair = race(field([1.5, 2.5, 3.75, 3.75]), number=4)
    chance = race(field([2.0, 2.0, 3.0]), number=5)
    done = day(tmp_path, *usual, pair, chance)
    priced = done.tables["prices"].group_by("race_id").len().sort("race_id")["len"].to_list()
    assert priced == [3, 3, 3, 2, 3]
    assert done.reconciliation["why"] == {"price of an entry of several runners": 2}


def test_who_did_not_run_and_who_did_not_finish(tmp_path):
    lost, gone = runner(4, "4", "ADA", 20.0, "Derecesiz"), runner(5, "5", "BO", 0, "Koşmaz")
    done = day(tmp_path, race([*field(), lost, gone]))
    assert done.tables["results"].select("status", "position").rows()[3:] == [
        ("did_not_finish", None),
        ("non_runner", None),
    ]
    assert len(done.tables["prices"]) == 4
    assert done.reconciliation["non_runners"] == 1


def test_names_numbers_and_ids(tmp_path):
    horses = field()
    horses[0] |= dict(no="", name="KING(12) (USA)", jockey="A KİNG", trainer=".")
    horses[1] |= dict(name="KİNG", age=5)
    horses[2] |= dict(weight=556.5)
    runners = day(tmp_path, race(horses)).tables["runners"].sort("horse_id")
    assert runners["horse_id"].to_list() == ["AT 3 (2021)", "KING (2020)", "KING (2021)"]
    assert runners["runner_no"].to_list() == [3, 2, 12]
    assert runners["horse_name"][2] == "KING (USA)"
    assert runners["jockey_id"][2] == "A KING" and runners["trainer_id"][2] is None
    assert runners["weight_kg"].to_list() == [None, 57.5, 57.5]


@pytest.mark.parametrize(
    ("venue", "course", "country"),
    [
        ("Şanlıurfa", "Şanlıurfa", "TR"),
        ("Belmont At The Big A ABD", "Belmont At The Big A", "US"),
        ("Turffontein Guney Afrika", "Turffontein", "ZA"),
        ("ClubHipico Santiago Şili", "ClubHipico Santiago", "CL"),
        ("Nowhere", "Nowhere", "XX"),
        ("ABD", "ABD", "XX"),
    ],
)
def test_the_country_of_a_venue(tmp_path, venue, course, country):
    done = day(tmp_path, race(field(), venue))
    assert done.tables["races"].select("course", "jurisdiction").row(0) == (course, country)
    told = "row of a venue whose country is not known" in done.reconciliation["why"]
    assert told == (country == "XX")


def test_a_race_on_tapeta_has_lost_its_distance(tmp_path):
    done = day(
        tmp_path, race(field(), "Gulfstream Park ABD", raceClass="Tapeta", surface="", distance=0)
    )
    assert done.tables["races"].select("surface", "distance_m").row(0) == ("all_weather", None)
    assert done.quarantine.is_empty()


def test_prices_by_the_hour(tmp_path):
    at = {
        "2025-02-28T20:00": 9.0, "2025-03-01T07:00": 8.0, "2025-03-01T10:00": 7.0,
        "2025-03-01T11:59": 6.0, "2025-03-01T12:49": 5.0, "2025-03-01T12:55": 4.0,
        "2025-03-01T13:01": 3.0,
    }  # fmt: skip
    log = [
        dict(ts=f"{ts}:00.000Z", date="2025-03-01", raceNo=n, venue="İzmir", time="16:00", no="1",
             name="AT 1", odds=o)
        for ts, o in at.items() for n in (1, 7)
    ]  # fmt: skip
    done = day(tmp_path, race(field()), log=log)
    prices = done.tables["prices"].filter(pl.col("runner_no") == 1)
    assert prices.select("moment", "odds").rows() == [
        ("evening", 9.0),
        ("morning", 7.0),
        ("T-60", 6.0),
        ("T-10", 5.0),
        ("scheduled_off", 4.0),
        ("close", 1.5),
    ]
    assert done.reconciliation["why"]["price of the log for a runner without a result"] == 5
    assert str(done.tables["races"]["off_utc"][0]) == "2025-03-01 13:00:00+00:00"


@pytest.mark.parametrize(
    "bad", ['{"a": 1}', "[3]", '[{"horses": [3]}]', "nonsense", '[{"horses": [{}]}]']
)
def test_what_is_no_day_is_named(tmp_path, bad):
    (tmp_path / "day.json").write_text(bad, encoding="utf-8")
    with pytest.raises(BadInput, match=r"day\.json"):
        tjk.parse(tmp_path)


@settings(deadline=None)
@given(st.lists(st.sampled_from([1.2, 1.5, 2.0, 3.0, 3.75, 9.0, 20.0]), min_size=2, max_size=12))
def test_only_equal_prices_are_taken_for_one(odds):
    frame = pl.DataFrame({"race_id": "d:1", "date": 1, "status": "finished", "odds": odds})
    shared = tjk.coupled(frame)
    for yes, o in zip(shared, odds, strict=True):
        assert not yes or odds.count(o) > 1
    together = frame.filter(shared)["odds"]
    assert all(odds.count(o) == together.to_list().count(o) for o in together)


def test_ten_real_months(shared_data):
    folder = shared_data / "tjk"
    if not folder.is_dir():
        pytest.skip(f"no Turkish results in {shared_data}")
    done = tjk.parse(folder)
    account, races = done.reconciliation, done.tables["races"]
    counted = ("rows_read", "duplicates", "quarantined", "non_runners", "starters", "races")
    assert [account[c] for c in counted] == [73116, 0, 1136, 18, 71962, 7998]
    assert done.quarantine.filter(pl.col("race_id").is_in(races["race_id"].implode()))[
        "got"
    ].to_list() == ["556.5"]
    # in the files 8,234 races; each that is gone has its reason
    gone = set(done.quarantine["race_id"]) - set(races["race_id"])
    assert len(gone) == 8234 - 7998
    countries = dict(races["jurisdiction"].value_counts().rows())
    assert countries == {"TR": 5441, "US": 2031, "GB": 413, "CA": 71, "IE": 42}
    why = account["why"]
    assert why["runner without odds"] == 319 and why["price of an entry of several runners"] == 3444
    assert why["price of the log for a runner without a result"] == 67
    turkish = races.filter(pl.col("jurisdiction") == "TR", pl.col("date").dt.month() > 2)
    books = done.tables["prices"].join(turkish, on="race_id", how="semi")
    books = books.group_by("race_id").agg((1 / pl.col("odds")).sum().alias("book"), n=pl.len())
    field = (
        done.tables["results"].filter(pl.col("status") != "non_runner").group_by("race_id").len()
    )
    whole = books.join(field, on="race_id").filter(pl.col("n") == pl.col("len"))["book"]
    assert len(whole) > 3000 and whole.median() == pytest.approx(1.342, abs=0.002)
    assert whole.is_between(1.32, 1.37).mean() > 0.95
