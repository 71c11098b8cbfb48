"""TheRacingAPI and two sources of weather, from a real local server to the store; answers are made up."""

import contextlib
import copy
import json
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_http import KEY, PASSWORD, SECRETS, USER, Loopback, first, only_loopback, status

from racing_core.config import Home
from racing_core.data import hkjc, netkeiba, racejson, weather
from racing_core.data.fetch import CURSOR, NAMES, fetch, spans
from racing_core.data.http import Limits, Unreachable
from racing_core.data.store import Store
from racing_core.data.store import sources as stores
from racing_core.errors import BadInput, RacingError
from racing_core.schema import TABLES, WEATHER, violations

NOW = datetime(2026, 8, 20, 12, tzinfo=UTC)
QUICK = Limits(
    timeout_s=1.0, deadline_s=3.0, attempts=2, backoff_s=0.01, per_second=500, max_bytes=2_000_000
)


def runner(no, **more):
    return {
        "horse_id": f"hrs_{no}",
        "horse": f"Horse {no} (IRE)",
        "number": str(no),
        "draw": str(no),
        "age": "4",
        "sex": "G",
        "headgear": "p",
        "jockey": "A Rider",
        "jockey_id": "jky_1",
        "trainer": "B Trainer",
        "trainer_id": f"trn_{no}",
        "owner": "C Owner",
        "sire": "D Sire",
        **more,
    }


def ran(no, position, **more):
    run = {
        "position": str(position),
        "btn": "0.5",
        "ovr_btn": "0" if position == 1 else "1.5",
        "sp": "9/4",
        "sp_dec": f"{no + 1}.25",
        "bsp": "",
    }
    run |= {
        "weight": "8-10",
        "weight_lbs": "122",
        "time": "1:43.25",
        "prize": "3245.08",
        "comment": "Held up",
        "or": "47",
        "rpr": "57",
    }
    return runner(no, **run | more)


def race(day, no=1, region="GB", course="Ascot", **more):
    return {
        "race_id": f"rac_{day}_{no}",
        "date": str(day),
        "region": region,
        "course": course,
        "course_id": "crs_1",
        "off": f"{no}:30",
        "off_dt": f"{day}T{12 + no}:30:00+01:00",
        "race_name": "Made Handicap",
        "type": "Flat",
        "pattern": "",
        "rating_band": "0-60",
        "age_band": "3yo+",
        "going": "Good To Soft",
        "surface": "Turf",
        **more,
    }


def result(day, no=1, **more):
    distance = {
        "class": "Class 6",
        "dist": "1m",
        "dist_y": "1773",
        "dist_m": "1621",
        "dist_f": "8f",
    }
    return race(
        day,
        no,
        **distance
        | {"runners": [ran(1, 1), ran(2, 2), ran(3, "PU", ovr_btn="-", time="-")]}
        | more,
    )


def card(day, no=1, **more):
    odds = [
        {"bookmaker": b, "fractional": "5/2", "decimal": d, "updated": "x"}
        for b, d in (("X", "3.5"), ("Y", "4.5"))
    ]
    runners = [
        runner(i, lbs="133", ofr="–", sex="gelding", sex_code="G", odds=odds) for i in (1, 2)
    ] + [runner("NR", lbs="130", ofr="60")]
    distance = {
        "race_class": "Class 4",
        "distance_round": "1m",
        "distance": "1m13y",
        "distance_f": "8.0",
        "prize": "£3,140",
        "is_abandoned": False,
    }
    return race(day, no, **distance | {"runners": runners} | more)


def listed(name, races, most=100):
    "A route that serves pages of a list, as the source documents them."

    def route(h, q):
        lo, hi = (
            q.get("start_date") or q.get("date") or "",
            q.get("end_date") or q.get("date") or "9",
        )
        wanted = [r for r in races if not isinstance(r, dict) or lo <= r["date"] <= hi]
        skip, limit = int(q["skip"]), min(int(q["limit"]), most)
        h.send(
            {
                name: wanted[skip : skip + limit],
                "total": len(wanted),
                "limit": limit,
                "skip": skip,
                "query": [],
            }
        )

    return route


