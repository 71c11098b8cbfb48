"""One predictor: command line, service and page say the same of a card, to the last bit and in the same order."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zlib
from dataclasses import asdict, replace
from datetime import UTC, date, datetime
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import pytest

from racing_core.app import main as cli
from racing_core.config import Home
from racing_core.config import home as home_of
from racing_core.data.ingest import ingest_world
from racing_core.data.store import Store
from racing_core.features.matrix import History
from racing_core.memo import open_cache
from racing_core.models.linear import ConditionalLogit
from racing_core.pages import raceday
from racing_core.pipeline import Pipeline
from racing_core.release.registry import promote
from racing_core.release.training import train
from racing_core.semantic.opinions import Opinions, _who
from racing_core.semantic.scorer import Score, Settings
from racing_core.serving.answer import Prediction
from racing_core.serving.contract import Card
from racing_core.serving.predictor import Predictor, sample_card
from racing_core.simulate import simulate

ROOT = Path(__file__).resolve().parent.parent
PREDICT, HEALTH = "/api/v2/predict", "/api/v2/health"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
AHEAD = 30  # race days after training
LLM = {"RACING_LLM_MODEL": "listened-to"}


def _small() -> Pipeline:
    return Pipeline(
        {"conditional_logit": ConditionalLogit()}, {"conditional_logit": ConditionalLogit(l2=5000)}
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Home:
    """A home with a world, a champion that has not seen its last days, and a challenger that was
    trained on a language model's scores."""
    home = home_of(tmp_path_factory.mktemp("home"), env={})
    # a market with so much to mend that the past speaks for a correction
    ingest_world(simulate(races=1500, seed=19, inefficiency=0.2), home)
    starts = Store(home, "simulated").starts()
    until = starts["date"].unique().sort()[-AHEAD - 1]
    train(home, "simulated", home.root / "plain", NOW, until=until, make=_small)
    promote(home, home.root / "plain", "champion", NOW)
    opinions = Opinions(
        open_cache(home, env={}), Settings(model="listened-to", cutoff=date(2000, 1, 1))
    )
    for day in starts.partition_by("date"):
        for s in _who(day):
            score = Score(zlib.crc32(s.id.encode()) % 97 / 97, 0.0, 0.5, "", "model")
            opinions.cache.put(s.day_key(opinions.settings), asdict(score))
    how = dict(until=until, make=_small, scorer="model", opinions=opinions)
    train(home, "simulated", home.root / "listening", NOW, **how)
    promote(home, home.root / "listening", "challenger", NOW)
    return home


@pytest.fixture(scope="module")
def book(place) -> raceday.Book:
    return raceday.open_book(place)


@pytest.fixture(scope="module")
def later(book) -> list[str]:
    "The races of the days after training."
    rows = book.starts.filter(pl.col("date") > book.trained_until)
    assert rows["date"].n_unique() == AHEAD
    return rows["race_id"].unique(maintain_order=True).to_list()


# --- the three who are asked


@contextlib.contextmanager
def service(place: Home, bundle: str, **env: str):
    "`racing serve` on a loopback port."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from racing_core.app.main import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["--home", place.root, "serve", "--port", port, "--bundle", bundle]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            for _ in range(1200):
                assert process.poll() is None, process.stderr.read()
                with contextlib.suppress(httpx.TransportError):
                    client.get(HEALTH)
                    break
                time.sleep(0.1)
            yield client
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stderr.close()


def by_command(place: Home, bundle: str, card: Card, folder: Path, capsys) -> dict:
    "`racing predict FILE --json`, in this process."
    file = folder / "card.json"
    file.write_text(card.model_dump_json(exclude_none=True), encoding="utf-8")
    capsys.readouterr()
    argv = ["--home", str(place.root), "predict", str(file), "--bundle", bundle, "--json"]
    assert cli.main(argv) == 0
    return json.loads(capsys.readouterr().out)


def by_page(book: raceday.Book, race_id: str) -> list[tuple]:
    "Runner, win probability and market of each row of the page's table, from the top."
    html = str(raceday.table(raceday.sheet(book, race_id)))
    rows = re.findall(r"<tr data-runner.*?</tr>", html, re.S)

    def told(row: str) -> tuple:
        number = int(re.search(r'data-runner="(\d+)"', row)[1])
        shares = (
            re.search(rf'class="p {kind}" data-p="([^"]+)"', row) for kind in ("model", "market")
        )
        return number, *(float(s[1]) if s else None for s in shares)

    return [told(row) for row in rows]


def ranking(answer: dict) -> list[tuple]:
    "The same of an answer over the wire."
    fields = ("runner_no", "win_probability", "market_probability")
    return [tuple(r[f] for f in fields) for r in answer["ranked"]]


def agree(
    place: Home, bundle: str, book: raceday.Book, ids: list[str], client, folder: Path, capsys
):
    "Ask all three about each race; the service's answers."
    answers = {}
    for race_id in ids:
        card = sample_card(book.starts, race_id)
        sent = json.loads(card.model_dump_json(exclude_none=True))
        reply = client.post(PREDICT, json=sent)
        assert reply.status_code == 200, reply.text
        answers[race_id] = reply.json()
        assert by_command(place, bundle, card, folder, capsys) == reply.json(), race_id
        assert by_page(book, race_id) == ranking(reply.json()), race_id
    return answers


