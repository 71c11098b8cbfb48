"""Many runs set against one, from outside: of equals nothing is claimed, and only fresh days confirm."""

import json
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from racing_core import starts as st
from racing_core.app.main import main
from racing_core.config import home
from racing_core.data.ingest import ingest_world
from racing_core.data.store import Store
from racing_core.errors import BadInput
from racing_core.lab.account import note, open_run, opened
from racing_core.lab.compare import chosen, common
from racing_core.lab.contrast import Days, contrast, holm, luck, versus
from racing_core.lab.looks import look, looks
from racing_core.lab.unseen import fresh
from racing_core.odds import implied, softmax
from racing_core.simulate import simulate

FROM, TO = date(2018, 2, 1), date(2018, 6, 15)
WISE, PLAIN = 0.8, 0.0  # shares of the truth that a run knows


def equals(seed: int, k: int = 20, days: int = 60) -> Days:
    "Forecasters that know the same, each with its own noise."
    rng = np.random.default_rng(seed)
    loss = 2 + rng.normal(size=(days, 1)) + 0.2 * rng.standard_t(4, size=(days, k))
    return Days(loss, np.full(days, 2.3), np.ones(days))


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    "A home with a small world, an experiment of five runs on a part of it, and its looks."
    place = home(tmp_path_factory.mktemp("contrast"), env={})
    ingest_world(simulate(races=600, seed=4, inefficiency=0.25), place)
    starts = Store(place, "simulated").starts()
    whole = opened(place, "experiment", "simulated", {})
    note(whole.folder, state="finished")
    for seed, share in enumerate((PLAIN, PLAIN, WISE, PLAIN)):
        run = foresee(place, starts, share, seed, parent=whole.id)
        look(place, "simulated", FROM, TO, datetime(2026, 1, 1, tzinfo=UTC), run=run.id)
    note(opened(place, "backtest", "simulated", {}, parent=whole.id).folder, state="failed")
    return place


def foresee(place, starts, share: float, seed: int, until=TO, parent=None, **more):
    "A finished run that knows a share of the truth."
    part = starts.filter(pl.col("date").is_between(FROM, until))
    race, rng = st.race_codes(part), np.random.default_rng(seed)
    market, truth = (
        np.log(implied(part["odds"].to_numpy(), race)),
        np.log(part["true_p"].to_numpy()),
    )
    p = softmax(share * truth + (1 - share) * market + rng.normal(0, 0.1, len(race)), race)
    told = part.select("race_id", "runner_no", "date", "going", "n_starters").with_columns(
        win=pl.Series(st.winners(part)),
        market=pl.Series(softmax(market, race)),
        combined=pl.Series(p),
    )
    asked = dict(share=share, seed=seed) | more
    run = opened(place, "backtest", "simulated", asked, parent=parent)
    told.write_parquet(run.folder / "predictions.parquet")
    return note(run.folder, state="finished")


