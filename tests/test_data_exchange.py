"""Betfair's files of every kind: times as they came over the years, prices by moment, foreign rows set aside."""

import polars as pl
import pytest

from racing_core.config import Home
from racing_core.data import betfair
from racing_core.data.exchange import DAILY, DAILY_MORE, MODEL, MODEL_MORE
from racing_core.data.ingest import ingest
from racing_core.data.store import Store
from racing_core.errors import BadInput
from racing_core.features import leaks
from racing_core.starts import starts_frame

MONTH = [*betfair.COLUMNS, "BEST_AVAIL_BACK_AT_SCHEDULED_OFF", "WIN_PREPLAY_LAST_PRICE_TAKEN"]


def runner(n, result, when="13:05:00", market="1.26", **more):
    told = dict(LOCAL_MEETING_DATE="1/07/2026", SCHEDULED_RACE_TIME=when, TRACK="Made")
    told |= dict(STATE_CODE="NSW", RACE_NO="1", WIN_MARKET_ID=market, SELECTION_NAME=f"Horse {n}")
    told |= dict(DISTANCE="1200", RACE_TYPE="Hcap", TAB_NUMBER=str(n), WIN_RESULT=result)
    return dict.fromkeys(MONTH, "") | told | {"WIN_BSP": f"{n + 1}.5"} | more


def race(**more):
    return [runner(1, "WINNER", **more), runner(2, "LOSER", **more)]


def read(tmp_path, *rows, name="ANZ_Thoroughbreds_2026_07.csv"):
    pl.DataFrame(list(rows)).write_csv(tmp_path / name)
    return betfair.parse(tmp_path)


@pytest.mark.parametrize("when", ["13:35:00", "13:35:00.000", "13:35", "1/07/2026 13:35"])
def test_off_times_as_they_came_over_the_years(tmp_path, when):
    off = read(tmp_path, *race(when=when)).tables["races"]["off_utc"]
    assert off.dt.strftime("%H:%M").to_list() == ["03:35"]


def test_an_hour_of_a_clock_change_stops_nothing(tmp_path):
    twice = dict(LOCAL_MEETING_DATE="5/04/2026", when="2:30 AM")  # Melbourne's clocks go back
    never = dict(LOCAL_MEETING_DATE="4/10/2026", when="2:30 AM", market="1.27")
    races = read(tmp_path, *race(**twice), *race(**never)).tables["races"]
    assert races["off_utc"].dt.strftime("%d %H:%M").to_list() == ["04 15:30", None]


def test_rows_of_another_country_are_set_aside_and_the_others_stored(tmp_path):
    done = read(tmp_path, *race(), runner(1, "WINNER", market="1.27", STATE_CODE="SGP"))
    assert done.tables["races"]["race_id"].to_list() == ["betfair:26"]
    assert done.quarantine.select("column", "got").rows() == [("STATE_CODE", "SGP")]
    r = done.reconciliation
    assert (r["rows_read"], r["quarantined"], r["starters"]) == (3, 1, 2)
    with pytest.raises(BadInput, match="SGP"):
        read(tmp_path, runner(1, "WINNER", STATE_CODE="SGP"))


def test_the_saddle_cloth_before_the_name_and_a_runner_withdrawn(tmp_path):
    rows = [
        r | {"TAB_NUMBER": "", "SELECTION_NAME": f"{n}. Horse"}
        for n, r in zip((7, 12), race(), strict=True)
    ]
    gone = runner(3, "REMOVED", TAB_NUMBER="", SELECTION_NAME="Late")
    done = read(tmp_path, *rows, gone)
    assert done.tables["runners"].select("runner_no", "horse_name").rows() == [
        (7, "Horse"),
        (12, "Horse"),
    ]
    assert done.reconciliation["non_runners"] == 1


def test_prices_stand_at_their_moment_and_the_last_trade_is_no_close(tmp_path):
    early = dict(BEST_AVAIL_BACK_AT_SCHEDULED_OFF="3.1", WIN_PREPLAY_LAST_PRICE_TAKEN="2.9")
    done = ingest("betfair", write(tmp_path, race(**early)), home := Home(tmp_path / "home", ""))
    store = Store(home, "betfair")
    prices = store.read("prices").filter(pl.col("runner_no") == 1)
    assert prices.select(pl.col("moment", "kind").cast(pl.String), "odds").rows() == [
        ("scheduled_off", "exchange", 3.1),
        ("bsp", "exchange", 2.5),
    ]
    assert store.starts()["odds"].to_list() == [2.5, 3.5]
    supplied = store.read("supplied")
    assert supplied["pre_off_last"].to_list() == [2.9, 2.9] and not supplied["point_in_time"].any()
    assert not any("STATE_CODE" in reason for reason in done.why)


def write(tmp_path, rows, name="ANZ_Thoroughbreds_2026_07.csv"):
    pl.DataFrame(rows).write_csv(tmp_path / name)
    return tmp_path


def test_columns_that_nobody_reads_are_told_and_optional_ones_may_lack(tmp_path):
    odd = [r | {"WEATHER_GUESS": "wet"} for r in race()]
    needed = [{k: v for k, v in r.items() if k not in ("DISTANCE", "RACE_TYPE")} for r in odd]
    done = read(tmp_path, *needed)
    assert done.reconciliation["notes"] == [
        "ANZ_Thoroughbreds_2026_07.csv: columns not read: WEATHER_GUESS"
    ]
    assert done.tables["races"]["distance_m"].to_list() == [None]
    with pytest.raises(BadInput, match="WIN_RESULT"):
        read(tmp_path, *[{k: v for k, v in r.items() if k != "WIN_RESULT"} for r in odd])


