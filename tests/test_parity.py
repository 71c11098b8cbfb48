"""Card parity: what a live card is made into is what training saw, or the difference has a name."""

import contextlib
import json
import shutil
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from test_data_http import Loopback

from racing_core.app import main as cli
from racing_core.config import Home
from racing_core.config import home as home_of
from racing_core.data import racingapi
from racing_core.data.base import Parsed, Quarantine
from racing_core.data.http import Limits, wait
from racing_core.data.ingest import ingest_world
from racing_core.data.store import Store, write
from racing_core.errors import BadInput
from racing_core.features.matrix import History
from racing_core.models.linear import ConditionalLogit
from racing_core.pipeline import Pipeline
from racing_core.release.bundle import read
from racing_core.release.training import train
from racing_core.serving.parity import facts_of, parity
from racing_core.serving.paths import LACKS, typed
from racing_core.serving.predictor import Predictor, sample_card
from racing_core.simulate import simulate

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _small() -> Pipeline:
    return Pipeline(
        {"conditional_logit": ConditionalLogit()}, {"conditional_logit": ConditionalLogit(l2=5000)}
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Home:
    home = home_of(tmp_path_factory.mktemp("home"), env={})
    ingest_world(simulate(races=300, seed=7), home)
    train(home, "simulated", home.bundles / "one", NOW, make=_small)
    return home


@pytest.fixture(scope="module")
def bundle(home):
    return read(home.bundles / "one")


@contextlib.contextmanager
def service():
    "A racecard service on a loopback port: how cards reach the adapter, and what was asked."
    with contextlib.closing(Loopback()) as server:
        env = {racingapi.USER: "somebody", racingapi.PASSWORD: "a long password"}
        env |= {racingapi.URL: server.url}

        async def ask(day: date):
            limits = Limits(per_second=1000)
            async with racingapi.client("card", "pro", env, limits=limits) as client:
                after = day + timedelta(1)
                return await racingapi.download(client, "card", "pro", day, after, day)

        def send(cards: list[dict]):
            server.routes["/v1/racecards/pro"] = dict(racecards=cards, total=len(cards))
            return wait(ask(date.fromisoformat(cards[0]["date"])))

        yield send, server.asked


@pytest.fixture(scope="module")
def found(home, bundle):
    with service() as (send, asked):
        found = parity(home, "simulated", bundle, days=3, send=send)
    assert len(asked) == found.days
    return found


def test_typed_cards_are_equal_to_the_bit_and_the_wire_lacks_only_what_it_has_no_place_for(found):
    assert found.cards == found.expected > 10 and found.days == 3 and found.runners > 100
    assert found.complaints == [] and found.features == len(found.differing) + found.equal
    facts = facts_of(found.excused)
    lost = {name for name in facts if facts[name] & {*LACKS["http"]}}
    assert {*found.differing} == {*found.excused} == lost and "humidity_pct" in lost
    assert all(why.startswith("http has no place for") for why in found.excused.values())
    assert "typed" not in "".join(found.reasons.values())


def _nudged(history: History, column: str) -> History:
    "One remembered column, a bit away."
    tables = dict(history.tables)
    name = next(n for n, t in tables.items() if column in t.columns)
    off = pl.col(column).map_batches(
        lambda s: pl.Series(np.nextafter(s.to_numpy(), np.inf)), return_dtype=pl.Float64
    )
    return History(tables | {name: tables[name].with_columns(off)})


def test_a_feature_that_is_one_bit_away_on_the_card_path_is_named(home, bundle):
    broken = replace(bundle, history=_nudged(bundle.history, "jockey_win_rate"))
    found = parity(home, "simulated", broken, days=1)
    assert found.differing["jockey_win_rate"] == found.expected
    assert [c for c in found.complaints if c.startswith("jockey_win_rate differs on")]
    assert found.reasons["jockey_win_rate"] == "http, from equal facts; typed, from equal facts"
    assert {c.split()[0] for c in found.complaints} <= {
        *(n for n, f in facts_of(bundle.pipeline.columns).items() if "jockey_id" in f)
    }


@pytest.fixture(scope="module")
def later(home, tmp_path_factory):
    "The same home with two more race days: on the last, nobody's weight is known and all else is new."
    place = home_of(shutil.copytree(home.root, tmp_path_factory.mktemp("later") / "home"), env={})
    store = Store(place, "simulated")
    last = store.read("races")["date"].max()
    tables = {t: store.read(t, since=last) for t in ("races", "runners", "results", "prices")}
    for n in (1, 2):
        days = {t: _again(df, n) for t, df in tables.items()}
        if n == 2:
            weight = pl.lit(None, pl.Float64).alias("weight_kg")
            days["runners"] = days["runners"].with_columns(weight)
            days["races"] = days["races"].with_columns(course=pl.lit("Newtown"))
        write(store, Parsed(days, Quarantine().faults, {"source": "simulated"}), NOW)
    return place


def _again(df: pl.DataFrame, n: int) -> pl.DataFrame:
    "The same rows n weeks later."
    df = df.with_columns(race_id=pl.col("race_id") + f"-{n}")
    if "date" not in df.columns:
        return df
    return df.with_columns(
        pl.col("date").dt.offset_by(f"{7 * n}d"), pl.col("off_utc").dt.offset_by(f"{7 * n}d")
    )


def test_what_is_blank_on_whole_cards_and_was_not_in_training_is_a_complaint(later, bundle):
    found = parity(later, "simulated", bundle, days=1)
    blank = {n for n, f in facts_of(bundle.pipeline.columns).items() if "weight_kg" in f}
    assert {"weight_relative", "weight_x_distance"} & blank <= {*found.empty}
    assert any("weight_x_distance is unknown for all" in c for c in found.complaints)
    assert not set(found.excused) & blank


def test_a_bundle_older_than_the_days_between_and_a_new_category_are_told(later, bundle):
    found = parity(later, "simulated", bundle, days=1)
    assert found.stale_days == 1 and found.unseen == {"course": ["Newtown"]}
    assert "career_starts" in found.outdated and "career_starts" not in found.differing
    assert [n for n in found.notes if n.startswith("stale: 1 stored race days")]
    assert "course never seen in training: Newtown" in found.notes


def test_a_race_that_no_card_can_hold_is_counted_and_said(home, bundle, tmp_path):
    place = home_of(shutil.copytree(home.root, tmp_path / "home"), env={})
    store = Store(place, "simulated")
    last = store.read("races")["date"].max()
    tables = {t: store.read(t, since=last) for t in ("races", "runners", "results", "prices")}
    tables["runners"] = tables["runners"].with_columns(
        sex=pl.when(pl.col("race_id") == tables["races"]["race_id"][0])
        .then(pl.lit("unicorn"))
        .otherwise("sex")
    )
    write(store, Parsed(tables, Quarantine().faults, {"source": "simulated"}), NOW)
    found = parity(place, "simulated", bundle, days=1)
    assert found.cards == found.expected - 1
    assert found.complaints[0].startswith(f"{found.cards} of {found.expected} cards were built")
    assert "sex" in found.complaints[0]


def test_days_that_the_bundle_has_forgotten_and_other_sources_are_refused(home, bundle):
    late = bundle.manifest | dict(remembers_from=bundle.manifest["trained_until"])
    with pytest.raises(BadInput, match="does not remember that far back"):
        parity(home, "simulated", replace(bundle, manifest=late), days=3)
    with pytest.raises(BadInput, match="another source"):
        parity(home, "elsewhere", bundle, days=3)


def test_a_typed_card_carries_all_that_the_features_read(home, bundle):
    "Whatever a feature reads, the typed form has a column for."
    starts = Store(home, "simulated").starts()
    day = starts.filter(pl.col("date") == starts["date"].max())
    cards = typed(day, Store(home, "simulated").read("runners").clear())
    assert all(c.humidity_pct is not None and c.sky for c in cards.values())


def test_the_command_counts_and_ends_with_1_where_a_feature_differs(home, later, capsys):
    argv = ["parity", "--bundle", str(home.bundles / "one"), "--days", "1", "--json"]
    assert cli.main(["--home", str(home.root), *argv]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [c["complaint"] for c in told["counts"]] == [None, None] and told["complaints"] == []
    assert cli.main(["--home", str(later.root), *argv]) == 1
    said = capsys.readouterr()
    assert "features that no path changes" in said.err
    assert json.loads(said.out)["counts"][1]["complaint"]


def test_every_answer_to_a_card_says_how_many_known_results_the_bundle_has_not_seen(
    later, home, bundle, tmp_path, capsys
):
    starts = Store(later, "simulated").starts()
    card = sample_card(starts, starts["race_id"][-1])
    said = Predictor.of(bundle, later).predict(card).warnings
    assert [w for w in said if "results of 1 race day between training" in w]
    told = Predictor.of(bundle, home).predict(card).warnings
    assert not [w for w in told if "between training" in w]
    file = tmp_path / "card.json"
    file.write_text(card.model_dump_json(exclude_none=True), encoding="utf-8")
    argv = ["--home", str(later.root), "predict", str(file), "--bundle", str(home.bundles / "one")]
    assert cli.main(argv) == 0
    assert "stale: results of 1 race day" in capsys.readouterr().out