def racing(capsys, *argv: str) -> tuple[int, dict]:
    code = main([*argv, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_equals_are_called_different_in_at_most_one_window_of_twenty():
    "The best of twenty against nineteen others: all pairs are counted, since the best was looked for."
    false = [(versus(equals(seed), flips=9_999).adjusted < 0.05).any() for seed in range(100)]
    pairs = [versus(equals(seed), flips=9_999) for seed in range(30)]
    naive = [(holm(np.delete(v.p, v.reference)) < 0.05).any() for v in pairs]
    assert np.mean(false) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 100)
    assert np.mean(naive) > 0.1, "to count only the pairs of the best is not enough"


def test_a_reference_that_was_named_costs_fewer_tests():
    named, found = versus(equals(1), 3), versus(equals(1))
    assert (named.tests, found.tests) == (19, 190) and named.reference == 3


def test_the_luck_of_the_best_is_seen():
    owed = np.mean([d.r2.max() - d.r2.mean() for d in map(equals, range(60))])
    low, high = np.mean([luck(equals(seed), 300)[1:] for seed in range(60)], axis=0)
    assert 0 < low < owed and abs(high / owed - 1) < 0.15


def test_the_same_run_twice_is_no_different(house):
    starts = Store(house, "simulated").starts()
    twins = [foresee(house, starts, 0.3, 7), foresee(house, starts, 0.3, 7)]
    found = contrast(twins)
    assert [tuple(r.gain) for r in found.rivals] == [(0, 0, 0)] * 2
    assert found.rivals[1].adjusted == 1 and len(found.alike) == 2 and found.differs == {}
    assert found.best.first == 0.5 and "noise" in found.verdict


def test_more_truth_wins_and_pairing_sees_it(house):
    fit, out = chosen(house, [])
    found = contrast(fit, left_out=out)
    assert found.best.name.startswith("share=0.8") and list(out.values()) == ["failed"]
    rest = found.rivals[1:]
    assert all(r.verdict == "worse" and r.adjusted < 0.05 for r in rest) and found.tests == 6
    paired = rest[0].gain.high - rest[0].gain.low
    alone = np.hypot(*(r.r2.high - r.r2.low for r in found.rivals[:2]))
    assert paired < 0.5 * alone
    assert found.best.over.low > 0 and found.best.over.value == pytest.approx(
        found.best.r2.value - _market(fit[0]), abs=1e-9
    )


def _market(run) -> float:
    from racing_core.metrics import mcfadden_r2

    rows = pl.read_parquet(run.folder / "predictions.parquet")
    return mcfadden_r2(rows["market"].to_numpy(), rows["win"].to_numpy(), st.race_codes(rows))


def test_only_races_that_all_foresaw_count(house):
    starts = Store(house, "simulated").starts()
    runs = [foresee(house, starts, 0.3, 1), foresee(house, starts, 0.3, 2)]
    file = runs[1].folder / "predictions.parquet"
    rows = pl.read_parquet(file)
    races = rows["race_id"].unique(maintain_order=True)
    gone = rows.filter(pl.col("race_id") != races[0])  # a race that it lacks, one without a
    gone = gone.filter((pl.col("race_id") != races[1]) | (pl.col("runner_no") > 1))  # starter,
    other = pl.when(pl.col("race_id") == races[2]).then(pl.col("win").reverse().over("race_id"))
    gone.with_columns(win=other.otherwise("win")).write_parquet(file)  # one with another winner
    ground = common(runs)
    assert ground.aside == [3, 2] and len(set(ground.races["race_id"])) == len(races) - 3


def test_runs_that_say_nothing_about_one_another_are_refused(house):
    starts = Store(house, "simulated").starts()
    early = foresee(house, starts, 0.3, 3, as_of="morning")
    late = foresee(house, starts, 0.3, 4, as_of="close")
    with pytest.raises(BadInput, match=f"several decision times: got 'morning: {early.id}; close"):
        contrast([early, late])
    assert contrast([early, late], across=True).as_of == "morning, close"
    with pytest.raises(BadInput, match="not among the runs"):
        contrast([early, late], against="nobody", across=True)


def test_the_window_is_later_than_all_runs_and_nobody_has_looked_at_it(house):
    found = contrast(chosen(house, [])[0])
    day = Store(house, "simulated").read("races")["date"]
    left = fresh(house, found).window
    later = day.filter(day > TO)
    assert (left.first, left.last, left.races) == (later.min(), later.max(), len(later))
    now = datetime(2026, 1, 1, tzinfo=UTC)
    look(house, "simulated", date(2018, 7, 10), date(2018, 7, 20), now, "tuning")
    cut = fresh(house, found).window
    assert cut.races < left.races and not (
        cut.first <= date(2018, 7, 20) and cut.last >= date(2018, 7, 10)
    )
    look(house, "elsewhere", TO, date(2030, 1, 1), now)
    assert fresh(house, found).window == cut, "a look at other races"


def test_the_command_tells_all_and_writes_a_page(house, capsys):
    code, told = racing(capsys, "experiment", "compare", "--home", str(house.root))
    assert code == 0 and told["best"] == told["reference"] and len(told["rivals"]) == 4
    assert told["unseen"]["window"]["races"] > 0 and told["confirmation"] is None
    page = Path(told["report"]).read_text(encoding="utf-8")
    assert "foresaw the winners best" in page and page.count("<svg") == 6 and "<script" not in page
    kept = json.loads(Path(told["report"]).with_name("result.json").read_text())
    assert kept["contrast"]["rivals"] == told["rivals"]


def test_the_command_of_two_names_what_distinguishes_them(house, capsys):
    one, other = (r.id for r in chosen(house, [])[0][1:3])
    code, told = racing(capsys, "compare", one, other, "--home", str(house.root))
    assert code == 0 and told["differs"]["share"] == [PLAIN, WISE] and told["gain"]["high"] < 0
    assert told["tests"] == 1 and told["reference"] == other


def test_without_an_experiment_or_a_day_left_it_says_what_to_do(house, tmp_path, capsys):
    code, told = racing(capsys, "experiment", "compare", "--home", str(tmp_path))
    assert code == 2 and "no experiment" in told["what"]
    starts = Store(house, "simulated").starts()
    last = starts["date"].max()
    ids = [foresee(house, starts, 0.3, seed, until=last).id for seed in (11, 12)]
    argv = ["experiment", "compare", *ids, "--confirm", "--no-page", "--home", str(house.root)]
    code, told = racing(capsys, *argv)
    assert code == 2 and told["confirmation"] is None and "keep some back" in told["unseen"]["said"]
    assert open_run(house.runs / f"backtest-simulated-{ids[0]}").state == "finished"


def test_the_ledger_of_looks_can_be_read(house, capsys):
    code, told = racing(capsys, "looks", "--source", "simulated", "--home", str(house.root))
    assert code == 0 and told["tests"] >= 4 and told["looks"][0]["from"] == str(FROM)


RECIPES = """
[strong]
about = "a linear model with a strong ridge"
combine = "average"
[strong.models.conditional_logit]
l2 = 3000

[weak]
about = "the same with hardly any"
combine = "average"
[weak.models.conditional_logit]
l2 = 3
"""


def test_the_best_is_walked_again_where_nobody_had_looked(house, tmp_path, capsys):
    (own := tmp_path / "own.toml").write_text(RECIPES, encoding="utf-8")
    starts, until = Store(house, "simulated").starts(), date(2018, 7, 20)
    asked = dict(test_from=str(FROM), test_to=str(until), as_of="close", recipes=str(own))
    pair = {
        name: foresee(house, starts, share, 5, until, recipe=name, **asked)
        for name, share in (("weak", WISE), ("strong", PLAIN))
    }
    before = len(looks(house, "simulated"))
    argv = ["experiment", "compare", *(r.id for r in pair.values()), "--confirm"]
    code, told = racing(capsys, *argv, "--home", str(house.root))
    then, window = told["confirmation"], told["unseen"]["window"]
    assert code == 0 and told["best"] == pair["weak"].id
    assert str(until) < window["first"] <= then["first"] and then["last"] <= window["last"]
    own = {r["id"]: open_run(house.runs.glob(f"*{r['id']}").__next__()) for r in then["rivals"]}
    assert {r.settings["recipe"]: r.tags["confirms"] for r in own.values()} == {
        name: run.id for name, run in pair.items()
    }
    assert own[then["reference"]].settings["recipe"] == "strong" and then["named"]
    entered = looks(house, "simulated")[before:]
    assert len(entered) == 2 and all(e.first >= window["first"] for e in entered)
    page = Path(told["report"]).read_text(encoding="utf-8")
    assert "Measured again, where nobody had looked" in page
    code, told = racing(capsys, *argv, "--no-page", "--home", str(house.root))
    assert code == 2 and "has been looked at, 2 times" in told["unseen"]["said"]
