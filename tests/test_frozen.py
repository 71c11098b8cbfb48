"""Frozen forecasts: written before the off, never changed, and alone in the count."""

import json
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from racing_core.app import main as cli
from racing_core.config import Home
from racing_core.config import home as home_of
from racing_core.data.base import Parsed, Quarantine
from racing_core.data.ingest import ingest_world
from racing_core.data.store import Store, write
from racing_core.errors import BadInput, Tampered
from racing_core.models.linear import ConditionalLogit
from racing_core.pipeline import Pipeline
from racing_core.release.bundle import read
from racing_core.release.registry import promote
from racing_core.release.training import train
from racing_core.serving.bets import Terms
from racing_core.serving.contract import Card
from racing_core.serving.frozen import chained, entries, freeze, ledger, verified
from racing_core.serving.predictor import Predictor, sample_card
from racing_core.serving.scored import score
from racing_core.simulate import simulate

TRAINED = datetime(2026, 1, 1, tzinfo=UTC)
ANY = Terms(bankroll=1000, minimum_edge=0.0, strategy="flat")


# --- the chain

_texts = st.text(max_size=8)
_written = st.lists(
    st.dictionaries(_texts.filter(lambda k: k not in ("n", "before", "hash")), _texts, max_size=3),
    min_size=1,
    max_size=6,
)


def _log(said: list[dict]) -> list[str]:
    log: list[dict] = []
    for entry in said:
        log.append(chained(log, entry))
    return [json.dumps(e) for e in log]


@given(_written, st.data())
def test_whatever_is_changed_in_a_chain_is_found_and_named(said, data):
    lines = _log(said)
    assert [json.loads(line) for line in lines] == verified(lines)
    at = data.draw(st.integers(0, len(lines) - 1))
    entry = json.loads(lines[at])
    field = data.draw(st.sampled_from(sorted(entry)))
    changed = {"n": entry["n"] + 1}.get(field, f"{entry[field]}x")
    kinds = {"changed": [*lines[:at], json.dumps(entry | {field: changed}), *lines[at + 1 :]]}
    kinds["twice"] = [*lines[: at + 1], *lines[at:]]
    kinds["torn"] = [*lines[:at], lines[at][:-2], *lines[at + 1 :]]
    if at < len(lines) - 1:
        kinds["gone"] = [*lines[:at], *lines[at + 1 :]]
    for kind, spoilt in kinds.items():
        with pytest.raises(Tampered) as e:
            verified(spoilt)
        assert e.value.where == f"ledger, entry {at + (kind == 'twice')}", kind


# --- a world whose last days are still to come


