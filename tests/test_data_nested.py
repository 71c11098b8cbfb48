"""Whatever JSON a file holds is read, set aside or refused by name; nothing else ever happens."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from racing_core.data import pmu, tjk
from racing_core.errors import BadInput

HORSE = dict(
    position=1, no="1", name="ADA", jockey="A", trainer="B", weight=57.5, odds=1.5,
    finishTime="1.29.68", age=4,
)  # fmt: skip
OTHERS = [HORSE | dict(position=i, no=str(i), name=f"BO {i}", odds=2.5) for i in (2, 3)]
DAY = [
    dict(date="2025-03-01", raceNo=n, venue="İzmir", distance=1400, surface="Kum",
         raceClass="Maiden", horses=[HORSE, *OTHERS])
    for n in (1, 2)
]  # fmt: skip
RUNNER = {
    "n°": "1", "cheval": "ADA F.PU. 4 a.", "père_mère": "Par: A et B", "corde": "(Corde:01)",
    "entraineur": "A", "jockey": "B", "poids": "57.5 kg", "gains": "100", "musique": "1p(25)0h",
    "nb_courses": 9, "nb_victoires": 2, "nb_places": 4, "arrivee": 1, "cote": 2.5,
    "cote_reference": 3.0, "valeur": "57.5", "avis_entraineur": "NEUTRE", "equipement(s)": "A",
}  # fmt: skip
SECOND = RUNNER | {"n°": "2", "cheval": "BO H.TR. 5 a.", "arrivee": 2}
MEETING = {
    "hippodrome": "VICHY",
    "url_source": "https://example.org/programme/01042026/R1",
    "courses": [
        {"nom": "PRIX", "horaire": "14h20", "numero": n, "type": "Plat", "distance": "2400m",
         "terrain": "Bon", "typePiste": "HERBE", "participants": [RUNNER, SECOND]}
        for n in ("1", "2")
    ],
}  # fmt: skip
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["3,5", "１２", "1e308", "99999999999", "2 1/2", "\ud800", "\x1b[31m", "0", "-1"]
    ),
    st.lists(st.integers(), max_size=2),
)
KINDS = {"tjk": (tjk.parse, DAY, "horses"), "pmu": (pmu.parse, MEETING, "participants")}


def outcome(parse, file):
    "What was read, or how it was refused."
    try:
        return parse(file), ""
    except BadInput as refusal:
        return None, str(refusal)


def _races(content):
    return content if isinstance(content, list) else content["courses"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("nested")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_one_odd_cell_never_ends_in_anything_but_an_account_or_a_refusal(kind, folder, data):
    parse, good, runners = KINDS[kind]
    content = json.loads(json.dumps(good))  # no two races share a runner
    race = data.draw(st.sampled_from(_races(content)))
    where = data.draw(st.sampled_from([race, race[runners][1]]))
    where[data.draw(st.sampled_from(sorted(k for k in where if k != runners)))] = data.draw(ODD)
    file = folder / f"2026-04-01_{kind}.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    done, complaint = outcome(parse, file)
    if done is None:
        assert file.name in complaint
        return
    a = done.reconciliation
    read = a["duplicates"] + a["quarantined"] + a["non_runners"] + a["starters"]
    assert a["rows_read"] == read == sum(len(r[runners]) for r in _races(content))
    assert a["races"] >= 1  # the other race stands
