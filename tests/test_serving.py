"""The service from outside: a real server on a loopback port, a real bundle of a small simulated world."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from racing_core.errors import Tampered
from racing_core.features.matrix import History, compute
from racing_core.folds import Races
from racing_core.models.linear import ConditionalLogit
from racing_core.models.trees import SoftmaxTrees
from racing_core.pipeline import Pipeline
from racing_core.release import bundle
from racing_core.serving.answer import ranks
from racing_core.serving.contract import EXAMPLE, Card, card_frame
from racing_core.serving.guard import MAX_BODY
from racing_core.serving.predictor import Predictor, sample_card
from racing_core.simulate import simulate

ROOT = Path(__file__).resolve().parent.parent
PREDICT, HEALTH = "/api/v2/predict", "/api/v2/health"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def world() -> pl.DataFrame:
    return simulate(races=700, seed=11).starts()


@pytest.fixture(scope="module")
def small_bundle(world, tmp_path_factory) -> Path:
    "Trained on every day but the last."
    past = world.filter(pl.col("date") < world["date"].max())
    history = History.learn(past)
    late = (past["date"].rank("dense") > 0.8 * past["date"].n_unique()).to_numpy()
    models = (
        {
            "conditional_logit": ConditionalLogit(),
            "lightgbm_softmax": SoftmaxTrees(trees=40, min_rows=100),
        },
        {"conditional_logit": ConditionalLogit(l2=5000)},
    )
    pipeline = Pipeline(*models).fit(Races.of(past, compute(past, history)), ~late, late)
    folder = tmp_path_factory.mktemp("bundles") / "small"
    days = dict(
        trained_from=past["date"].min(),
        trained_until=past["date"].max(),
        now=datetime(2026, 1, 1, tzinfo=UTC),
    )
    bundle.write(folder, pipeline, history, bundle.Origin("small", "simulated", **days))
    return folder


@pytest.fixture(scope="module")
def predictor(small_bundle) -> Predictor:
    return Predictor(bundle.read(small_bundle))


@pytest.fixture(scope="module")
def card(world) -> Card:
    return sample_card(world, world["race_id"][-1])


# --- the server
def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(folder: Path | None, **env: str) -> tuple[subprocess.Popen, int]:
    "A server in a process group of its own."
    port, where = free_port(), None if folder is None else str(folder)
    code = f"from serve.app import run; run('127.0.0.1', {port}, {where!r})"
    return (
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | env,
        ),
        port,
    )


def wait_until_up(process: subprocess.Popen, port: int) -> httpx.Client:
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        assert process.poll() is None, process.stderr.read()
        with contextlib.suppress(httpx.TransportError):
            httpx.get(url + HEALTH)
            return httpx.Client(base_url=url, timeout=30)
        time.sleep(0.1)
    raise AssertionError("the server did not come up in a minute")


def group(pgid: int) -> list[str]:
    "Command lines of the living processes of a group."
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == pgid and state != "Z":
                found.append((stat.parent / "cmdline").read_text().replace("\0", " "))
    return found


def gone(pgid: int, within: float = 5) -> list[str]:
    "Who is left after some seconds."
    until = time.monotonic() + within
    while group(pgid) and time.monotonic() < until:
        time.sleep(0.05)
    return group(pgid)


def end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()


@pytest.fixture(scope="module")
def client(small_bundle):
    process, port = start(small_bundle)
    try:
        with wait_until_up(process, port) as client:
            yield client
    finally:
        end(process)


def body(card: Card) -> dict:
    return json.loads(card.model_dump_json(exclude_none=True))


# --- answers
def test_a_card_is_ranked(client, card, predictor):
    reply = client.post(PREDICT, json=body(card))
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    assert (
        answer["model"] == "small"
        and answer["version"] == predictor.bundle.manifest["version"]
        and answer["stage"] == "combined"
    )
    p = [r["win_probability"] for r in answer["ranked"]]
    assert abs(sum(p) - 1) < 1e-9 and p == sorted(p, reverse=True) and len(p) == len(card.starters)
    assert answer == predictor.predict(card).model_dump(mode="json"), "the wire changes nothing"


def test_order_of_runners_does_not_matter(client, card):
    answer = client.post(PREDICT, json=body(card)).json()
    for shuffled in (card.runners[::-1], card.runners[3:] + card.runners[:3]):
        assert (
            client.post(PREDICT, json=body(card.model_copy(update=dict(runners=shuffled)))).json()
            == answer
        )


def test_unknown_horses_are_answered_and_named(client):
    answer = client.post(PREDICT, json=EXAMPLE).json()
    assert abs(sum(r["win_probability"] for r in answer["ranked"]) - 1) < 1e-9
    assert {r["runner_no"]: r["known_horse"] for r in answer["ranked"]}[3] is False
    assert any("Newcomer" in w for w in answer["warnings"]) and any(
        "stale" in w for w in answer["warnings"]
    )


def test_where_no_horse_is_known_no_edge_is_claimed(predictor, card):
    def ask(*known: int):
        runners = [
            r if r.runner_no in known else r.model_copy(update=dict(horse_id=f"new {r.runner_no}"))
            for r in card.runners
        ]
        return predictor.predict(card.model_copy(update=dict(runners=runners)))

    strangers, one = ask(), ask(card.runners[0].runner_no)
    assert strangers.stage == "combined" and all(r.edge is None for r in strangers.ranked)
    assert any(w.startswith("no edge") for w in strangers.warnings)
    assert all(r.edge is not None for r in one.ranked)
    assert not any(w.startswith("no edge") for w in one.warnings)


def test_the_sample_card_is_answered(client):
    reply = client.post(
        PREDICT, content=(ROOT / "data" / "sample" / "card.json").read_bytes(), headers=JSON
    )
    assert reply.status_code == 200 and reply.json()["ranked"]


def test_health(client, predictor):
    facts = client.get(HEALTH).json()
    assert (facts["status"], facts["model"], facts["version"]) == (
        "ok",
        "small",
        predictor.bundle.manifest["version"],
    )
    assert 0 < facts["uptime_s"] < client.get(HEALTH).json()["uptime_s"]


def test_openapi_has_types_and_an_example(client):
    page = client.get("/openapi.json").json()
    post = page["paths"][PREDICT]["post"]
    assert post["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/Card")
    assert post["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith(
        "/Prediction"
    )
    assert page["components"]["schemas"]["Card"]["examples"] == [EXAMPLE]
    assert HEALTH in page["paths"]


# --- refusals
def runners(i: int, **changes) -> dict:
    return dict(runners=[r | (changes if i == j else {}) for j, r in enumerate(EXAMPLE["runners"])])


def without(field: str) -> dict:
    return {k: v for k, v in EXAMPLE.items() if k != field}


BAD = [
    (without("course"), "course"),
    (without("runners"), "runners"),
    (EXAMPLE | dict(runners=[]), "runners"),
    (EXAMPLE | dict(distance_m=12), "distance_m"),
    (EXAMPLE | dict(distance_m="a mile"), "distance_m"),
    (EXAMPLE | dict(date="2024-02-30"), "date"),
    (EXAMPLE | dict(going="bottomless"), "going"),
    (EXAMPLE | dict(surface="ice"), "surface"),
    (EXAMPLE | dict(race_no=0), "race_no"),
    (EXAMPLE | dict(jurisdiction="Mars"), "jurisdiction"),
    (EXAMPLE | dict(wether="fine"), "wether"),
    (EXAMPLE | dict(source="elsewhere"), "source"),
    (EXAMPLE | dict(course="x" * 101), "course"),
    (EXAMPLE | runners(1, odds=1), "runners.1.odds"),
    (EXAMPLE | runners(1, odds="evens"), "runners.1.odds"),
    (EXAMPLE | runners(0, weight_kg=500), "runners.0.weight_kg"),
    (EXAMPLE | runners(2, wieght_kg=55), "runners.2.wieght_kg"),
    (EXAMPLE | runners(2, runner_no=1), "runners"),
    (EXAMPLE | runners(2, horse_name=None), "runners.2"),
    (EXAMPLE | dict(runners=[r | dict(non_runner=True) for r in EXAMPLE["runners"]]), "runners"),
    (
        EXAMPLE | dict(runners=[dict(runner_no=i, horse_name=str(i)) for i in range(1, 42)]),
        "runners",
    ),
    ([], ""),
    (EXAMPLE | dict(runners={}), "runners"),
]


@pytest.mark.parametrize(("bad", "field"), BAD, ids=range(len(BAD)))
def test_a_bad_card_is_refused_with_the_field_named(client, bad, field):
    reply = client.post(PREDICT, json=bad)
    assert reply.status_code == 422, reply.text
    assert field in [d["field"] for d in reply.json()["detail"]]
    assert "Traceback" not in reply.text and 'File "' not in reply.text


RUBBISH = {
    "empty": b"",
    "truncated": b"{",
    "null": b"null",
    "text": b'"card"',
    "bytes": b"\xff\xfe",
    "nan": b'{"date": NaN}',
    "infinite": b'{"distance_m": 1e999}',
    "surrogate": b'{"course": "\\ud800"}',
    "surrogate name": b'{"\\ud800": 1}',
    "nested": b"[" * 5000,
    "long number": b'{"prize": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("raw", RUBBISH.values(), ids=RUBBISH)
def test_rubbish_is_refused_without_a_trace(client, raw):
    reply = client.post(PREDICT, content=raw, headers=JSON)
    assert 400 <= reply.status_code < 500, reply.text
    assert "Traceback" not in reply.text
    assert client.get(HEALTH).status_code == 200


def test_a_card_that_is_not_announced_as_json_is_told_so(client):
    reply = client.post(PREDICT, data={"card": json.dumps(EXAMPLE)})
    assert reply.status_code == 422 and "Content-Type: application/json" in reply.text


def test_a_body_larger_than_any_card_is_cut_off(client, card):
    long = dict(horse_name="n" * 100, jockey="j" * 100, trainer="t" * 100)
    full = [
        body(card)["runners"][0] | long | dict(runner_no=i, horse_id=f"{i:0100}")
        for i in range(1, 41)
    ]
    largest = json.dumps(body(card) | dict(runners=full)).encode()
    assert (
        len(largest) < MAX_BODY / 4
        and client.post(PREDICT, content=largest, headers=JSON).status_code == 200
    )
    assert client.post(PREDICT, content=b" " * (MAX_BODY + 1), headers=JSON).status_code == 413


# --- beginning and end
def test_without_a_champion_it_says_so():
    process, port = start(None)
    try:
        with wait_until_up(process, port) as client:
            reply = client.post(PREDICT, json=EXAMPLE)
            assert reply.status_code == 503 and "racing promote" in reply.json()["detail"]
            assert (
                client.get(HEALTH).status_code == 503
                and client.get(HEALTH).json()["status"] == "no model"
            )
    finally:
        end(process)


def reach(when: str, process: subprocess.Popen, port: int):
    "Wait until a server has two of its children, when `starting`, else until it has answered."
    if when == "starting":
        while len(group(process.pid)) < 3:  # the parent and two of its children
            assert process.poll() is None
            time.sleep(0.02)
        return
    with wait_until_up(process, port) as client:
        assert client.post(PREDICT, json=EXAMPLE).status_code == 200


def listens(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("when", ["running", "starting", "twice", "to the whole group"])
def test_sigterm_leaves_nobody_behind(small_bundle, when):
    process, port = start(small_bundle)
    try:
        reach(when, process, port)
        send = os.killpg if when == "to the whole group" else os.kill
        send(process.pid, signal.SIGTERM)
        if when == "twice":
            time.sleep(0.1)
            os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        assert gone(process.pid) == []
        assert "Traceback" not in process.stderr.read()
        assert not listens(port), "the port still answers"
    finally:
        end(process)


@pytest.mark.parametrize("when", ["running", "starting"])
def test_killed_hard_it_leaves_nobody_who_answers(small_bundle, when):
    process, port = start(small_bundle)
    try:
        reach(when, process, port)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert gone(process.pid, within=60) == [] and not listens(port)
    finally:
        end(process)


# --- clients that take their time
HEAD = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
SLOW = {
    "a head that drips": ("", HEAD),
    "a body that drips": (f"{HEAD}Content-Length: 100000\r\n\r\n{{", " " * 1000),
    "a body in chunks": (f"{HEAD}Transfer-Encoding: chunked\r\n\r\n", "1\r\n \r\n" * 200),
    "nothing at all": ("", ""),
    "a second head": (f"GET {HEALTH} HTTP/1.1\r\nHost: x\r\n\r\n", HEAD),
}


@pytest.fixture(scope="module")
def hurried(small_bundle):
    "A server of little patience, and its port."
    process, port = start(small_bundle, RACING_SERVE_PATIENCE_S="0.4")
    try:
        with wait_until_up(process, port) as client:
            yield client, port, process
    finally:
        end(process)


@pytest.mark.parametrize("case", SLOW)
def test_a_request_that_does_not_come_in_time_is_cut(hurried, case):
    client, port, _ = hurried
    at_once, by_and_by = SLOW[case]
    with socket.create_connection(("127.0.0.1", port)) as s:
        s.sendall(at_once.encode())
        if case == "a second head":
            assert b"200 OK" in s.recv(65536)
        s.settimeout(0.1)
        said, drips = b"", iter(by_and_by)
        for _ in range(600):
            with contextlib.suppress(TimeoutError):
                said += (part := s.recv(65536))
                if not part:
                    break
            s.sendall(next(drips, "").encode())
        else:
            pytest.fail("the connection is still open")
    assert b"408" in said
    assert client.post(PREDICT, json=EXAMPLE).status_code == 200, "others are answered"


def test_a_panic_of_a_library_is_an_answer_and_ends_no_worker():
    from fastapi import HTTPException

    from serve.app import PredictAPI

    class Panicking:
        def predict(self, card):
            return str(pl.Series([2**31 - 1]).cast(pl.Date))

    api = PredictAPI(None, None)
    api.predictor = Panicking()
    with pytest.raises(HTTPException) as e:
        api.predict(Card.model_validate(EXAMPLE))
    assert e.value.status_code == 500 and "date" not in str(e.value.detail)


def test_a_tampered_bundle_is_refused_by_name(small_bundle, tmp_path):
    from serve.app import build

    spoilt = shutil.copytree(small_bundle, tmp_path / "spoilt")
    victim = spoilt / "pipeline" / "pipeline.json"
    victim.write_text(victim.read_text().replace("power", "powex"))
    with pytest.raises(Tampered, match="pipeline.json"):
        build(spoilt)


def test_answering_needs_no_heavy_library(small_bundle):
    code = f"""