def _pipeline() -> Pipeline:
    return Pipeline(
        {"conditional_logit": ConditionalLogit()}, {"conditional_logit": ConditionalLogit(l2=5000)}
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A home that knows everything, with a champion that does not."
    home = home_of(tmp_path_factory.mktemp("whole"), env={})
    world = simulate(races=300, seed=4, start=date(2040, 1, 1), inefficiency=0.3, takeout=0.02)
    ingest_world(world, home)
    days = Store(home, "simulated").read("races")["date"].unique().sort()
    how = dict(until=days[-5], make=_pipeline, as_of="morning")
    train(home, "simulated", home.bundles / "one", TRAINED, **how)
    return home, days[-4:].to_list()


@pytest.fixture(scope="module")
def predictor(whole):
    return Predictor.of(read(whole[0].bundles / "one"), whole[0])


@pytest.fixture(scope="module")
def starts(whole):
    return Store(whole[0], "simulated").starts(as_of="morning")


TABLES = ("races", "runners", "results", "prices", "weather")


def _store(home: Home, tables: dict) -> None:
    write(Store(home, "simulated"), Parsed(tables, Quarantine().faults, {"source": "simulated"}))


@pytest.fixture
def home(whole, tmp_path):
    "A home with all cards and only the results of the past."
    place = home_of(tmp_path / "home", env={})
    store, first = Store(whole[0], "simulated"), whole[1][0]
    _store(place, {t: store.read(t, until=first) for t in TABLES})
    _store(place, {t: store.read(t, since=first) for t in ("races", "runners")})
    return place


def _run(home: Home, whole, change=lambda tables: tables) -> None:
    "The last days are run."
    store = Store(whole[0], "simulated")
    _store(home, change({t: store.read(t, since=whole[1][0]) for t in TABLES}))


def _cards(starts: pl.DataFrame, day: date) -> list[Card]:
    own = starts.filter(pl.col("date") == day)
    return [sample_card(starts, r) for r in own["race_id"].unique(maintain_order=True)]


def _eve(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(hours=15)


@pytest.fixture
def frozen(home, predictor, starts, whole):
    "All races of the last days, frozen on their eves."
    made = [freeze(home, _cards(starts, d), predictor, ANY, _eve(d)) for d in whole[1]]
    assert [m.begun for m in made] == [True, False, False, False]
    assert len({m.series for m in made}) == 1
    return made[0].series


def test_a_forecast_after_the_off_is_refused(home, predictor, starts, whole):
    card = _cards(starts, whole[1][0])[0]
    off = Store(home, "simulated").read("races", since=card.date)["off_utc"].min()
    early = dict(off=off - timedelta(hours=1))
    for now, more in ((off, {}), (off + timedelta(days=3), {}), (off, early)):
        with pytest.raises(BadInput, match="frozen before the off"):
            freeze(home, [card], predictor, ANY, now, **more)
    assert not (home.root / "frozen").exists() or not list((home.root / "frozen").glob("*.jsonl"))
    done = freeze(home, [card], predictor, ANY, off - timedelta(seconds=1))
    assert done.entries[0]["off"] == off.isoformat(timespec="seconds")


def test_a_race_whose_result_is_stored_is_refused_whatever_the_clock(
    home, predictor, starts, whole
):
    _run(home, whole)
    card = _cards(starts, whole[1][0])[0]
    with pytest.raises(BadInput, match="result is stored"):
        freeze(home, [card], predictor, ANY, datetime(2030, 1, 1, tzinfo=UTC))


def test_where_nobody_knows_the_off_only_another_day_is_frozen(home, predictor, starts, whole):
    card = _cards(starts, whole[1][0])[0].model_copy(update=dict(course="Elsewhere"))
    noon = datetime(card.date.year, card.date.month, card.date.day, 12, tzinfo=UTC)
    with pytest.raises(BadInput, match="nobody knows the off"):
        freeze(home, [card], predictor, ANY, noon)
    with pytest.raises(BadInput, match="time of nowhere"):
        freeze(home, [card], predictor, ANY, noon, off=datetime(2040, 1, 1, 14))
    assert freeze(home, [card], predictor, ANY, noon, off=noon + timedelta(hours=1)).begun


def test_a_race_is_frozen_once_and_the_first_counts(home, predictor, starts, whole, frozen):
    day = whole[1][-1]
    card = _cards(starts, day)[0]
    with pytest.raises(BadInput, match="frozen already"):
        freeze(home, [card], predictor, ANY, _eve(day))
    with pytest.raises(BadInput, match="frozen already"):
        freeze(home, [card, card], predictor, Terms(), _eve(day))
    before = score(home, frozen)
    runners = [r.model_copy(update=dict(odds=2 * r.odds)) for r in card.runners if r.odds]
    other = card.model_copy(update=dict(runners=runners))
    freeze(home, [other], predictor, ANY, _eve(day), again=True)
    _run(home, whole)
    after = score(home, frozen)
    assert after.again == 1 and after.frozen == before.frozen + 1 == after.settled + 1


def test_a_changed_rule_starts_a_series_and_says_what_changed(home, predictor, starts, whole):
    day = whole[1][0]
    card, eve = _cards(starts, day)[0], _eve(day)
    first = freeze(home, [card], predictor, ANY, eve)
    other = freeze(home, [card], predictor, Terms(bankroll=1000, minimum_edge=0.1), eve)
    assert other.begun and other.series != first.series
    assert set(other.differs) == {
        "strategy: flat is now fractional_kelly",
        "minimum_edge: 0.0 is now 0.1",
    }
    assert len(entries(home, first.series)) == 2  # the old one stays as it was


def test_a_changed_entry_is_caught_and_named(home, frozen, capsys):
    file = ledger(home, frozen)
    lines = file.read_text().splitlines()
    entry = json.loads(lines[3])
    entry["prediction"]["ranked"][0]["win_probability"] += 0.01
    file.write_text("\n".join([*lines[:3], json.dumps(entry), *lines[4:]]) + "\n")
    with pytest.raises(Tampered, match="entry 3"):
        score(home, frozen)
    assert cli.main(["--home", str(home.root), "score-frozen"]) == 4
    assert "entry 3" in capsys.readouterr().err
    file.rename(file.with_name("other.jsonl"))
    file.with_name("other.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(Tampered, match="another name"):
        score(home, "other")


def test_only_what_was_frozen_is_counted_and_settled_at_its_own_odds(
    home, whole, starts, frozen, predictor
):
    waiting = score(home, frozen)
    assert waiting.unsettled == waiting.frozen and waiting.logloss is waiting.roi is None
    _run(home, whole)
    told = score(home, frozen)
    assert (told.settled, told.unsettled, told.late, told.broken) == (told.frozen, 0, 0, {})
    rows = starts.filter(pl.col("date") >= whole[1][0]).with_columns(
        key=pl.format("{} {} {}", pl.col("date"), "course", "race_no")
    )
    won = {(k, n) for k, n, p in rows.select("key", "runner_no", "position").iter_rows() if p == 1}
    closing = {(k, n): o for k, n, o in rows.select("key", "runner_no", "final_odds").iter_rows()}
    staked, back, lost, moved = 0.0, 0.0, [], []
    for e in entries(home, frozen)[1:]:
        p = {r["runner_no"]: r["win_probability"] for r in e["prediction"]["ranked"]}
        (winner,) = [n for k, n in won if k == e["race"]]
        lost.append(-np.log(p[winner]))
        for bet in e["stakes"]:
            at = e["race"], bet["runners"][0]
            staked, back = staked + bet["stake"], back + (at in won) * bet["stake"] * bet["odds"]
            moved.append(np.log(bet["odds"] / closing[at]))
    assert told.bets == len(moved) > 20 and told.turnover == pytest.approx(staked)
    assert told.profit == pytest.approx(back - staked)
    assert told.roi.value == pytest.approx((back - staked) / staked)
    assert told.logloss == pytest.approx(np.mean(lost))
    assert told.closing.value == pytest.approx(np.mean(moved)) and told.closing.value != 0
    assert told.roi.low <= told.roi.value <= told.roi.high and told.priced == told.settled


def test_withdrawn_bets_are_void_and_late_or_broken_forecasts_do_not_count(home, whole, frozen):
    log = entries(home, frozen)[1:]
    bet = next((e, s) for e in log[3:] for s in e["stakes"])
    gone, number = bet[0]["prediction"]["race_id"], bet[1]["runners"][0]
    late, torn = (e["prediction"]["race_id"] for e in log[:2])

    def change(tables: dict) -> dict:
        race, runner = pl.col("race_id"), pl.col("runner_no")
        away = (race == gone) & (runner == number)
        status = tables["results"].schema["status"]
        off = pl.col("off_utc").dt.offset_by("-2d")
        nothing = [
            pl.when(~away).then(c).alias(c) for c in ("position", "margin_lengths", "time_s")
        ]
        status_now = pl.when(away).then(pl.lit("non_runner", status)).otherwise("status")
        return tables | dict(
            races=tables["races"].with_columns(
                pl.when(race == late).then(off).otherwise("off_utc")
            ),
            runners=tables["runners"].with_columns(
                pl.when(race == torn).then(pl.col("horse_id") + "x").otherwise("horse_id")
            ),
            results=tables["results"].with_columns(*nothing, status=status_now),
            prices=tables["prices"].filter(~away),
        )

    _run(home, whole, change)
    told = score(home, frozen)
    assert told.late == 1 and told.broken == {"another horse under a number": 1}
    won = bet[1]["stake"] > 0 and told.settled < told.frozen - 2  # the winner itself was withdrawn
    assert told.void == 1 or won
    assert told.settled + told.unsettled == told.frozen - 2


def test_the_commands_count_and_end_as_they_should(home, whole, starts, capsys, tmp_path):
    promote(home, whole[0].bundles / "one", "champion", TRAINED)
    file = tmp_path / "card.json"
    card = _cards(starts, whole[1][0])[0]
    file.write_text(card.model_dump_json(exclude_none=True), encoding="utf-8")
    argv = ["--home", str(home.root)]

    def run(*more: str) -> tuple[int, dict]:
        capsys.readouterr()
        code = cli.main([*argv, *more, "--json"])
        return code, json.loads(capsys.readouterr().out)

    code, told = run("score-frozen")
    assert code == 1 and told["counts"][0]["complaint"]
    code, told = run("freeze", str(file), "--strategy", "flat", "--minimum-edge", "0")
    assert code == 0 and told["begun"] and told["counts"][0]["actual"] == 1
    assert run("freeze", str(file), "--strategy", "flat", "--minimum-edge", "0")[0] == 2
    code, told = run("score-frozen", "--series", told["series"])
    assert code == 1 and "no settled forecasts, expected 1" in told["counts"][0]["complaint"]
    _run(home, whole)
    code, told = run("score-frozen")
    assert code == 0, told
    assert told["series"][0]["settled"] == 1
    assert cli.main([*argv, "score-frozen"]) == 0
    assert "1 frozen: 1 settled" in capsys.readouterr().out