def event(name, won, number="5", **more):
    told = dict(EVENT_ID=number, MENU_HINT="IRE / Dund  15th Jan", EVENT_NAME="7f Mdn")
    told |= dict(EVENT_DT="15-01-2021 18:45", SELECTION_NAME=name, WIN_LOSE=won, BSP="3.5")
    return dict.fromkeys([*DAILY, *DAILY_MORE], "") | told | more


def test_a_day_of_britain_and_ireland(tmp_path):
    prices = dict(MORNINGWAP="1.0", PPWAP="3.4", PPTRADEDVOL="90.5")
    rows = [event("Bo", "2", **prices), event("Ada", "2", MORNINGWAP="3.0", MORNINGTRADEDVOL="12")]
    place = event("Ada", "1", number="6", EVENT_NAME="To Be Placed")
    done = read(tmp_path, *rows, place, name="dwbfpricesirewin15012021.csv")
    race = done.tables["races"].row(0, named=True)
    got = [race[c] for c in ("jurisdiction", "course", "distance_m", "class_level", "race_no")]
    assert got == ["IE", "Dundalk", 1408, "maiden", 1]
    assert race["off_utc"].isoformat() == "2021-01-15T18:45:00+00:00"
    assert done.reconciliation["dead_heats_first"] == 1 and done.reconciliation["quarantined"] == 1
    told = done.tables["prices"].select("runner_no", "moment", "odds", "volume")
    assert told.cast({"moment": pl.String}).rows() == [
        (1, "morning", 3.0, 12.0),
        (1, "bsp", 3.5, None),
        (2, "scheduled_off", 3.4, 90.5),
        (2, "bsp", 3.5, None),
    ]


def test_a_month_of_somebody_elses_model(tmp_path):
    base = dict.fromkeys([*MODEL, *MODEL_MORE], "") | dict(LOCAL_RACE_DATE="2026-01-01")
    base |= dict(TRACK="Windsor", RACETIME="2026-01-02 00:09:00", COUNTRY_ID="1.0", RACE_NUMBER="1")
    base |= dict(WIN_MARKET_ID="9", WIN_MARKET_NAME="2m Hcap Hrd", RATED_PRICE="4.2")
    rows = [
        base | dict(RUNNER_NAME="Ada", WIN_RESULT="1.0", WIN_BSP="2.5", PLACE_RESULT="1.0"),
        base | dict(RUNNER_NAME="Bo", WIN_RESULT="0.0", WIN_BSP="4.5", PLACE_RESULT="0.0"),
        base | dict(RUNNER_NAME="Cy", WIN_RESULT="-1.0"),
        base | dict(RUNNER_NAME="Di", WIN_RESULT="", WIN_MARKET_ID="10", COUNTRY_ID=""),
    ]
    done = read(tmp_path, *rows, name="UK_IE_Thoroughbred_Racing_Model_2026-01.csv")
    assert done.tables["races"]["off_utc"].dt.strftime("%d %H:%M").to_list() == ["01 14:09"]
    assert done.tables["results"]["status"].to_list() == ["finished", "finished", "non_runner"]
    supplied = done.tables["supplied"]
    assert supplied["rated_price_of_another_model"].to_list() == [4.2, 4.2, 4.2]
    assert not supplied["point_in_time"].any()
    assert done.quarantine["column"].to_list()[0] == "WIN_RESULT"


def counts(done):
    names = ("rows_read", "duplicates", "quarantined", "non_runners", "starters", "races")
    return [done.reconciliation[n] for n in names]


def test_real_months_of_australia_with_their_prices(shared_data):
    folder = shared_data / "betfair"
    if not folder.is_dir():
        pytest.skip(f"no such folder: {folder}")
    done = betfair.parse(folder)
    assert counts(done) == [346468, 901, 0, 0, 345567, 35102]
    prices = done.tables["prices"].group_by("moment").len()
    assert dict(prices.cast({"moment": pl.String}).rows()) == {
        "scheduled_off": 345533,
        "bsp": 345499,
    }


def test_real_days_and_months_of_britain_and_ireland(shared_data):
    folder = shared_data / "betfair_uk"
    if not folder.is_dir():
        pytest.skip(f"no such folder: {folder}")
    done = betfair.parse(folder / "dwbfpricesukwin_2021.csv.gz")
    assert counts(done) == [39078, 0, 0, 0, 39078, 4071]
    assert done.tables["races"]["course"].n_unique() == 77
    off = done.tables["races"].with_columns(pl.col("off_utc").dt.convert_time_zone("Europe/London"))
    last = off.group_by(pl.col("date").dt.month()).agg(pl.col("off_utc").dt.time().max())
    by_month = dict(last.cast({"off_utc": pl.String}).rows())
    assert by_month[3] == by_month[4] == "20:30:00"  # the clocks change in between
    whole = betfair.parse(folder)
    assert counts(whole) == [59225, 0, 521, 294, 58410, 6264]
    prices = whole.tables["prices"].group_by("moment").len()
    assert dict(prices.cast({"moment": pl.String}).rows()) == {
        "morning": 38507,
        "scheduled_off": 38840,
        "bsp": 58410,
    }
    seen = leaks.foresight(whole.tables["supplied"], starts_frame(whole.tables))
    assert seen.filter("knew")["column"].to_list() == ["placed"]  # and no price, nor another model