import sys
from racing_core.release.bundle import read
from racing_core.serving.contract import EXAMPLE, Card
from racing_core.serving.predictor import Predictor
Predictor(read({str(small_bundle)!r})).predict(Card.model_validate(EXAMPLE))
print(sorted({{"mlflow", "torch", "shap", "catboost", "matplotlib"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- without a server
def test_a_served_card_has_the_features_of_training(world, predictor, card):
    batch = compute(world, History.learn(world))
    for race_id in world.filter(pl.col("date") == pl.col("date").max())["race_id"].unique(
        maintain_order=True
    ):
        sent = Card.model_validate_json(sample_card(world, race_id).model_dump_json())
        online = compute(card_frame(sent)[0], predictor.bundle.history)
        assert online.equals(batch.filter(pl.col("race_id") == race_id), null_equal=True)


def test_a_card_from_the_past_is_no_forecast(predictor, world):
    answer = predictor.predict(sample_card(world, world["race_id"][len(world) // 2]))
    assert answer.warnings[0].startswith("not a forecast")


numbers = st.floats(allow_nan=False, allow_infinity=False)
scalar = st.none() | st.booleans() | st.integers() | numbers | st.text(max_size=8)
anything = (
    scalar | st.lists(scalar, max_size=3) | st.dictionaries(st.text(max_size=8), scalar, max_size=3)
)
maybe_runner = dict(
    horse_id=st.sampled_from(["S000001", "S000044", "x"]),
    horse_name=st.text(max_size=5),
    draw=st.integers(0, 14),
    odds=st.floats(0.5, 300),
    weight_kg=st.floats(30, 95),
    rating=st.floats(0, 140),
    age=st.integers(0, 30),
    non_runner=st.booleans(),
    body_weight_kg=anything,
    gear=anything,
)
runner_like = st.fixed_dictionaries({"runner_no": st.integers(-1, 12)}, optional=maybe_runner)
maybe_card = dict(
    distance_m=st.integers(300, 9100),
    going=st.sampled_from(["good", "soft", "?"]),
    runners=st.lists(runner_like, max_size=6),
    prize=anything,
    rail=anything,
)


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({}, optional=maybe_card))
def test_any_card_is_refused_or_answered_in_full(predictor, changes):
    try:
        card = Card.model_validate(EXAMPLE | changes)
    except ValidationError:
        return
    answer = predictor.predict(card)
    assert sorted(r.runner_no for r in answer.ranked) == [r.runner_no for r in card.starters]
    assert abs(sum(r.win_probability for r in answer.ranked) - 1) < 1e-9
    assert json.loads(answer.model_dump_json())["ranked"]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_ranks_are_competition_ranks(weights):
    p = np.array(weights) / 10
    assert ranks(p).tolist() == [1 + sum(other > mine for other in p) for mine in p]