def past_hours(**more):
    "WeatherAPI.com's hours of one local day (British summer)."

    def route(h, q):
        midnight = int(datetime.fromisoformat(q["dt"] + "T00:00:00+01:00").timestamp())
        hour = {
            "temp_c": 20,
            "temp_f": 68,
            "wind_kph": 18,
            "humidity": 60,
            "precip_mm": 0.5,
            "condition": {"text": "Sunny", "code": 1000},
        } | more
        hours = [{"time_epoch": midnight + 3600 * i, **hour} for i in range(24)]
        h.send(
            {
                "location": {"name": "x"},
                "forecast": {"forecastday": [{"date": q["dt"], "day": {}, "hour": hours}]},
            }
        )

    return route


def sky_now(at, **more):
    seen = {
        "main": {"temp": 23.0, "humidity": 71},
        "wind": {"speed": 6.0},
        "weather": [{"id": 500}],
        "rain": {"1h": 0.3},
        "cod": 200,
    }
    return {"dt": int(at.timestamp())} | seen | more


def sky_ahead(start):
    step = {
        "main": {"temp": 18.0, "humidity": 80},
        "wind": {"speed": 3.0},
        "weather": [{"id": 501}],
        "rain": {"3h": 0.25},
        "pop": 0.3,
    }
    return {
        "cod": "200",
        "cnt": 40,
        "list": [{"dt": int(start.timestamp()) + 10800 * i, **step} for i in range(40)],
    }


@pytest.fixture
def server(monkeypatch):
    only_loopback(monkeypatch)
    with contextlib.closing(Loopback()) as server:
        yield server


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home", "")


def env(server, plan="pro", **more):
    urls = dict.fromkeys(("RACING_API_URL", "OPENWEATHERMAP_URL", "WEATHERAPI_URL"), server.url)
    keys = {
        "RACING_API_USER": USER,
        "RACING_API_PASSWORD": PASSWORD,
        "WEATHERAPI_KEY": KEY,
        "OPENWEATHERMAP_API_KEY": KEY,
    }
    return urls | keys | {"RACING_API_PLAN": plan} | more


def get(server, home, kind="results", since="2026-08-01", until="2026-08-15", plan="pro", **more):
    return fetch(
        kind,
        home,
        since,
        until,
        env=more.pop("env", env(server, plan)),
        now=more.pop("now", NOW),
        limits=more.pop("limits", QUICK),
        **more,
    )


def days(n, start=date(2026, 8, 1)):
    return [start + timedelta(i) for i in range(n)]


def whole(home):
    "No file of the store is half-written, and all of it can be read."
    assert not [p for p in home.root.rglob("*") if p.suffix == ".part"]
    for folder in home.store.glob("*/manifest.json"):
        for table in TABLES:
            assert not len(violations(Store(home, folder.parent.name).read(table), TABLES[table]))


# --- TheRacingAPI ----------------------------------------------------------------------------------------------------
def test_results_to_canonical_tables(server, home):
    server.routes["/v1/results"] = listed(
        "results", [result(d, n) for d in days(3) for n in (2, 1)]
    )
    done = get(server, home, regions=["IRE", "gb"])
    races, starts = Store(home, "racingapi").read("races"), Store(home, "racingapi").starts()
    _, query, headers = server.asked[0]
    assert (
        query["region"] == ["gb", "ire"]
        and query["start_date"] == "2026-08-01"
        and query["end_date"] == "2026-08-07"
        and "Authorization" in headers
    )
    assert (done.races, done.runners, done.quarantined, done.changed, done.done) == (
        6,
        18,
        0,
        True,
        "2026-08-15",
    )
    first_race = races.row(0, named=True)
    assert (
        first_race["off_utc"] == datetime(2026, 8, 1, 12, 30, tzinfo=UTC)
        and races["race_no"].to_list() == [1, 2] * 3
    )
    assert (
        first_race["distance_m"],
        first_race["going"],
        first_race["class_level"],
        first_race["jurisdiction"],
    ) == (1621, "good_to_soft", "class_6", "GB")
    assert (first_race["currency"], first_race["prize"]) == ("GBP", pytest.approx(9735.24))
    assert (
        starts["weight_kg"][0] == 55.338
        and starts["odds"].to_list()[:3] == [2.25, 3.25, 4.25]
        and starts["status"][2] == "did_not_finish"
    )
    whole(home)


