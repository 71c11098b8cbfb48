"""The flat private collection: mapped by an editable file, its own form columns carried along but not trusted."""

import polars as pl
import pytest

from racing_core.config import Home
from racing_core.data.ingest import ingest
from racing_core.data.racebase import MAP_NAME, column_map
from racing_core.data.store import Store
from racing_core.errors import BadInput

HEAD = (
    "race_id,race date,course,distance,going,horse,jockey,trainer,position,odds,"
    "avg_perf_index_L5,weighted_form_score,days_since_last,silks\n"
)
ROWS = [
    "77,2021-05-01,Ascot,1m2f,Good to Firm,Zola,A Rider,B Trainer,1,5/2,0.61,71.5,21,red\n",
    "77,2021-05-01,Ascot,1m2f,Good to Firm,Ada,C Rider,B Trainer,2,4.5,0.40,60,,blue\n",
    "77,2021-05-01,Ascot,1m2f,Good to Firm,Mia,D Rider,E Trainer,PU,20,,55,14,green\n",
    "78,2021-05-01,Ascot,6f,Good to Firm,Ben,A Rider,E Trainer,1,3,0.5,61,7,red\n",
]


@pytest.fixture
def csv(tmp_path):
    file = tmp_path / "racebase_processed_final_large.csv"
    file.write_text(HEAD + "".join(ROWS), encoding="utf-8")
    return file


def test_it_becomes_starts_and_a_side_table(csv, tmp_path):
    home = Home(tmp_path / "home", "")
    account = ingest("racebase", csv, home)
    store = Store(home, "racebase")
    starts, supplied = store.starts(), store.read("supplied")
    assert (account.rows_read, account.races, account.starters, account.quarantined) == (4, 2, 4, 0)
    assert starts["odds"].to_list() == [4.5, 20.0, 3.5, 3.0]
    assert not {"avg_perf_index_L5", "weighted_form_score"} & set(starts.columns)
    assert supplied["weighted_form_score"].to_list() == [60, 55, 71.5, 61]
    assert not supplied["point_in_time"].any()
    assert store.manifest["ingests"][-1]["supplied"]["point_in_time"] is False
    assert account.why == {"column not mapped: silks": 4}
    assert not ingest("racebase", csv, home).changed


def test_numbers_do_not_depend_on_the_order_of_finish(csv, tmp_path):
    accounts = []
    for name, rows in (("a", ROWS), ("b", ROWS[::-1])):
        csv.write_text(HEAD + "".join(rows), encoding="utf-8")
        ingest("racebase", csv, home := Home(tmp_path / name, ""))
        accounts.append(Store(home, "racebase").fingerprint)
    assert accounts[0] == accounts[1]


def test_what_cannot_be_mapped_is_said_and_can_be_mended(csv, tmp_path):
    csv.write_text(csv.read_text().replace(",horse,", ",nag,"), encoding="utf-8")
    with pytest.raises(BadInput) as e:
        ingest("racebase", csv, Home(tmp_path / "home", ""))
    assert all(word in str(e.value) for word in ("horse_name", "nag", MAP_NAME, csv.name))
    own = column_map(csv)[1].read_text(encoding="utf-8").replace('["horse"', '["nag"')
    (tmp_path / MAP_NAME).write_text(own, encoding="utf-8")
    assert ingest("racebase", csv, Home(tmp_path / "home", "")).races == 2
    (tmp_path / MAP_NAME).write_text("[required", encoding="utf-8")
    with pytest.raises(BadInput, match="TOML"):
        ingest("racebase", csv, Home(tmp_path / "home", ""))


SMALL = "race_id,date,course,horse,position,odds,number,btn\n"


def small(tmp_path, *rows):
    file = tmp_path / "racebase.csv"
    file.write_text(SMALL + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    account = ingest("racebase", file, home := Home(tmp_path / "home", ""))
    return account, Store(home, "racebase")


def test_margins_and_places_as_they_are_printed_lose_no_race(tmp_path):
    rows = [
        f"R1,13/02/2024,Ascot,H{i},{i},3.5,{i},{m}" for i, m in enumerate(("", "nk", "1½", "½"), 1)
    ]
    rows += [f"R2,13/02/2024,Ascot,G{i},1=,3.5,{i}," for i in (1, 2)]
    rows += ["R3,13/02/2024,Ascot,F1,1,3.5,1,", "R3,13/02/2024,Ascot,F2,RR,3.5,2,"]
    rows += ["R4,13/02/2024,Ascot,E1,1,3.5,1,", "R4,13/02/2024,Ascot,E2,2,3.5,2,whisker"]
    account, store = small(tmp_path, *rows)
    assert (account.races, account.quarantined, account.dead_heats_first) == (4, 0, 1)
    margins = store.read("results").filter(pl.col("race_id") == "racebase:R1")["margin_lengths"]
    assert margins.to_list() == [0, 0.3, 1.5, 0.5]
    assert (store.read("results")["status"] == "did_not_finish").sum() == 1
    assert list(account.values.values()) == [["whisker"]]


def test_a_decimal_comma_is_no_thousand(tmp_path):
    rows = ['R1,13/02/2024,Chantilly,A,1,"3,5",1,', 'R1,13/02/2024,Chantilly,B,2,"2,1",2,']
    _, store = small(tmp_path, *rows)
    assert store.read("prices")["odds"].to_list() == [3.5, 2.1]
