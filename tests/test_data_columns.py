"""The column map from outside: prices by moment, units, codes, off times; and a map proposed for a file."""

import json
import tomllib

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from racing_core.app.main import main
from racing_core.config import Home
from racing_core.data.columns import MAP_NAME, checked
from racing_core.data.ingest import ingest
from racing_core.data.proposal import propose
from racing_core.data.racebase import parse
from racing_core.data.store import Store
from racing_core.errors import BadInput
from racing_core.features import leaks
from racing_core.simulate import simulate

HEAD = "race_id,date,course,horse,position,odds,distance,number"


def read(tmp_path, *rows, head=HEAD, own=None, name="mine.csv"):
    (tmp_path / name).write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    if own is not None:
        (tmp_path / MAP_NAME).write_text(own, encoding="utf-8")
    return parse(tmp_path)


def test_a_comma_between_two_digits_is_a_decimal_comma(tmp_path):
    done = read(
        tmp_path,
        'R1,13/02/2024,Chantilly,Alpha,1,"3,5",1600m,1',
        'R1,13/02/2024,Chantilly,Beta,2,"2,1",1600m,2',
    )
    assert done.tables["prices"]["odds"].to_list() == [3.5, 2.1]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_semicolons_and_tabs(tmp_path, mark):
    rows = ["R1,13/02/2024,Ascot,Alpha,1,3.5,1m2f,1", "R1,13/02/2024,Ascot,Beta,2,2.1,1m2f,2"]
    done = read(tmp_path, *(r.replace(",", mark) for r in rows), head=HEAD.replace(",", mark))
    assert done.tables["prices"]["odds"].to_list() == [3.5, 2.1]
    assert done.tables["races"]["distance_m"].to_list() == [2012]


BRITISH = (
    "Race_ID,race_number,Course,Date,Class,Distance,Going,Horse_number,Place,Draw,Horse,"
    "weight_uk,weight_kg,Horse_rate,SP,btn,finish_time"
)


def test_british_margins_places_and_goings(tmp_path):
    said = "Class 2,1m 14y,Good-good to firm in places"
    done = read(
        tmp_path,
        f"7,3,Chepstow,2025-08-25,{said},11,1,9,Alpha,8-11,55.75,64,12.0,,99",
        f"7,3,Chepstow,2025-08-25,{said},9,2,12,Beta,9-4,58.95,60,7.0,1½,99.2",
        f"7,3,Chepstow,2025-08-25,{said},3,3,2,Eta,9-4,58.95,60,7.0,shd,99.4",
        f"7,3,Chepstow,2025-08-25,{said},2,RR,15,Gamma,9-11,62.1,67,13.0,,",
        head=BRITISH,
    )
    assert done.reconciliation["kept"] == 4 and not len(done.quarantine)
    results = done.tables["results"].sort("runner_no")
    assert results.select("status", "margin_lengths").rows() == [
        ("did_not_finish", None),
        ("finished", 0.1),
        ("finished", 1.5),
        ("finished", 0.0),
    ]
    race = done.tables["races"].row(0, named=True)
    assert [race[c] for c in ("distance_m", "going", "class_level")] == [1622, "good", "class_2"]
    assert done.reconciliation["why"] == {"column not mapped: weight_uk": 4}


OWN = """
[required]
race_id = ["rid"]
date = ["when"]
course = ["crse"]
horse_id = ["hid"]
place = ["fin"]
[optional]
off = ["when"]
distance_m = ["dist"]
weight_kg = ["wt"]
time_s = ["time"]
[prices]
evening = { columns = ["eve"], kind = "fixed" }
bsp = { columns = ["bsp"], kind = "exchange", volume = ["matched"] }
[units]
distance_m = "yards"
weight_kg = "pounds"
[places]
"254" = "did_not_finish"
[constants]
jurisdiction = "GB"
surface = "all_weather"
[dates]
formats = ["%Y-%m-%d"]
time_zone = "Europe/London"
"""
ROWS = [
    "8,2019-07-01 14:10:00,Kempton,44,1,1773,127,1.6,1.5,90.5,109.2",
    "8,2019-07-01 14:10:00,Kempton,45,254,1773,128,4.0,4.4,20,0.0",
    "7,2019-07-01 14:40:00,Kempton,46,1,1m,9-7,2.0,2.2,31,101.2",
]
OWN_HEAD = "rid,when,crse,hid,fin,dist,wt,eve,bsp,matched,time"