def test_cards_live_apart_and_carry_forecast_prices(server, home):
    server.routes["/v1/racecards/pro"] = listed(
        "racecards", [card(NOW.date()), card(NOW.date(), 2, is_abandoned=True)]
    )
    done = get(server, home, "card", since=None, until=None)
    store = Store(home, NAMES["card"])
    assert (
        done.races,
        done.runners,
        store.read("races")["prize"][0],
        store.read("races")["currency"][0],
    ) == (1, 2, 3140, "GBP")
    assert (
        store.read("prices").rows()[0][2:] == ("morning", "fixed", 4.0, None)
        and store.read("races")["distance_m"][0] == 1621
    )
    assert (
        store.starts()["status"].null_count() == 2
        and store.read("runners")["rating"].null_count() == 2
    )
    assert not (home.store / "racingapi").exists()
    assert {q["date"] for _, q, _ in server.asked} == {"2026-08-20", "2026-08-21"}
    whole(home)


@pytest.mark.parametrize(
    ("plan", "path"),
    [
        ("free", "/v1/racecards/free"),
        ("basic", "/v1/racecards/basic"),
        ("standard", "/v1/racecards/standard"),
    ],
)
def test_smaller_plans_name_their_days(server, home, plan, path):
    server.routes[path] = lambda h, q: h.send(
        {"racecards": [card(NOW.date() + timedelta(q["day"] == "tomorrow"))], "total": 1}
    )
    assert get(server, home, "card", None, None, plan).races == 2 and {
        q["day"] for _, q, _ in server.asked
    } == {"today", "tomorrow"}
    with pytest.raises(BadInput, match="RACING_API_PLAN"):
        get(server, home, "card", "2026-08-01", None, plan)
    with pytest.raises(BadInput, match="2026-08-19"):
        get(server, home, "results", "2026-08-19", None, "free")


def test_pages_follow_each_other(server, home):
    server.routes["/v1/results"] = listed(
        "results", [result(days(1)[0], i) for i in range(1, 8)], most=3
    )
    assert get(server, home).races == 7
    assert [q["skip"] for _, q, _ in server.asked if q["start_date"] == "2026-08-01"] == [
        "0",
        "3",
        "6",
    ]


def test_a_source_that_ignores_skip_does_not_keep_us(server, home):
    server.routes["/v1/results"] = {"results": [result(days(1)[0])], "total": 10_000}
    done = get(server, home, until="2026-08-03")
    assert (
        done.races == 1
        and done.requests == 2
        and Store(home, "racingapi").manifest["ingests"][0]["duplicates"] == 3
    )


@pytest.mark.parametrize(
    "answer",
    [[], 7, "x", None, {}, {"results": {}}, {"results": None, "total": 1}, {"racecards": []}],
    ids=repr,
)
def test_the_wrong_shape_is_a_complaint_and_nothing_is_stored(server, home, answer):
    server.routes["/v1/results"] = (
        answer if isinstance(answer, dict) else (lambda h, q: h.send(answer))
    )
    with pytest.raises(Unreachable, match="wrong shape"):
        get(server, home)
    assert (
        not (home.store / "racingapi" / "manifest.json").exists()
        and spans(Store(home, "racingapi")) == {}
    )


