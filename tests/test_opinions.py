"""A language model's scores, from the first question to the answer of a card: asked ahead, never waited for."""

import json
import os
from dataclasses import asdict, replace
from datetime import UTC, date, datetime
from pathlib import Path
from unittest.mock import patch

import numpy as np
import polars as pl
import pytest
from test_cli import answer, racing
from test_llm import fast, service  # noqa: F401  (fixtures)

from racing_core.app.mainjob import next_week
from racing_core.config import home as home_of
from racing_core.data.base import Parsed, Quarantine
from racing_core.data.ingest import ingest_world
from racing_core.data.store import Store, write
from racing_core.errors import BadInput
from racing_core.features.matrix import History, compute
from racing_core.features.registry import _KNOWN, Timeline, feature, memory
from racing_core.memo import open_cache
from racing_core.models.linear import ConditionalLogit
from racing_core.pipeline import Pipeline
from racing_core.release.bundle import read
from racing_core.release.training import train
from racing_core.semantic.opinions import Opinions, _who, account, matrix_of, scorer_of, with_scores
from racing_core.semantic.scorer import Score
from racing_core.serving.contract import card_frame
from racing_core.serving.predictor import Predictor
from racing_core.simulate import simulate

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    "A home with a small world."
    place = home_of(tmp_path_factory.mktemp("opinions"), env={})
    ingest_world(simulate(races=900, seed=77), place)
    return place


@pytest.fixture(scope="module")
def starts(house) -> pl.DataFrame:
    return Store(house, "simulated").starts()


@pytest.fixture
def opinions(house, fast) -> Opinions:  # noqa: F811
    return Opinions(open_cache(house, env={}), replace(fast, cutoff=date(2000, 1, 1)))


def small() -> Pipeline:
    return Pipeline(
        {"conditional_logit": ConditionalLogit()}, {"conditional_logit": ConditionalLogit(l2=5000)}
    )


def fill(opinions: Opinions, starts: pl.DataFrame) -> None:
    "Answers about everybody who ever ran, as if they had been asked for."
    for day in starts.partition_by("date"):
        for s in _who(day):
            opinions.cache.put(
                s.day_key(opinions.settings),
                asdict(Score((hash(s.id) % 97) / 97, 0.0, 0.5, "", "model")),
            )


@pytest.fixture(scope="module")
def listening(house, starts, tmp_path_factory):
    "A bundle trained on a model's scores, and the settings of that model."
    from racing_core.semantic.scorer import Settings

    told = Opinions(
        open_cache(house, env={}), Settings(model="listened-to", cutoff=date(2000, 1, 1))
    )
    fill(told, starts)
    folder = tmp_path_factory.mktemp("bundle") / "b"
    train(house, "simulated", folder, NOW, make=small, scorer="model", opinions=told)
    return read(folder), told


def test_questions_are_asked_once_and_the_answers_reach_the_matrix(opinions, service, starts):  # noqa: F811
    last = starts.filter(pl.col("date") == starts["date"].max())
    first = opinions.ask(starts, last, NOW)
    asked = len(service.asked)
    assert first["model"] == asked > 20 and first["fallback"] == 0 and first["spent_usd"] > 0
    assert (
        opinions.ask(starts, last, NOW) | dict(spent_usd=0)
        == first | dict(model=0, cache=asked, spent_usd=0)
        and len(service.asked) == asked
    )
    frame = compute(last, History.learn(starts))
    told = with_scores(last, frame, opinions)
    assert (
        set(told["jockey_origin"]) == {"cache"}
        and told["grok4_jockey_form_score"].to_list() != frame["grok4_jockey_form_score"].to_list()
    )
    plain = with_scores(
        last, frame, replace(opinions, settings=replace(opinions.settings, anonymise=True))
    )
    assert set(plain["jockey_origin"]) == {"fallback"}, (
        "answers to named questions are no answers to anonymous ones"
    )