def test_prices_by_moment_units_codes_and_off_times(tmp_path):
    done = read(tmp_path, *ROWS, head=OWN_HEAD, own=OWN)
    races = done.tables["races"].sort("off_utc")
    assert races.select("race_no", "distance_m", "surface").rows() == [
        (1, 1621, "all_weather"),
        (2, 1609, "all_weather"),
    ]
    assert races["off_utc"].dt.strftime("%H:%M").to_list() == ["13:10", "13:40"]
    prices = done.tables["prices"].filter(pl.col("race_id") == "racebase:8", runner_no=1)
    told = prices.select(pl.col("moment", "kind").cast(pl.String), "odds", "volume").rows()
    assert told == [("evening", "fixed", 1.6, None), ("bsp", "exchange", 1.5, 90.5)]
    assert done.tables["runners"]["weight_kg"].to_list() == [60.328, 57.606, 58.06]
    fell = done.tables["results"].filter(pl.col("status") == "did_not_finish")
    assert fell.select("position", "time_s").rows() == [(None, None)]
    assert not len(done.quarantine)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("[prices]\nnoon = { columns = ['x'] }", "noon"),
        ("[prices]\nclose = { columns = ['x'], kind = 'pool' }", "pool"),
        ("[units]\ndistance_m = 'leagues'", "leagues"),
        ("[places]\n'254' = 'gone'", "gone"),
        ("[optional]\njocky = ['x']", "jocky"),
        ("[dates]\ntime_zone = 'Mars'", "Mars"),
        ("[price]", "price"),
    ],
)
def test_what_a_map_says_wrong_is_named(tmp_path, wrong, named):
    with pytest.raises(BadInput, match=named) as e:
        checked(tomllib.loads(wrong), tmp_path / MAP_NAME)
    assert MAP_NAME in str(e.value)


def test_a_map_from_before_prices_had_moments_still_reads(tmp_path):
    old = '[required]\nrace_id = ["race_id"]\ndate = ["date"]\ncourse = ["course"]\n'
    old += 'horse_name = ["horse"]\nplace = ["position"]\n[optional]\nodds = ["price"]\n'
    old += '[constants]\njurisdiction = "GB"\n[dates]\nformats = ["%d/%m/%Y"]\n'
    row = "R1,13/02/2024,Ascot,Alpha,1,3.5,1m2f,1"
    done = read(tmp_path, row, head=HEAD.replace("odds", "price"), own=old)
    assert done.tables["prices"].select(pl.col("moment").cast(pl.String), "odds").rows() == [
        ("close", 3.5)
    ]


def test_two_digit_years_and_days_first(tmp_path):
    done = read(tmp_path, "R1,13/02/24,Ascot,Alpha,1,3.5,1m2f,1")
    assert str(done.tables["races"]["date"][0]) == "2024-02-13"
    with pytest.raises(BadInput, match="13/13/2024"):
        read(tmp_path, "R1,13/13/2024,Ascot,Alpha,1,3.5,1m2f,1")