SPOILT = {
    "race without runners": {"runners": []},
    "runners that are none": {"runners": {"a": 1}},
    "a runner that is none": {"runners": [ran(1, 1), 7]},
    "no winner": {"runners": [ran(1, 2), ran(2, 3)]},
    "two runners with one number": {"runners": [ran(1, 1), ran(1, 2)]},
    "no date": {"date": None},
    "text for a date": {"date": "x"},
    "an unknown place": {"runners": [ran(1, 1), ran(2, "??")]},
    "no horse": {"runners": [ran(1, 1, horse_id=None), ran(2, 2)]},
    "a number that is an object": {"runners": [ran(1, 1, number={"a": 1}), ran(2, 2)]},
    "no course": {"course": ""},
    "no id": {"race_id": 7},
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_spoilt_race_is_set_aside_whole(server, home, fault):
    day = days(1)[0]
    bad = result(day, 2) | SPOILT[fault]
    server.routes["/v1/results"] = lambda h, q: h.send({"results": [result(day), bad], "total": 2})
    done = get(server, home, until="2026-08-08")
    assert done.races == 1 and Store(home, "racingapi").read("races")["race_id"].to_list() == [
        "racingapi:rac_2026-08-01_1"
    ]
    faults = Store(home, "racingapi").read("quarantine")
    assert fault == "race without runners" or (
        len(faults) and faults["file"][0].startswith("/v1/results 2026-08-01")
    )
    whole(home)


def test_a_bad_cell_costs_no_more_than_itself(server, home):
    day = days(1)[0]
    runners = [
        ran(1, 1, sp_dec="evens", bsp=False, sex="?", weight_lbs="2000"),
        ran(2, 2, sp_dec=True, bsp=True),
    ]
    odd = result(
        day,
        going="Squelchy",
        surface=None,
        rating_band="all",
        off_dt="noon",
        dist_m="far",
        runners=runners,
    )
    server.routes["/v1/results"] = lambda h, q: h.send({"results": [odd], "total": 1})
    get(server, home, until="2026-08-08")
    store = Store(home, "racingapi")
    assert store.read("races").select("going", "surface", "rating_low", "off_utc").null_count().row(
        0
    ) == (1, 1, 1, 1)
    assert store.read("prices").is_empty() and len(store.read("runners")) == 2
    assert set(store.read("quarantine")["column"]) == {
        "going",
        "rating_band",
        "off_utc",
        "odds",
        "bsp",
        "sex",
        "weight_kg",
        "distance_m",
    }


def test_numbers_instead_of_text_are_read_too(server, home):
    day = days(1)[0]
    typed = result(
        day,
        dist_m=1621,
        runners=[
            ran(1, 1, number=1, weight_lbs=122, sp_dec=2.5, age=4, draw=0),
            ran(2, 2, number=2.0, draw=None),
        ],
    )
    server.routes["/v1/results"] = lambda h, q: h.send({"results": [typed], "total": 1})
    assert get(server, home, until="2026-08-08").races == 1
    assert (
        Store(home, "racingapi").starts()["odds"].to_list() == [2.5, 3.25]
        and Store(home, "racingapi").starts()["draw"].null_count() == 2
    )


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
JSON = st.recursive(
    PLAIN,
    lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=5), c, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(["results", "card"]))
def test_no_answer_breaks_the_parser(data, kind):
    races = copy.deepcopy([(result if kind == "results" else card)(days(1)[0], n) for n in (1, 2)])
    for _ in range(data.draw(st.integers(1, 4))):
        target = data.draw(
            st.sampled_from(
                [races[0], races[1], *races[0].get("runners", [])]
                if isinstance(races[0].get("runners"), list)
                else [races[1]]
            )
        )
        if isinstance(target, dict) and target:
            target[data.draw(st.sampled_from(sorted(target)))] = data.draw(JSON)
    done = racejson.parse([("page", [*races, data.draw(JSON)])], kind)
    r = done.reconciliation
    assert r["rows_read"] == r["duplicates"] + r["quarantined"] + r["non_runners"] + r["starters"]
    assert all(not len(violations(df, TABLES[name])) for name, df in done.tables.items())


def test_a_word_not_understood_hides_no_worse_fault():
    spoilt, fine = (result(days(1)[0], n) for n in (1, 2))
    done = racejson.parse([("page", [spoilt | {"going": "Bog", "course": None}, fine])], "results")
    assert done.tables["races"]["race_id"].to_list() == [f"racingapi:{fine['race_id']}"]
    assert set(done.quarantine["column"]) == {"going", "course"}
    only = racejson.parse([("page", [spoilt | {"going": "Bog"}, fine])], "results")
    assert len(only.tables["races"]) == 2


# --- resuming --------------------------------------------------------------------------------------------------------
def test_it_continues_where_it_stopped(server, home):
    races = [result(d) for d in days(20)]
    good = listed("results", races)
    server.routes["/v1/results"] = lambda h, q: (
        good(h, q) if q["start_date"] < "2026-08-08" else h.send({}, 503)
    )
    with pytest.raises(Unreachable, match="continues there"):
        get(server, home)
    assert len(Store(home, "racingapi").read("races")) == 7
    server.routes["/v1/results"], before = good, len(server.asked)
    done = get(server, home)
    assert (
        done.since == "2026-08-08"
        and len(server.asked) == before + 1
        and len(Store(home, "racingapi").read("races")) == 14
    )
    assert get(server, home).requests == 0
    assert get(server, home, since="2026-07-25", until="2026-08-02").since == "2026-07-25", (
        "earlier days were never asked for"
    )
    assert get(server, home, regions=["hk"]).since == "2026-08-01", (
        "other regions have a cursor of their own"
    )
    whole(home)


