"""France from outside: made meetings, musiques of every kind, and eleven real weeks reconciled to the row."""

import json
import re
from datetime import date

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from racing_core.config import home
from racing_core.data import musique, pmu
from racing_core.data.ingest import SOURCES, ingest
from racing_core.data.store import Store
from racing_core.errors import BadInput


def runner(no, place=None, odds=None, morning=None, horse=None, **more):
    made = {
        "n°": str(no), "cheval": horse or f"ADA{no} F.PU. 4 a.", "père_mère": "Par: SIRE et DAM (X)",
        "corde": f"(Corde:0{no})", "entraineur": "M.ENT (S)", "jockey": "J. CKEY", "poids": "57.5 kg",
        "valeur": "57.5", "gains": "1234500", "musique": "1p(25)0h", "nb_courses": 9,
        "nb_victoires": 2, "nb_places": 4, "arrivee": place, "cote": odds, "cote_reference": morning,
        "avis_entraineur": "POSITIF",
    }  # fmt: skip
    return made | more


def race(*runners, number=1, **more):
    head = {"nom": "PRIX  X", "horaire": "14h20", "numero": str(number), "type": "Plat"}
    return head | {"distance": "2400m", "participants": list(runners)} | more


def meeting(tmp_path, *races, course="VICHY", day="01042026", name="2026-04-01_vichy.json"):
    address = f"https://example.org/programme/{day}/R1" if day else None
    content = {"hippodrome": course, "url_source": address, "courses": list(races)}
    (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    return pmu.parse(tmp_path)


FIELD = [runner(1, 1, 2.5, 3.0), runner(2, 2, 3.0, 2.5), runner(3, 3, 4.0, 0)]


def test_it_is_a_source():
    assert SOURCES["pmu"] is pmu.parse


def test_two_prices_and_what_the_card_tells(tmp_path):
    done = meeting(tmp_path, race(*FIELD, typePiste="GAZON", terrain="PSF RAPIDE"))
    assert done.tables["prices"].select("runner_no", "moment", "kind", "odds").rows() == [
        (1, "morning", "tote", 3.0), (1, "close", "tote", 2.5),
        (2, "morning", "tote", 2.5), (2, "close", "tote", 3.0), (3, "close", "tote", 4.0),
    ]  # fmt: skip
    head = done.tables["races"].select(
        "jurisdiction", "surface", "going", "distance_m", "race_type"
    )
    assert head.row(0) == ("FR", "all_weather", "fast", 2400, "flat")
    own = done.tables["runners"].select("horse_id", "age", "sex", "draw", "weight_kg", "rating")
    assert own.row(0) == ("ADA1/SIRE", 4, "filly", 1, 57.5, None)
    supplied = done.tables["supplied"].row(0, named=True)
    assert supplied["point_in_time"] and supplied["career_starts"] == 9
    assert supplied["earnings"] == 12345 and supplied["trainer_opinion"] == 1
    assert supplied["musique_starts"] == 2 and supplied["musique_last_place"] == 1
    past = done.tables["past_starts"].filter(pl.col("runner_no") == 1)
    assert past.select("back", "year", "discipline", "position").rows() == [
        (1, 2026, "flat", 1),
        (2, 2025, "hurdle", None),
    ]
    assert done.quarantine.is_empty()


@pytest.mark.parametrize(
    ("course", "times", "expected"),
    [
        ("VICHY", ["14h20"], ["2026-04-01 12:20"]),
        ("SARATOGA", ["18h35", "23h51", "00h31"], ["2026-04-01 16:35", "2026-04-01 21:51", "2026-04-01 22:31"]),
        ("KALGOORLIE AUSTRALIE", ["05h45", "08h20"], ["2026-04-01 03:45", "2026-04-01 06:20"]),
        ("VICHY", ["25h10"], [None]),
    ],
)  # fmt: skip
def test_times_are_french_everywhere(tmp_path, course, times, expected):
    races = [race(*FIELD, number=i, horaire=t) for i, t in enumerate(times, 1)]
    races = meeting(tmp_path, *races, course=course).tables["races"].sort("race_no")
    assert races["date"].unique().to_list() == [date(2026, 4, 1)]
    assert races["off_utc"].dt.strftime("%Y-%m-%d %H:%M").to_list() == expected


@pytest.mark.parametrize(
    ("course", "title", "country"),
    [
        ("SOLVALLA", "LOPP", "SE"),
        ("NEW PARK", "PREIS X          ALLEMAGNE", "DE"),
        ("NEW PARK AUSTRALIE", "CUP", "AU"),
        ("NEW PARK", "PRIX", "XX"),
    ],
)
def test_the_country_of_a_course(tmp_path, course, title, country):
    done = meeting(tmp_path, race(*FIELD, nom=title), course=course)
    assert done.tables["races"]["jurisdiction"].to_list() == [country]
    assert ("row of a course whose country is not known" in done.reconciliation["why"]) == (
        country == "XX"
    )


def test_what_became_of_the_runners(tmp_path):
    heat = race(
        *[runner(i, p, 3.0) for i, p in ((1, 1), (2, 2), (3, 2), (4, 3))], runner(5, None, 9.0)
    )
    away = race(runner(1, 1, 2.0), runner(2, 2, 3.0), runner(3), number=2)
    told_to_second = race(
        *[runner(i, p, 3.0) for i, p in ((1, 1), (2, 2), (3, None), (4, None))], number=3
    )
    trot = race(
        *[runner(i, p, 3.0) for i, p in ((1, 1), (2, None), (3, None))], number=4, type="ATTELE"
    )
    done = meeting(tmp_path, heat, away, told_to_second, trot)
    results = done.tables["results"]
    of = lambda n: (
        results.filter(pl.col("race_id").str.ends_with(f"-{n}")).select("status", "position").rows()
    )
    assert [p for _, p in of(1)] == [1, 2, 2, 4, None] and of(1)[4][0] == "did_not_finish"
    assert of(2)[2] == ("non_runner", None)
    assert of(3)[2:] == [("finished", None)] * 2
    assert of(4)[1:] == [("did_not_finish", None)] * 2
    assert done.reconciliation["non_runners"] == 1
    races = done.tables["races"]
    assert races["race_type"].to_list() == ["flat", "flat", "flat", "trot"]


def test_a_race_without_a_result_is_stored_as_a_card(tmp_path, tmp_path_factory):
    card = race(*[runner(i, None, 3.0, 4.0) for i in (1, 2)], number=2)
    meeting(tmp_path, race(*FIELD), card)
    where = home(tmp_path_factory.mktemp("home"), env={})
    account = ingest("pmu", tmp_path, where)
    assert (account.races, account.kept, account.quarantined) == (2, 5, 0)
    assert account.why["runner of a race that has no result"] == 2
    store = Store(where, "pmu")
    starts = store.starts()
    coming = starts.filter(pl.col("status").is_null())
    assert len(store.read("results")) == 3 and len(coming) == 2
    assert coming["odds"].to_list() == [3.0, 3.0] and len(store.read("past_starts")) == 10
    meeting(tmp_path, race(*FIELD), race(runner(1, 2, 3.0), runner(2, 1, 3.0), number=2))
    ingest("pmu", tmp_path, where)  # the result came
    assert store.starts().filter(pl.col("status").is_null()).is_empty()


def test_a_finalist_not_yet_named_has_no_history(tmp_path):
    names = [f"CHEVAL FINALISTE {i} M.TR. 6 a." for i in (1, 2)]
    races = [
        race(*[runner(i, i, 3.0, horse=h) for i, h in enumerate(names, 1)], number=n)
        for n in (1, 2)
    ]
    assert meeting(tmp_path, *races).tables["runners"]["horse_id"].n_unique() == 4


def test_one_name_of_two_sires_is_two_horses_in_any_case_and_suffix(tmp_path):
    sires = ["Par: EARL SIMON et CASH", "Par: Earl Simon (FR) et Cash", "Par: OTHER et CASH"]
    horses = [
        runner(i, i, 3.0, horse="LORD M.TR. 5 a.") | {"père_mère": s}
        for i, s in enumerate(sires, 1)
    ]
    ids = meeting(tmp_path, race(*horses)).tables["runners"]["horse_id"].to_list()
    assert ids == ["LORD/EARL SIMON", "LORD/EARL SIMON", "LORD/OTHER"]


def test_the_date_is_the_programmes_and_else_the_files(tmp_path):
    assert meeting(tmp_path, race(*FIELD), day="").tables["races"]["date"][0] == date(2026, 4, 1)
    with pytest.raises(BadInput, match="which race"):
        meeting(tmp_path, race(*FIELD), day="", name="vichy.json")


@pytest.mark.parametrize("bad", ["[]", "3", '{"courses": 3}', '{"courses": [3]}', "{"])
def test_what_is_no_meeting_is_named(tmp_path, bad):
    (tmp_path / "x.json").write_text(bad, encoding="utf-8")
    with pytest.raises(BadInput, match=r"x\.json"):
        pmu.parse(tmp_path)


STARTS = st.lists(
    st.tuples(st.sampled_from("0123456789DATJRQG"), st.sampled_from("amphsc")), max_size=12
)
CARD = dict(race_id="d:1", runner_no=1, date=date(2026, 4, 1))


def past_of(said):
    return musique.past_starts(pl.DataFrame([CARD | {"musique": said}]))


@settings(deadline=None)
@given(STARTS, st.dictionaries(st.integers(0, 11), st.integers(15, 25), max_size=3))
def test_every_start_is_read_in_its_order_and_year(starts, marks):
    said, years, year = "", [], 2026
    for i, (place, way) in enumerate(starts):
        if i in marks:
            said, year = said + f"({marks[i]})", 2000 + marks[i]
        said, years = said + place + way, [*years, year]
    past = past_of(said)
    assert past["back"].to_list() == list(range(1, len(starts) + 1))
    assert past["year"].to_list() == years
    places = [int(p) if p in "123456789" else None for p, _ in starts]
    assert past["position"].to_list() == places
    assert past["discipline"].to_list() == [musique.DISCIPLINE[w] for _, w in starts]
    assert [s == "finished" for s in past["status"]] == [p.isdigit() for p, _ in starts]
    short = musique.summary(past)
    assert len(short) == bool(starts)
    if starts:
        assert short["musique_starts"][0] == len(starts)
        assert short["musique_wins"][0] == places.count(1)
        assert 0 <= short["musique_not_finished"][0] <= 1


@settings(deadline=None)
@given(st.text(alphabet="0123456789DATaphm() ½x１", max_size=20))
def test_a_text_is_read_whole_or_not_at_all(said):
    read = pl.DataFrame({"m": [said]}).select(musique.tokens(pl.col("m"))).to_series()[0]
    if read is not None:
        assert "".join(read) == said.strip()
        assert all(re.fullmatch(r"\([0-9]{2}\)|[0-9A-Z][amphsc]", token) for token in read)
    else:
        assert past_of(said).is_empty()


def test_eleven_real_weeks(shared_data, tmp_path):
    folder = shared_data / "pmu"
    if not folder.is_dir():
        pytest.skip(f"no French meetings in {shared_data}")
    done = pmu.parse(folder)
    account, t = done.reconciliation, done.tables
    counted = ("rows_read", "duplicates", "quarantined", "non_runners", "starters", "races")
    assert [account[c] for c in counted] == [41816, 0, 0, 1, 41815, 3824]
    assert t["results"]["race_id"].n_unique() == 3807
    assert account["why"]["runner of a race that has no result"] == 179
    assert dict(t["prices"]["moment"].cast(pl.String).value_counts().rows()) == {
        "morning": 40565,
        "close": 41437,
    }
    kinds = dict(t["races"]["race_type"].cast(pl.String).value_counts().rows())
    assert kinds == {"trot": 1778, "flat": 1757, "hurdle": 173, "chase": 98, "cross": 18}
    assert (t["races"]["jurisdiction"] == "XX").sum() == 0 and t["races"][
        "course"
    ].n_unique() == 129
    assert t["races"]["off_utc"].null_count() == 0
    assert len(t["past_starts"]) == 266850
    assert done.quarantine["column"].to_list() == ["musique"]
    rows = t["runners"].join(t["races"], on="race_id")
    born = rows.group_by("horse_id").agg(year=(pl.col("date").dt.year() - pl.col("age")).n_unique())
    assert born["year"].max() == 1  # no id stands for two horses
    assert not rows.select(pl.struct("date", "horse_id").is_duplicated().any()).item()
    # the card tells nothing of the race that it is the card of: the next card counts the win
    own = t["supplied"].join(t["results"], on=["race_id", "runner_no"]).join(
        rows.select("race_id", "runner_no", "date", "horse_id"), on=["race_id", "runner_no"]
    )  # fmt: skip
    step = lambda c: (pl.col(c).shift(-1) - pl.col(c)).over("horse_id", order_by="date")
    own = own.with_columns(more=step("career_starts"), won=step("career_wins"))
    once = own.filter(pl.col("more") == 1)
    winner = pl.col("position") == 1
    assert once.filter(winner)["won"].mean() > 0.99
    assert once.filter(~winner.fill_null(False))["won"].mean() < 0.01