def proposal(tmp_path, text, name="odd.csv"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return propose(tmp_path / name)


def test_heads_that_say_nothing_are_told_by_their_cells(tmp_path):
    lines = ["a,b,c,d,e,f"]
    for race in range(30):
        day = f"{race // 3 + 1:02}/02/2024"
        for i in range(1, 6):
            course = f"Track {'ABC'[race % 3]}"
            lines.append(f"{race + 700},{day},{course},Horse {race * 5 + i},{i},{i * 1.5}")
    got = proposal(tmp_path, "\n".join(lines))
    means = {g.head: g.means for g in got.guesses}
    assert means == {
        "a": "race_id",
        "b": "date",
        "c": "course",
        "d": "horse_name",
        "e": "place",
        "f": None,
    }
    assert tomllib.loads(got.toml)["dates"]["formats"] == ["%d/%m/%Y"] and got.missing == ()


def test_what_cannot_be_placed_is_said(tmp_path, capsys):
    (tmp_path / "odd.csv").write_text("speed,colour\n1.5,red\n2.5,blue\n", encoding="utf-8")
    assert main(["map", str(tmp_path / "odd.csv")]) == 0
    told = capsys.readouterr().out
    assert "not placed: speed, colour" in told and "not found, and needed: race_id, date" in told
    with pytest.raises(BadInput, match="race_id"):
        parse(tmp_path)
    assert main(["map", str(tmp_path / "odd.csv")]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["map", str(tmp_path / "odd.csv"), "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"][0] == "race_id"


def test_hostile_heads_and_cells_leave_a_map_that_reads(tmp_path):
    head = 'race_id,"a""b","back\\slash","[x]",date'
    got = proposal(tmp_path, f'{head}\n1,"x\ty","#",=1,2024-01-01\n')
    assert checked(tomllib.loads(got.toml), tmp_path)["required"]["race_id"] == ["race_id"]
    with pytest.raises(BadInput, match="no rows"):
        proposal(tmp_path, "race_id,date\n")


@pytest.fixture(scope="module")
def all_weather(shared_data, tmp_path_factory):
    source = shared_data / "gb_aw" / "handicaps.csv.gz"
    if not source.is_file():
        pytest.skip(f"no such file: {source}")
    folder = tmp_path_factory.mktemp("gb_aw")
    (folder / source.name).symlink_to(source)
    proposed = propose(folder / source.name)
    (folder / MAP_NAME).write_text(proposed.toml, encoding="utf-8")
    home = Home(folder / "home", "")
    account = ingest("racebase", folder / source.name, home, "gb_aw")
    return proposed, account, Store(home, "gb_aw")


def test_real_handicaps_by_the_proposed_map_alone(all_weather):
    proposed, account, store = all_weather
    assert proposed.missing == () and proposed.facts["units"] == {"distance_m": "yards"}
    assert (account.rows_read, account.races, account.starters) == (22767, 2366, 22767)
    assert (account.quarantined, account.dead_heats_first) == (0, 7)
    prices = store.read("prices").group_by("moment", "kind").len()
    told = {m: (k, n) for m, k, n in prices.cast({"moment": pl.String, "kind": pl.String}).rows()}
    assert told == {
        "evening": ("fixed", 22766),
        "breakfast": ("fixed", 22766),
        "morning": ("fixed", 22766),
        "bsp": ("exchange", 22767),
    }
    races = store.read("races")
    assert races["off_utc"].null_count() == races["distance_m"].null_count() == 0
    assert set(races["surface"].cast(pl.String)) == {"all_weather"}
    assert races["distance_m"].min() == 1000 and store.read("runners")["weight_kg"].min() > 45
    assert (store.read("results")["status"].cast(pl.String) == "did_not_finish").sum() == 79


def test_the_battery_names_what_was_built_from_the_future(all_weather):
    _, _, store = all_weather
    seen = leaks.foresight(store.read("supplied"), store.starts())
    how = dict(seen.filter("knew").select("column", "how").rows())
    assert set(how) == {"pr", "pf_spd_rating", "num_runs"}
    assert "lto_pr" in how["pr"] and "lto_spd" in how["pf_spd_rating"]
    assert "one value" in how["num_runs"]


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    "A simulated world as somebody's file, with columns of his own: honest ones and others."
    starts = simulate(races=1500, seed=91).starts()
    won = (pl.col("position") == 1).fill_null(False).cast(pl.Int32)
    speed = (pl.col("distance_m") / pl.col("time_s")).round(4)
    flat = starts.select(
        "race_id",
        "date",
        "course",
        "position",
        "odds",
        horse=pl.col("horse_id"),
        speed=speed,
        career_wins=won.sum().over("horse_id"),
        weight="weight_kg",
    )
    last = pl.col("speed").shift(1).over("horse", order_by="date")
    flat = flat.with_columns(last_speed=last).filter(pl.col("position").is_not_null())
    folder = tmp_path_factory.mktemp("own")
    flat.write_csv(folder / "own.csv")
    return folder


def test_planted_columns_are_named_at_ingest_and_on_request(collection, tmp_path, capsys):
    argv = ["racebase", str(collection / "own.csv"), "--name", "own", "--home", str(tmp_path)]
    assert main(["ingest", *argv]) == 0
    told = capsys.readouterr().out
    assert "built from the future: speed (the horse's next row carries it as last_speed" in told
    assert "built from the future: career_wins (one value for all starts" in told
    assert "built from the future: last_speed" not in told
    assert main(["leaks", "--source", "own", "--json", "--home", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["knew"] == ["speed", "career_wins"]


def test_a_map_that_calls_them_point_in_time_is_refused(collection, tmp_path, capsys):
    assert main(["map", str(collection / "own.csv"), "--out", str(tmp_path / MAP_NAME)]) == 0
    own = tmp_path / MAP_NAME
    own.write_text(own.read_text(encoding="utf-8").replace("= false", "= true"), encoding="utf-8")
    (tmp_path / "own.csv").symlink_to(collection / "own.csv")
    home = ["--home", str(tmp_path / "home")]
    assert main(["ingest", "racebase", str(tmp_path / "own.csv"), "--name", "own", *home]) == 0
    assert main(["leaks", "--source", "own", *home]) == 3
    assert "speed" in capsys.readouterr().err


CELL = st.text(alphabet="0123456789.,/-:° ½abcPU€\"'#[]=\\\t", max_size=8)
HEADS = st.lists(
    st.text(alphabet="abc _-([.\"'\\=#é", min_size=1, max_size=6), min_size=1, max_size=5
)


@settings(deadline=None, max_examples=60)
@given(HEADS, st.lists(st.lists(CELL, min_size=5, max_size=5), min_size=1, max_size=6))
@example(["race_id", "date", "[x]"], [["1", "2024-01-01", "#", "", ""]])
def test_any_table_gets_a_map_that_reads(tmp_path_factory, heads, rows):
    table = pl.DataFrame({h: [row[i] for row in rows] for i, h in enumerate(dict.fromkeys(heads))})
    file = tmp_path_factory.mktemp("any") / "any.parquet"
    table.write_parquet(file)
    proposed = propose(file)
    assert [g.head for g in proposed.guesses] == table.columns
    checked(tomllib.loads(proposed.toml), file)
