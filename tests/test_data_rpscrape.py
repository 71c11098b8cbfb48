"""Racing Post exports of every year: units in heads, the half of the day, clock changes."""

import polars as pl
import pytest

from racing_core.data import rpscrape
from racing_core.errors import BadInput

NOW = (
    "date,region,course,off,race_name,type,class,dist_m,going,num,pos,draw,ovr_btn,horse,age,sex,"
    "lbs,time,dec,jockey,trainer"
)


def runner(n, off, day="2024-06-27", course="Aintree", btn="0"):
    race = f"{day},GB,{course},{off},Race,Hurdle,Class 4,3200,Good"
    return f"{race},{n},{n},{n},{btn},Horse {course} {off} {n},5,G,160,4:10.10,2.50,A{n},B{n}"


def race(off, **more):
    return [runner(1, off, **more), runner(2, off, **more)]


def read(tmp_path, *rows, head=NOW, name="gb_2024.csv"):
    (tmp_path / name).write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return rpscrape.parse(tmp_path)


def clock(done):
    races = done.tables["races"].sort("race_no")
    return races["off_utc"].dt.convert_time_zone("Europe/London").dt.strftime("%H:%M").to_list()


@pytest.mark.parametrize(
    "written",
    [
        ("12:30", "01:05", "05:15"),
        ("12:30", "1:05", "5:15"),
        ("12:30", "13:05", "17:15"),
        ("12:30 PM", "1:05 PM", "5:15 pm"),
        ("12:30:00", "13:05:00.000", "17:15:00"),
    ],
)
def test_the_half_of_the_day_is_the_meetings(tmp_path, written):
    done = read(tmp_path, *(r for off in written[::-1] for r in race(off)))
    assert clock(done) == ["12:30", "13:05", "17:15"]
    assert done.tables["races"].sort("race_no")["race_id"].to_list() == [
        f"rpscrape:GB-20240627-Aintree-{hhmm}" for hhmm in ("1230", "1305", "1715")
    ]


def test_hours_of_a_clock_change_stop_nothing(tmp_path):
    rows = [
        *race("1:30 AM", day="2024-10-27", course="Ascot"),  # twice: the first is taken
        *race("1:30 AM", day="2024-03-31", course="Ayr"),  # never
        *race("13:30", day="2024-10-27"),
    ]
    races = read(tmp_path, *rows).tables["races"].sort("course")
    assert races["off_utc"].dt.strftime("%H:%M").to_list() == ["13:30", "00:30", None]


OLDER = (
    '"date","course","time","race_name","class","band","dist(f)","dist(m)","going","pos","draw",'
    '"btn","horse_name","sp","dec","age","weight","lbs","gear","fin_time","jockey","trainer","or",'
    '"prize(£)","sire","comment"'
)


def older(pos, btn, band="5yo+", furlongs="26.5", metres="5300"):
    race = f"2014-03-14,Cheltenham,3:20,Gold Cup,Grade 1,{band},{furlongs},{metres},Good"
    rest = f"Horse {pos},20/1,21.00,8,11-10,164,p,6:44.00,A{pos},B{pos},152,1000,S,Led"
    return f"{race},{pos},,{btn},{rest}"


def test_units_in_heads_and_older_names(tmp_path):
    done = read(tmp_path, older(1, "0"), older("PU", "-"), head=OLDER, name="gb-2013.csv")
    told = done.tables["races"].row(0, named=True)
    assert [told[c] for c in ("distance_m", "prize", "class_level", "off_utc")][:3] == [
        5300,
        2000.0,
        "group_1",
    ]
    assert clock(done) == ["15:20"] and not len(done.quarantine)
    assert done.tables["results"]["time_s"].to_list() == [404.0, 404.0]
    assert done.tables["runners"]["gear"].to_list() == ["p", "p"]
    assert done.reconciliation["notes"] == ["columns not read: sire"]


@pytest.mark.parametrize(("furlongs", "metres"), [("26.5", ""), ("26.5f", "-")])
def test_furlongs_do_where_there_are_no_metres(tmp_path, furlongs, metres):
    rows = [older(1, "0", "0-145", furlongs, metres)]
    races = read(tmp_path, *rows, head=OLDER, name="gb-2013.csv").tables["races"]
    assert races.select("distance_m", "rating_low", "rating_high").rows() == [(5331, 0, 145)]


def test_two_columns_of_one_meaning_are_no_accident(tmp_path):
    rows = [f"{r},9" for r in (runner(1, "2:00"), runner(2, "2:00", btn="nk"))]
    oldest = [f"2014-03-14,Ayr,3:20,Race,1m,Good,{n},{n},{n}.5,{n},Horse {n}" for n in (1, 2)]
    done = read(tmp_path, *rows, head=f"{NOW},Btn")
    assert done.tables["results"]["margin_lengths"].to_list() == [0.0, 0.3]
    assert done.reconciliation["notes"] == ["columns not read: Btn"]
    head = "date,course,time,race_name,dist,going,pos,draw,Ovr_Btn,Btn,name"
    (tmp_path / "gb_2024.csv").unlink()
    done = read(tmp_path, *oldest, head=head, name="gb_2014.csv")
    assert done.tables["results"]["margin_lengths"].to_list() == [0.0, 2.5]


def test_an_empty_file_is_told_and_stops_nothing(tmp_path):
    (tmp_path / "gb_2023.csv").write_text(NOW + "\n", encoding="utf-8")
    done = read(tmp_path, *race("2:00"))
    assert done.reconciliation["notes"] == ["gb_2023.csv: no rows"]
    assert done.tables["races"].select(pl.len()).item() == 1
    (tmp_path / "gb_2024.csv").unlink()
    with pytest.raises(BadInput, match="no file has rows"):
        rpscrape.parse(tmp_path)