# --- what they say


@pytest.fixture(scope="module")
def champion(place):
    with service(place, "champion") as client:
        yield client


def test_thirty_days_of_cards_get_one_answer(place, book, champion, later, tmp_path, capsys):
    answers = agree(place, "champion", book, later, champion, tmp_path, capsys)
    assert len(answers) > 200 and {a["stage"] for a in answers.values()} == {"combined"}
    assert not [w for a in answers.values() for w in a["warnings"] if "not a forecast" in w]


def test_names_get_the_answer_of_their_ids_everywhere(
    place, book, champion, later, tmp_path, capsys
):
    for race_id in later[:: len(later) // 6]:
        card = sample_card(book.starts, race_id)
        seen = {r.horse_id: r.known_horse for r in book.predictor.predict(card).ranked}
        runners = [
            r.model_copy(update=dict(horse_id=None, horse_name=f"{r.horse_name.upper()} (IRE)"))
            if seen[r.horse_id]
            else r
            for r in card.runners
        ]
        typed = card.model_copy(update=dict(runners=runners))
        reply = champion.post(PREDICT, json=json.loads(typed.model_dump_json(exclude_none=True)))
        assert reply.status_code == 200, reply.text
        answer = reply.json()
        assert by_command(place, "champion", typed, tmp_path, capsys) == answer
        assert by_page(book, race_id) == ranking(answer)
        taken = {i["id"] for i in answer["identified"]}
        assert taken == {horse for horse, known in seen.items() if known} and taken


def test_form_alone_is_what_a_card_without_prices_gets(book, champion, later):
    for race_id in later[:: len(later) // 10]:
        card = sample_card(book.starts, race_id)
        runners = [r.model_copy(update=dict(odds=None)) for r in card.runners]
        bare = card.model_copy(update=dict(runners=runners))
        form = champion.post(
            PREDICT, json=json.loads(bare.model_dump_json(exclude_none=True))
        ).json()
        told = raceday.sheet(book, race_id, "fundamental").prediction
        assert form["stage"] == told.stage == "fundamental"
        assert [(r["runner_no"], r["win_probability"]) for r in form["ranked"]] == [
            (r.runner_no, r.win_probability) for r in told.ranked
        ]


def test_cards_from_inside_the_training_period_get_one_answer_as_of_their_day(
    place, book, champion, tmp_path, capsys
):
    past = book.starts.filter(pl.col("date") <= book.trained_until)
    ids = past["race_id"].unique(maintain_order=True).to_list()
    assert past["date"].n_unique() == 60
    few = ids[:: len(ids) // 9]
    answers = agree(place, "champion", book, few, champion, tmp_path, capsys)
    assert len(answers) >= 9
    assert all("not a forecast" in a["warnings"][0] for a in answers.values())
    assert not [w for a in answers.values() for w in a["warnings"] if "forgets" in w]
    whole = Store(place, "simulated").starts()
    until = whole.filter(pl.col("date") <= book.trained_until)
    bundle = replace(book.predictor.bundle, history=History.learn(until))
    for race_id in few:  # what a bundle that forgets nothing says
        told = Predictor(bundle).predict(sample_card(whole, race_id))
        assert told.model_dump(mode="json") == answers[race_id], race_id


def test_a_bundle_that_listens_to_a_language_model_says_the_same_everywhere(
    place, later, tmp_path, capsys, monkeypatch
):
    for name, value in LLM.items():
        monkeypatch.setenv(name, value)
    book = raceday.open_book(place, "challenger")
    few = later[:: len(later) // 6]
    with service(place, "challenger", **LLM) as client:
        answers = agree(place, "challenger", book, few, client, tmp_path, capsys)
    origins = {o for a in answers.values() for r in a["ranked"] for o in r["scored_by"].values()}
    assert origins == {"cache"}
    deaf = Predictor(book.predictor.bundle)
    for race_id, told in answers.items():
        alone = deaf.predict(sample_card(book.starts, race_id))
        assert ranking(alone.model_dump(mode="json")) != ranking(told), "nobody listened"


def _shares(prediction: Prediction) -> list[float]:
    return [r.win_probability for r in sorted(prediction.ranked, key=lambda r: r.runner_no)]


def test_whoever_learns_the_history_anew_says_something_else(place, book, later):
    "The equality above can fail: a page that computed on its own would know more than the bundle."
    bundle = book.predictor.bundle
    anew = Predictor(replace(bundle, history=History.learn(Store(place, "simulated").starts())))
    cards = [sample_card(book.starts, race_id) for race_id in later[-40:]]
    pairs = [(_shares(anew.predict(c)), _shares(book.predictor.predict(c))) for c in cards]
    apart = [float(np.abs(np.subtract(a, b)).max()) for a, b in pairs]
    assert np.median(apart) > 1e-5 and max(apart) > 1e-3