def test_anonymous_questions_hold_no_name_and_no_date(opinions, service, starts):  # noqa: F811
    last = starts.filter(pl.col("date") == starts["date"].unique().sort()[-2])
    hidden = replace(opinions, settings=replace(opinions.settings, anonymise=True))
    hidden.ask(starts, last, NOW)
    sent = json.dumps(service.asked)
    assert service.asked and str(last["date"][0]) not in sent
    assert not [
        n
        for c in ("horse_name", "jockey_name", "trainer_name")
        for n in last[c].drop_nulls()
        if f'"{n}"' in sent or f"\\{n}" in sent
    ]


def test_a_bundle_that_listens_reads_the_cache_and_its_student_for_the_rest(listening, starts):
    bundle, told = listening
    assert (
        bundle.manifest["scores"]["scorer"] == "model"
        and bundle.manifest["scores"]["model"] == "listened-to"
    )
    card = next_week(starts)
    predictor = Predictor(bundle, told)
    before = predictor.predict(card, "fundamental")
    assert {b for r in before.ranked for b in r.scored_by.values()} <= {
        "student",
        "fallback",
    } and "student" in before.ranked[0].scored_by.values()
    runners, _ = card_frame(card, "simulated")
    fill(told, runners)
    after = predictor.predict(card, "fundamental")
    assert {b for r in after.ranked for b in r.scored_by.values()} == {"cache"}
    assert [r.win_probability for r in after.ranked] != [r.win_probability for r in before.ranked]


def test_a_bundle_of_the_fallback_listens_to_nobody(house, starts, listening, tmp_path):
    train(house, "simulated", tmp_path / "b", NOW, make=small)
    bundle, card = read(tmp_path / "b"), next_week(starts)
    assert bundle.manifest["scores"]["scorer"] == "fallback" and set(bundle.student.lessons) == {
        "jockey",
        "trainer",
    }
    fill(listening[1], card_frame(card, "simulated")[0])
    told, alone = Predictor(bundle, listening[1]).predict(card), Predictor(bundle).predict(card)
    assert told == alone and {b for r in told.ranked for b in r.scored_by.values()} == {"fallback"}
    other = Predictor(
        listening[0],
        replace(listening[1], settings=replace(listening[1].settings, model="another")),
    ).predict(card)
    assert {b for r in other.ranked for b in r.scored_by.values()} == {"fallback"}, (
        "another model is another scorer"
    )


def test_a_bundle_of_the_old_word_still_listens(listening, starts):
    "Manifests written before the word was scorer say mind."
    bundle, told = listening
    old = {k: v for k, v in bundle.manifest["scores"].items() if k != "scorer"} | {"mind": "model"}
    earlier = replace(bundle, manifest=bundle.manifest | {"scores": old})
    assert scorer_of(old) == scorer_of(bundle.manifest["scores"]) == "model"
    assert scorer_of({}) == "fallback"
    card = next_week(starts)
    assert Predictor(earlier, told).predict(card) == Predictor(bundle, told).predict(card)


def test_a_prediction_waits_for_nobody_and_a_later_one_knows(listening, starts, service, fast):  # noqa: F811
    bundle, told = listening
    slow = replace(told, settings=replace(fast, model="listened-to", cutoff=date(2000, 1, 1)))
    service.mode = "slow"
    card = next_week(starts).model_copy(update=dict(date=date(2031, 1, 1)))
    predictor = Predictor(bundle, slow)
    predictor.predict(card)
    assert predictor.ask_later(card, NOW)
    assert not predictor.ask_later(card, NOW), "one card at a time"
    answer = predictor.predict(card)
    assert service.answered == 0, "the service answers nobody before it is let go"
    assert "cache" not in answer.ranked[0].scored_by.values()
    service.go.set()
    with slow._busy:
        assert "cache" in predictor.predict(card).ranked[0].scored_by.values()


def test_training_on_what_a_model_may_remember_is_refused_and_testing_on_it_is_labelled(
    listening, house, starts, tmp_path
):
    _, told = listening
    remembers = replace(told, settings=replace(told.settings, cutoff=date(2099, 1, 1)))
    with pytest.raises(BadInput, match="100% of the races"):
        train(
            house, "simulated", tmp_path / "b", NOW, make=small, scorer="model", opinions=remembers
        )
    frame = matrix_of(starts, scorer="model", opinions=remembers, remembered=1)
    assert "CONTAMINATED: 100%" in account(frame, remembers)["label"] and np.isclose(
        account(frame, remembers)["may_remember"], 1
    )
    half = replace(told, settings=replace(told.settings, model="half-asked"))
    fill(half, starts.filter(pl.col("date") < starts["date"].median()))
    with pytest.raises(BadInput, match="scored by a model"):
        matrix_of(starts, scorer="model", opinions=half, remembered=1)