def test_days_that_are_not_over_are_asked_for_again(server, home):
    server.routes["/v1/results"] = listed("results", [result(d) for d in days(20)])
    first_time = get(server, home, since="2026-08-14", until=None)
    assert (first_time.until, first_time.done, first_time.races) == ("2026-08-21", "2026-08-19", 7)
    assert get(server, home, since=None, until=None).since == "2026-08-19"


def test_the_time_allowed_ends_between_weeks(server, home):
    server.routes["/v1/results"] = listed("results", [result(d) for d in days(20)])
    done = get(server, home, budget_s=0)
    assert "2026-08-08" in done.stopped and done.races == 7 and get(server, home).races == 7


HALF = {
    "500": status(500),
    "malformed": lambda h, q: h.send(body=b'{"results": ['),
    "truncated": lambda h, q: h.send(body=b"{}", Content_Length=10),
    "slow": lambda h, q: time.sleep(2),
}


@pytest.mark.parametrize("route", HALF.values(), ids=HALF)
def test_an_error_half_way_leaves_whole_weeks(server, home, route):
    good = listed("results", [result(d) for d in days(20)])
    server.routes["/v1/results"] = lambda h, q: (
        good(h, q) if q["start_date"] < "2026-08-08" else route(h, q)
    )
    with pytest.raises(Unreachable):
        get(server, home)
    assert Store(home, "racingapi").read("races")["date"].max() == date(2026, 8, 7) and spans(
        Store(home, "racingapi")
    )["results"].done == date(2026, 8, 8)
    whole(home)


def test_a_second_fetch_of_the_same_changes_nothing(server, home):
    server.routes["/v1/results"] = listed("results", [result(d) for d in days(14)])
    get(server, home)
    before = Store(home, "racingapi").manifest
    (home.store / "racingapi" / CURSOR).unlink()
    assert not get(server, home).changed and Store(home, "racingapi").manifest == before


def test_a_key_that_a_source_repeats_in_a_row_is_stored_nowhere(server, home):
    said = f"bad {PASSWORD} {USER}"
    day = days(1)[0]
    rows = [ran(1, 1, comment=said), ran(2, 2), ran(3, 3, number=said)]
    server.routes["/v1/results"] = listed("results", [result(day), result(day, 2, runners=rows)])
    done = get(server, home)
    store = Store(home, "racingapi")
    faults = store.read("quarantine")
    assert done.quarantined and faults["got"].str.contains("bad ***", literal=True).any()
    texts = [str(store.read(t).rows()) for t in ("races", "runners", "results", "quarantine")]
    files = [p.read_bytes() for p in home.root.rglob("*") if p.is_file()]
    for secret in SECRETS:
        assert not any(secret in text for text in texts)
        assert not any(secret.encode() in whole for whole in files)


def test_a_list_without_end_is_refused_and_nothing_of_it_is_stored(server, home):
    def endless(h, q):
        n = server.times("/v1/results")
        h.send({"results": [result(days(1)[0], n)], "total": 10**9})

    server.routes["/v1/results"] = endless
    with pytest.raises(Unreachable, match="does not end"):
        get(server, home, until="2026-08-02")
    assert server.times("/v1/results") == 250 and "racingapi" not in stores(home)


