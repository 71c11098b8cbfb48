"""Gates before a title, tested by known answers: what is planted is found, what is nothing stays nothing."""

import json
import shutil
import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as some
from test_together import toy

from racing_core import starts as st
from racing_core.app.main import main
from racing_core.config import home as home_of
from racing_core.data.ingest import ingest_world
from racing_core.data.store import Store
from racing_core.errors import BadInput, Tampered
from racing_core.features.matrix import build
from racing_core.fields import by_race, field_size, uniform
from racing_core.folds import Races
from racing_core.intervals import Estimate
from racing_core.lab import tracking
from racing_core.lab.ablation import quick
from racing_core.lab.backtest import backtest
from racing_core.lab.looks import looks
from racing_core.lab.teller import client_of
from racing_core.market import weight_of
from racing_core.metrics import delta_r2, race_logloss
from racing_core.odds import log_softmax
from racing_core.pipeline import recipe
from racing_core.release import bundle, gates, registry
from racing_core.release.battery import battery, planted
from racing_core.release.gates import Budget
from racing_core.release.history import history
from racing_core.release.registry import Gate
from racing_core.release.training import train
from racing_core.sequential import NOT_WORSE, UNDECIDED, confidence_sequence, standing
from racing_core.serving import examination
from racing_core.serving.examination import examine, wires_of
from racing_core.serving.unseen import gain, walked, yardstick
from racing_core.simulate import simulate

NOW = datetime(2026, 1, 1, tzinfo=UTC)
UNSEEN = 16  # race days that no bundle but the last has seen
NAMES = ["format", "hashes", "code", "size", "parity", "latency", "leaks"]
NAMES += ["tripwires", "calibration", "not worse"]
RECIPES = """
[trees]
[trees.models.lightgbm_softmax]
trees = 25
min_rows = 40
[other-trees]
[other-trees.models.lightgbm_softmax]
trees = 25
min_rows = 40
seed = 1
"""


@pytest.fixture(scope="module", autouse=True)
def small():
    "Fewer cards and races, for speed."
    with pytest.MonkeyPatch.context() as patch:
        for name, value in dict(CARDS=12, SEARCHED=200, DAYS=1).items():
            patch.setattr(examination, name, value)
        yield