def test_the_command_scores_a_card_and_stored_days_and_labels_the_report(
    house,
    starts,
    listening,
    service,  # noqa: F811
    tmp_path,
):
    card = tmp_path / "card.json"
    card.write_text(next_week(starts).model_dump_json(exclude_none=True))
    env = {
        "RACING_LLM_BASE_URL": service.url,
        "RACING_LLM_API_KEY": "k",
        "RACING_LLM_MODEL": "asked",
        "RACING_LLM_DAILY_BUDGET_USD": "50",
    }
    done = answer("score", card, "--source", "simulated", home=house.root, env=env)
    assert done["model"] == len(service.asked) > 10
    days = answer(
        "score",
        "--source",
        "simulated",
        "--since",
        starts["date"].max(),
        "--anonymise",
        home=house.root,
        env=env,
    )
    assert days["model"] > 10 and str(starts["date"].max()) not in json.dumps(
        service.asked[done["model"] :]
    )
    assert (
        racing(
            "score", card, "--source", "simulated", home=house.root, env={"XAI_API_KEY": ""}
        ).returncode
        == 2
    )
    last = starts["date"].unique().sort()[-25]
    asked_for = ("--test-from", last, "--scores", "model", "--families")
    seen = answer(
        "backtest",
        "--source",
        "simulated",
        *asked_for,
        home=house.root,
        env={"RACING_LLM_MODEL": "listened-to"},
    )
    assert (
        seen["scores"]["scorer"] == "model"
        and seen["scores"]["may_remember"] == 1
        and len(seen["families"]["rows"]) == 9
    )
    page = Path(seen["report"]).read_text(encoding="utf-8")
    assert "CONTAMINATED" in page and "What each family adds" in page


def test_races_to_come_are_asked_about_when_they_come_in(house, starts, service, monkeypatch):  # noqa: F811
    from racing_core.app import asking

    coming = starts.filter(pl.col("race_id") == starts["race_id"][-1])
    day = date(2040, 5, 1)
    rows = {
        t: (
            Store(house, "simulated")
            .read(t)
            .filter(race_id=coming["race_id"][0])
            .with_columns(race_id=pl.lit("cards:1"))
        )
        for t in ("races", "runners")
    }
    races, runners = rows["races"].with_columns(date=pl.lit(day)), rows["runners"]
    write(
        Store(house, "cards"),
        Parsed({"races": races, "runners": runners}, Quarantine().faults, {"source": "cards"}),
    )
    for name, value in dict(
        BASE_URL=service.url, API_KEY="k", MODEL="ahead", DAILY_BUDGET_USD="50"
    ).items():
        monkeypatch.setenv(f"RACING_LLM_{name}", value)
    monkeypatch.delenv("RACING_REDIS_URL", raising=False)
    found = asking.ask_ahead(house, "cards", "simulated", datetime(2040, 4, 30, tzinfo=UTC))
    assert found["scores"]["model"] == len(service.asked) > 10 and "career_starts" in json.dumps(
        service.asked
    ), os.environ["RACING_LLM_MODEL"]
    assert asking.ask_ahead(house, "cards", "simulated", datetime(2040, 5, 2, tzinfo=UTC)) == {}, (
        "it has been run"
    )


def test_a_later_feature_disturbs_no_bundle_that_listens(listening, starts):
    bundle, told = listening
    card = next_week(starts)
    before = Predictor(bundle, told).predict(card)
    with patch.dict(_KNOWN):

        @memory(Timeline("horse in a stall", ("horse_id", "draw")))
        def stall_runs():
            "Starts from this stall."
            return pl.lit(1.0).cum_sum()

        @feature("starts")
        def runs_from_the_stall():
            "Starts from this stall so far."
            return pl.col("stall_runs")

        assert Predictor(bundle, told).predict(card) == before