CHILD = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from racing_core.config import Home
from racing_core.data.fetch import fetch
from racing_core.data.http import Limits
now, quick = datetime(2026, 8, 20, 12, tzinfo=UTC), Limits(per_second=500)
fetch("results", Home(Path(sys.argv[1]), ""), "2026-08-01", "2026-08-15", now=now, limits=quick)
"""


def test_killed_half_way_it_leaves_a_whole_store_and_continues(server, home, tmp_path):
    good = listed("results", [result(d) for d in days(20)])

    def second_week_hangs(h, q):
        if q["start_date"] >= "2026-08-08":
            time.sleep(5)
        good(h, q)

    server.routes["/v1/results"] = second_week_hangs
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(home.root)], env=os.environ | env(server)
    )
    end = time.monotonic() + 30
    while server.times("/v1/results") < 2 and time.monotonic() < end:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    whole(home)
    assert len(Store(home, "racingapi").read("races")) == 7
    server.routes["/v1/results"] = good
    other = Home(tmp_path / "other", "")
    assert get(server, home).since == "2026-08-08" and get(server, other).races == 14
    assert Store(home, "racingapi").fingerprint == Store(other, "racingapi").fingerprint


# --- weather ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def raced(server, home):
    "A store with two weeks of Ascot, one race a day, and one at a course nobody has heard of."
    server.routes["/v1/results"] = listed(
        "results", [*(result(d) for d in days(14)), result(days(1)[0], 3, course="Atlantis")]
    )
    get(server, home)
    server.asked.clear()
    return Store(home, "racingapi")


def test_weather_of_past_races(server, home, raced):
    before = {
        name: raced.read(name) for name in ("races", "runners", "results", "prices", "quarantine")
    }
    server.routes["/v1/history.json"] = past_hours()
    done = get(server, home, "weather", name="racingapi")
    found = raced.read("weather")
    assert (done.races, done.missed, done.unmapped, done.failures) == (14, 0, ["Atlantis"], [])
    assert set(found.drop("race_id").rows()) == {("fine", 20.0, 12.0, 5.0, 60.0, "weatherapi")}
    asked = [
        q for path, q, _ in server.asked if path == "/v1/history.json"
    ]  # several at once: in any order
    assert {"q": "51.41,-0.68", "dt": "2026-07-31", "key": KEY} in asked
    assert len(asked) == len({(q["q"], q["dt"]) for q in asked}) == 15, "each day once"
    assert all(raced.read(name).equals(df) for name, df in before.items())
    assert get(server, home, "weather", name="racingapi").requests == 0
    whole(home)


def test_coming_races_take_the_present_and_the_forecast(server, home):
    today, later = NOW.date(), NOW.date() + timedelta(2)
    server.routes |= {
        "/v1/racecards/pro": listed("racecards", [card(today), card(later)]),
        "/v1/history.json": past_hours(precip_mm=None),
    }
    server.routes |= {"/data/2.5/weather": sky_now(NOW), "/data/2.5/forecast": sky_ahead(NOW)}
    get(server, home, "card", str(today), str(later + timedelta(1)))
    done = get(server, home, "weather", None, None, name=NAMES["card"])
    found = Store(home, NAMES["card"]).read("weather")
    here = {"lat": "51.41", "lon": "-0.68", "units": "metric", "appid": KEY}
    assert (
        done.races == 2
        and [q for p, q, _ in server.asked if p in ("/data/2.5/weather", "/data/2.5/forecast")]
        == [here] * 2
    )
    assert found["origin"].to_list() == ["weatherapi", "openweathermap forecast"]
    assert (
        found["temperature_c"].to_list() == [20.0, 18.0]
        and found["precipitation_mm"].to_list() == [None, 2.0]
        and found["sky"].to_list()[1] == "rain"
    )


SILENT = {
    "500": status(500),
    "401": status(401),
    "half": lambda h, q: h.send(body=b"{"),
    "empty": {},
    "shape": {"forecast": {"forecastday": "none"}},
}


@pytest.mark.parametrize("route", SILENT.values(), ids=SILENT)
def test_when_nobody_answers_nothing_is_stored_and_the_cursor_stays(server, home, raced, route):
    before = raced.manifest
    server.routes["/v1/history.json"] = route
    with pytest.raises(Unreachable, match="no source of weather answers"):
        get(server, home, "weather", name="racingapi")
    assert raced.manifest == before and "weather" not in spans(raced)


def test_days_that_failed_are_asked_again(server, home, raced):
    good = past_hours()
    server.routes["/v1/history.json"] = lambda h, q: (
        h.send({}, 500) if q["dt"] in ("2026-08-10", "2026-08-11") else good(h, q)
    )
    done = get(server, home, "weather", name="racingapi")
    assert (
        done.missed == 3
        and len(done.failures) == 2
        and done.done == "2026-08-08"
        and done.races == 12
    )
    server.routes["/v1/history.json"] = good
    assert (
        get(server, home, "weather", name="racingapi").missed == 0
        and len(raced.read("weather")) == 14
    )


@pytest.mark.parametrize(
    "bad",
    [{"temp_c": "hot"}, {"temp_c": 300}, {"temp_c": True}, {"temp_c": None}, {"temp_c": [1]}],
    ids=repr,
)
def test_a_value_that_cannot_be_is_left_out(server, home, raced, bad):
    server.routes["/v1/history.json"] = past_hours(**bad)
    get(server, home, "weather", name="racingapi")
    assert (
        raced.read("weather")["temperature_c"].null_count() == 14
        and raced.read("weather")["humidity_pct"].to_list() == [60.0] * 14
    )
    whole(home)


def test_the_sources_own_weather_is_kept_and_filled():
    old = {"sky": "rain", "temperature_c": None, "origin": "clerk"}
    new = {"sky": "fine", "temperature_c": 20.0, "origin": "weatherapi"}
    assert (
        weather.combine([old, new])["sky"] == "rain"
        and weather.combine([old, new])["origin"] == "clerk+weatherapi"
    )
    assert weather.combine([new, old]) == {c: None for c in WEATHER.columns if c != "race_id"} | new


@settings(max_examples=60, deadline=None)
@given(JSON, st.sampled_from(sorted(weather.ANSWERS)))
def test_no_answer_breaks_the_readings(value, origin):
    hour = [value, {"time_epoch": value, "temp_c": value}]
    for answer in (
        value,
        {"list": [value]},
        {"forecast": {"forecastday": [{"hour": hour}]}},
        {"dt": 1, "main": value, "rain": value},
    ):
        try:
            assert len(weather.readings(origin, answer))
        except RacingError:
            continue


def test_every_course_is_on_its_land():
    boxes = {
        "HK": (22, 23, 113, 115),
        "JP": (31, 46, 129, 146),
        "GB": (50, 59, -6, 2),
        "IE": (51, 55.5, -11, -5.5),
    }
    boxes |= {"AU": (-44, -10, 112, 154), "US": (24, 49, -125, -66)}
    for (jurisdiction, name), c in weather.courses().items():
        south, north, west, east = boxes[jurisdiction]
        assert south < c.latitude < north and west < c.longitude < east, name
    assert all(weather.locate("JP", n) for n in netkeiba.COURSE.values()) and all(
        weather.locate("HK", n) for n in hkjc.COURSE_NAME.values()
    )


# --- keys ------------------------------------------------------------------------------------------------------------
def test_no_key_anywhere(server, home, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    server.routes |= {
        "/v1/results": listed("results", [result(d) for d in days(14)]),
        "/v1/history.json": first(1, status(500), sky_now(NOW)),
    }
    server.routes["/v1/racecards/pro"] = lambda h, q: h.send(
        body=f"{h.headers['Authorization']} {USER} {PASSWORD}".encode(), status=401
    )
    said = [repr(get(server, home))]
    for kind, more in (("weather", {"name": "racingapi"}), ("card", {})):
        with pytest.raises(Unreachable) as e:
            get(server, home, kind, **more)
        said += [
            str(e.value),
            repr(e.value),
            json.dumps(e.value.as_dict()),
            "".join(traceback.format_exception(e.value)),
        ]
    said += (
        [r.getMessage() for r in caplog.records]
        + list(capfd.readouterr())
        + [str(p) for p in home.root.rglob("*")]
    )
    kept = b"".join(p.read_bytes() for p in home.root.rglob("*") if p.is_file())
    assert (
        any("HTTP Request" in s for s in said)
        and "401" in "".join(said)
        and list((home.root / "cache" / "http").iterdir())
    )
    assert not [s for s in SECRETS for line in said if s in line] and not [
        s for s in SECRETS if s.encode() in kept
    ]


KEY_NAMES = [
    ("results", "RACING_API_USER"),
    ("card", "RACING_API_PASSWORD"),
    ("weather", "WEATHERAPI_KEY OPENWEATHERMAP_API_KEY"),
]


@pytest.mark.parametrize(("kind", "gone"), KEY_NAMES)
def test_a_missing_key_is_named_before_anything_is_asked(server, home, raced, kind, gone):
    keys = {k: v for k, v in env(server).items() if k not in gone.split()}
    with pytest.raises(BadInput, match=gone.split()[0]):
        fetch(
            kind,
            home,
            "2026-08-16",
            "2026-08-17",
            name="racingapi" if kind == "weather" else None,
            env=keys,
            now=NOW,
        )
    assert not server.asked


def test_the_wide_frame_of_a_fetched_store_feeds_the_features(server, home, raced):
    starts = raced.starts()
    assert (
        isinstance(starts, pl.DataFrame)
        and len(starts) == 45
        and starts["margin_lengths"].to_list()[:2] == [0.0, 1.5]
    )