@pytest.fixture(scope="module")
def starts():
    return simulate(races=460, seed=12, inefficiency=0.05).starts()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A home with a world and three bundles: `first` and its twin by another `seed` know nothing of
    the last days, `late` knows all."""
    where = home_of(tmp_path_factory.mktemp("home"), env={})
    ingest_world(simulate(races=460, seed=12, inefficiency=0.05), where)
    days = Store(where, "simulated").starts()["date"].unique().sort()
    file = where.root / "recipes.toml"
    file.write_text(RECIPES)
    for name, asked, until in (
        ("first", "trees", days[-UNSEEN - 1]),
        ("seed", "other-trees", days[-UNSEEN - 1]),
        ("late", "trees", None),
    ):
        more = dict(until=until, recipe=asked, recipes=file)
        train(where, "simulated", where.bundles / name, NOW, **more)
    return where


@pytest.fixture(scope="module")
def judged(made):
    "The first bundle, examined and champion."
    found = examine(made, made.bundles / "first", "champion", NOW)
    registry.promote(made, made.bundles / "first", "champion", NOW, found.gates, by="the test")
    return found


@pytest.fixture(scope="module")
def rows(made, judged):
    "What the first bundle said of the days that it had not seen."
    p = examination.Predictor.of(bundle.read(made.bundles / "first"), made)
    store = Store(made, "simulated").starts()
    later = store.filter(pl.col("date") > p.trained_until)
    return examination.answered(p, later, sent=False).rows


@pytest.fixture
def copy(made, judged, tmp_path):
    "A home of one's own, as it stands after the first promotion."
    shutil.copytree(made.root, tmp_path / "home", symlinks=True)
    return home_of(tmp_path / "home", env={})


# --- looked at daily


def stories(n: int, effect: float, seed: int, days: int = 200) -> tuple[np.ndarray, np.ndarray]:
    "Daily gains of a challenger: heavy tails, and days whose races go the same way."
    rng = np.random.default_rng(seed)
    races = rng.integers(6, 12, (n, days)).astype(float)
    own, shared = (rng.standard_t(3, (n, days)) for _ in range(2))
    return effect * races + 0.1 * (own * np.sqrt(races) + shared * races / 3), races


@pytest.mark.parametrize("seed", range(3))
def test_200_stories_without_a_difference_looked_at_daily_promote_wrongly_in_at_most_5_percent(
    seed,
):
    "Better where there is nothing, and not worse where it is worse by the margin."
    _, low, _ = confidence_sequence(*stories(200, 0.0, seed))
    _, edge, _ = confidence_sequence(*stories(200, -0.02, seed + 50))
    wrong = (low > 0).any(axis=1).mean(), (edge > -0.02).any(axis=1).mean()
    print(f"falsely better {wrong[0]:.1%}, falsely not worse {wrong[1]:.1%}")
    assert max(wrong) <= 0.05


def test_a_true_difference_is_found_and_the_races_that_are_missing_are_told():
    top, races = stories(200, 0.03, 9)
    _, low, _ = confidence_sequence(top, races)
    print(f"a gain of .03 a race was found in {(low > 0).any(axis=1).mean():.0%} of the stories")
    assert (low > 0).any(axis=1).mean() > 0.9
    told = standing(top[0, :12], races[0, :12], np.arange(12), 0.01)
    assert (
        told.verdict == UNDECIDED and told.races_needed and "more races are needed" in told.sentence
    )
    later = 12 + int(2 * told.races_needed)
    assert standing(top[0], races[0], np.arange(200), 0.01).low > told.low or later > 200


@given(some.integers(0, 10**6), some.integers(12, 60), some.floats(0.001, 100))
def test_the_interval_scales_turns_and_does_not_see_the_order_of_races(seed, days, scale):
    rng = np.random.default_rng(seed)
    day = np.sort(rng.integers(0, days, 5 * days))
    top, bottom = rng.normal(size=len(day)), rng.uniform(0.5, 2, len(day))
    one = standing(top, bottom, day, 0.1)
    mixed = rng.permutation(len(day))
    again = standing(top[mixed], bottom[mixed], day[mixed], 0.1)
    turned, wider = standing(-top, bottom, day, 0.1), standing(scale * top, bottom, day, 0.1)
    assert one.low <= one.value <= one.high
    assert (again.low, again.high) == pytest.approx((one.low, one.high))
    assert (turned.low, turned.high) == pytest.approx((-one.high, -one.low))
    assert wider.high == pytest.approx(scale * one.high)


# --- known answers


@pytest.fixture(scope="module")
def frames(starts):
    "The features of the world, honest and with a leak of known size put in."
    frame = build(starts)
    return frame, frame.with_columns(official_rating=planted(st.winners(starts), 0.8))


def walk(starts, frame, columns=("official_rating", "career_win_rate", "avg_position_L5")):
    "Test rows of a walk with linear models."
    since = starts["date"].unique().sort()[-UNSEEN]
    races = Races.of(starts, frame, list(columns))
    late = races.dates >= np.datetime64(since)
    tune = ~late & (races.dates >= np.datetime64(since - timedelta(60)))
    fitted = quick().fit(races, ~late & ~tune, tune)
    own = races.rows(late)
    p = fitted.predict(own.X, own.odds)
    return starts.filter(late), own, p


def test_a_leak_put_back_is_found_and_its_size_is_recovered(starts, frames):
    frame, leaking = frames

    def peeking(s):
        return build(s).with_columns(official_rating=planted(st.winners(s), 0.8))

    columns = ["official_rating", "career_win_rate"]
    found = battery(peeking, starts, columns)
    assert found.shuffled == ["official_rating"] == [found.loudest] and found.screen_z > 5
    gate = gates.leaks(found)
    assert not gate.passed and "official_rating saw a result" in gate.said
    assert gates.leaks(battery(build, starts, columns)).passed

    test, own, p = walk(starts, frame)
    _, _, q = walk(starts, leaking)
    x = leaking.filter(frame["date"] >= test["date"].min())["official_rating"].to_numpy()
    win, race, day = own.y.win, own.race, test["date"].to_numpy()
    base = np.log(p["fundamental"])
    size = weight_of(x, win, race, day, base)
    assert size.low < 0.8 < size.high, "its weight beside the honest model"
    worth = delta_r2(np.exp(log_softmax(base + 0.8 * x, race)), p["fundamental"], win, race, day)
    measured = delta_r2(q["fundamental"], p["fundamental"], win, race, day)
    print(f"a leak worth {worth.value:.3f} of R² was measured as {measured}")
    assert measured.low < worth.value < measured.high and measured.low > 0


def test_shuffled_results_are_worth_nothing(starts):
    mixed = starts.with_columns(
        pl.col("status", "position", "margin_lengths", "time_s").shuffle(3).over("race_id")
    )
    test, own, p = walk(mixed, build(mixed))
    rows = test.select("race_id", "runner_no", "date").with_columns(win=own.y.win)
    mine = rows.with_columns(p=p["fundamental"])
    found = gain(mine, rows.with_columns(p=uniform(own.race)), 0.002)
    assert found.low <= 0, found.sentence
    assert not weight_of(np.log(p["market"]), own.y.win, own.race, test["date"].to_numpy()).low > 0


def test_the_same_recipe_with_another_seed_is_not_better(made, judged):
    found = examine(made, made.bundles / "seed", "champion", NOW)
    gate = found["not worse"]
    told = gate.evidence["standing"]
    assert told["verdict"] in (NOT_WORSE, UNDECIDED) and gate.low <= 0 <= gate.high
    assert told["days"] == UNSEEN and gate.evidence["champion"] == judged.version
    assert gate.figure != 0, "two bundles were compared"
    if told["verdict"] == UNDECIDED:
        assert not gate.passed and "more races are needed" in gate.said
        assert registry.blocking(found.gates, "challenger") == []


# --- each gate is shut where its subject is broken


def test_an_honest_first_bundle_passes_every_gate(judged, made):
    assert [g.name for g in judged.gates] == NAMES and judged.shut == []
    assert "the market" in judged["not worse"].said and "unseen races" in judged["not worse"].said
    entry = registry.aliases(made)["log"][-1]
    assert [g["name"] for g in entry["gates"]] == NAMES and "forced" not in entry
    kept = registry.evidence_file(made, judged.version, entry["evidence"])
    told = {g["name"]: g["evidence"] for g in json.loads(kept.read_text())}
    assert told["latency"]["cards"] == 12 and told["leaks"]["features"] == 120
    assert told["hashes"]["manifest"] == entry["manifest"]


def test_races_that_a_gate_has_seen_are_in_the_ledger_of_looks(judged, made):
    trained = bundle.read(made.bundles / judged.version).manifest
    seen = [e for e in looks(made, "simulated") if e.purpose == "gate"]
    assert (
        seen and seen[0].first > trained["trained_until"] and seen[0].run == trained["made"]["run"]
    )


def shut(where, folder, **more) -> list[str]:
    return [g.name for g in examine(where, folder, "champion", NOW, **more).shut]


def test_a_changed_file_shuts_the_hashes_and_no_reason_opens_them(copy, capsys):
    folder = copy.bundles / "first"
    (folder / "names.parquet").write_bytes(b"")
    assert shut(copy, folder) == ["hashes"]
    argv = ["promote", str(folder), "--to", "champion", "--force", "please"]
    assert main(["--home", str(copy.root), *argv]) == 4
    assert "names.parquet" in capsys.readouterr().err
    (folder / "manifest.json").write_text("{}")
    assert shut(copy, folder) == ["format"]


def test_other_code_shuts_the_code_and_no_reason_opens_it(copy):
    folder = copy.bundles / "first"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["code"]["answer"]["pipeline"] = "0" * 16
    (folder / "manifest.json").write_text(json.dumps(bundle.sealed(manifest)))
    assert shut(copy, folder) == ["code"]
    found = examine(copy, folder, "champion", NOW)
    with pytest.raises(BadInput, match="changed since: pipeline"):
        registry.promote(copy, folder, "champion", NOW, found.gates, force="please")


def test_a_budget_of_nothing_shuts_latency_and_size(copy):
    found = examine(copy, copy.bundles / "first", "challenger", NOW, budget=Budget(0, 0))
    assert [g.name for g in found.shut] == ["size", "latency"]
    assert found.figures["latency_p50_ms"]["value"] <= found.figures["latency_p99_ms"]["value"]


def test_cards_that_are_read_otherwise_shut_the_parity(copy, monkeypatch):
    from racing_core.serving import predictor

    honest = predictor.compute

    def torn(runners, *rest):
        return honest(runners.with_columns(draw=pl.lit(None, pl.Int16)), *rest)

    monkeypatch.setattr(predictor, "compute", torn)
    found = examine(copy, copy.bundles / "first", "challenger", NOW)
    assert "parity" in [g.name for g in found.shut] and "draw" in found["parity"].said


def test_answers_that_are_too_sure_shut_the_calibration(rows):
    race, day = st.race_codes(rows), rows["date"].to_numpy()
    p, win = rows["p"].to_numpy(), rows["win"].to_numpy()
    slope = weight_of(3 * np.log(p), win, race, day)
    assert not gates.calibration(slope, 0.01, 400, "").passed
    assert not gates.calibration(Estimate(1.0, 0.9, 1.1), 0.06, 400, "").passed
    assert not gates.calibration(Estimate(1.0, 0.9, 1.1), 0.01, 20, "").passed
    assert gates.calibration(weight_of(np.log(p), win, race, day), 0.01, 400, "").passed


def test_answers_that_know_the_winner_trip_the_wires(rows):
    alarms = dict(screen_z=0.0, price_correlation=0.0)
    assert gates.tripwires(wires_of(rows, alarms), True, "").passed
    known = 0.6 * rows["win"] + 0.4 * rows["p"]
    leaking = wires_of(rows.with_columns(blend=known), alarms)
    gate = gates.tripwires(leaking, True, "")
    assert not gate.passed and "beyond_oracle" in gate.said
    real = wires_of(rows.with_columns(blend=known, true_p=pl.lit(None, pl.Float64)), alarms)
    assert "delta_r2" in gates.tripwires(real, False, "").said


def test_a_worse_bundle_stays_outside_by_what_it_is_worse(rows):
    worse = rows.with_columns(p=0.5 * pl.col("p") + 0.5 / pl.len().over("race_id"))
    found = gain(worse, rows, 0.002)
    win, race = rows["win"].to_numpy(), st.race_codes(rows)
    lost = [race_logloss(r["p"].to_numpy(), win, race) for r in (rows, worse)]
    assert found.value == pytest.approx((lost[0] - lost[1]).sum() / np.log(field_size(race)).sum())
    gate = gates.not_worse(found, "the champion", "", "v", 0.002)
    assert not gate.passed and gate.figure < 0
    assert found.days == len(np.unique(by_race(rows["date"].to_numpy(), race)))
    some_races = rows.filter(pl.col("race_id") != rows["race_id"][0])
    assert gain(some_races, rows, 0.002).races == found.races - 1
    assert yardstick(rows.drop("market"))[0] == "the field size"


def test_a_bundle_that_has_seen_all_races_needs_the_backtest_of_its_recipe(copy, starts):
    late = copy.bundles / "late"
    found = examine(copy, late, "champion", NOW)
    assert [g.name for g in found.shut] == ["not worse"]
    assert "no evidence" in found["not worse"].said and found["not worse"].evidence["needed"] > 0
    assert not examine(copy, late, "challenger", NOW).shut
    manifest = bundle.manifest_of(late)
    assert walked(copy, manifest) is None
    file = copy.root / "recipes.toml"
    stored, since = Store(copy, "simulated").starts(), starts["date"].unique().sort()[-UNSEEN]
    asked = dict(recipe="trees", test_from=str(since))
    with tracking.tracked(copy, "backtest", "simulated", asked) as run:
        done = backtest(stored, since, make=lambda: recipe("trees", file))
        done.predictions.write_parquet(run.folder / "predictions.parquet")
    assert walked(copy, manifest).run == run.id
    found = examine(copy, late, "champion", NOW)
    assert found.shut == [] and run.id in found["not worse"].said
    assert found["not worse"].figure == 0, "champion and challenger are of one recipe"
    odd = manifest | dict(code=dict(features=dict.fromkeys(manifest["code"]["features"], "x")))
    assert walked(copy, odd) is None, "other code foresaw other races"


def test_without_stored_races_nothing_is_believed(copy):
    shutil.rmtree(copy.store)
    found = examine(copy, copy.bundles / "first", "challenger", NOW)
    assert [g.name for g in found.shut] == ["parity", "latency", "leaks"]


# --- the command, the ledger and what follows it


def ask(where, *argv, code=0, capsys=None) -> dict:
    assert main(["--home", str(where.root), *map(str, argv), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_shut_gate_refuses_by_name_and_a_reason_is_recorded(copy, capsys, monkeypatch):
    run = bundle.manifest_of(copy.bundles / "seed")["made"]["run"]
    monkeypatch.setenv("RACING_GATE_SIZE_MB", "0.001")
    assert registry.locate(copy, run[:6]) == tracking.find(copy, run).folder / "bundle"
    told = ask(copy, "promote", run, "--to", "challenger", code=2, capsys=capsys)
    assert "(size)" in told["what"] and "0.001 MB" in told["got"] and "--force" in told["do"]
    assert registry.aliases(copy)["challenger"] is None
    assert ask(copy, "promote", run, "--to", "challenger", "--force", " ", code=2, capsys=capsys)
    asked = ("promote", run, "--to", "challenger", "--force", "a test has no disk")
    done = ask(copy, *asked, capsys=capsys)
    assert done["challenger"] == bundle.manifest_of(copy.bundles / "seed")["version"]
    assert done["change"]["forced"] == "a test has no disk" and len(done["gates"]) == len(NAMES)
    assert {"size_mb", "latency_p95_ms"} <= {*tracking.find(copy, run).figures}
    told = ask(copy, "history", capsys=capsys)
    first, last = told["changes"]
    assert first["judged"] == f"{len(NAMES)} gates open" and first["by"] == "the test"
    assert last["run"] == run and "forced: a test has no disk" in last["judged"]
    then = ask(copy, "history", "--at", "2026-01-01T00:00", capsys=capsys)["holders"]
    assert then["champion"]["version"] == first["version"] and then["challenger"] is None
    assert not any(ask(copy, "history", "--at", "2025-12-31", capsys=capsys)["holders"].values())
    ask(copy, "history", "--at", "yesterday", code=2, capsys=capsys)

    client = client_of(copy)
    versions = {v.version: v for v in client.search_model_versions("name='simulated'")}
    held = client.get_registered_model("simulated").aliases
    names = {t: versions[v].tags["racing.version"] for t, v in held.items()}
    assert names == dict(champion=first["version"], challenger=last["version"])
    heard, _ = tracking.mirrored(copy, tracking.find(copy, run))
    assert versions[held["challenger"]].run_id == heard
    assert versions[held["challenger"]].source.endswith(f"{heard}/artifacts/bundle")
    assert registry.mirror_titles(copy) == [], "asking twice changes nothing"
    client.delete_registered_model_alias("simulated", "champion")
    assert registry.mirror_titles(copy) == [f"champion of simulated is {first['version']}"]


def test_a_store_that_is_away_costs_nobody_a_title(copy, monkeypatch):
    lost = home_of(copy.root, env={"RACING_TRACKING_URI": "http://127.0.0.1:9"})
    with pytest.warns(UserWarning, match="MLflow does not show it"):
        registry.follow(lost)


def test_a_changed_ledger_is_told_by_the_history(copy, capsys):
    file = copy.bundles / "aliases.json"
    file.write_text(file.read_text().replace('"passed": true', '"passed": false', 1))
    assert "damaged" in ask(copy, "history", code=4, capsys=capsys)["what"]


def test_evidence_and_bundles_that_are_gone_are_told_beside_their_entry(copy):
    (change,) = history(copy)
    assert change.trouble == "" and change.gates == len(NAMES) and change.failed == ()
    (copy.bundles / change.evidence).unlink()
    shutil.rmtree(copy.bundles / change.version)
    (change,) = history(copy)
    assert "evidence: missing" in change.trouble and "bundle: no bundle there" in change.trouble


def test_of_many_who_ask_at_once_one_beats_the_champion_that_all_were_held_against(tmp_path):
    where, told = home_of(tmp_path / "home", env={}), []
    for i in range(6):
        toy(tmp_path / f"v{i}", f"v{i}")
    against = [Gate("not worse", True, evidence=dict(champion=None))]

    def ask_for(i: int) -> None:
        try:
            registry.promote(where, tmp_path / f"v{i}", "champion", NOW, against)
        except BadInput as e:
            told.append(e.what)

    threads = [threading.Thread(target=ask_for, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(registry.aliases(where)["log"]) == 1
    assert told == ["the champion has changed during the examination"] * 5


def test_evidence_of_another_bundle_is_no_evidence(copy, judged):
    with pytest.raises(Tampered, match="not the bundle that was examined"):
        registry.promote(copy, copy.bundles / "seed", "challenger", NOW, judged.gates)
