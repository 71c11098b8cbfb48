"""The semantic family from outside: two languages, weights that know no future, card and history alike."""

import warnings
from datetime import date

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs

from racing_core.errors import BadInput
from racing_core.features import leaks, semantic
from racing_core.features.matrix import History, build, compute
from racing_core.features.registry import features
from racing_core.semantic import facts, lexicon, opinions, student
from racing_core.semantic.scorer import Score, Settings
from racing_core.simulate import simulate

NAMES = [f.name for f in features("semantic")]
SAID = [
    "slowly away, held up in rear, kept on well",
    "led, weakened final furlong",
    "hampered start, one pace",
    "tracked leaders, ran on",
    "eased",
    "出閘緩慢，勒避，其後走大外疊",
    "居中間位置，末段轉弱",
    "受擠迫，未能望空，衝刺強勁",
    "早段搶口，流鼻血",
    None,
]


@pytest.fixture(scope="module")
def starts():
    world = simulate(races=1200, seed=77).starts()
    rng = np.random.default_rng(5)
    return world.with_columns(
        comment=pl.Series([SAID[i] for i in rng.integers(0, len(SAID), len(world))]),
        gear=pl.Series(rng.choice(["none", "TT", "B/TT", "B1/TT", "B-/TT", "H"], len(world))),
    )


@pytest.fixture(scope="module")
def frame(starts):
    return build(starts)


def test_there_are_24_and_the_three_that_were_asked_for():
    assert len(NAMES) == len(set(NAMES)) == 24
    assert {
        "grok4_jockey_form_score",
        "grok4_trainer_momentum",
        "grok4_horse_fitness_assessment",
    } <= set(NAMES)
    assert all(
        f.unit and f.formula and f.reads and f.lo is not None and f.hi is not None
        for f in features("semantic")
    )


def test_every_value_is_there_and_in_its_range(frame):
    for f in features("semantic"):
        x = frame[f.name].drop_nulls()
        assert len(x) > 0 and x.is_finite().all(), f.name
        assert x.min() >= f.lo - 1e-9 and x.max() <= f.hi + 1e-9, f.name
        assert x.n_unique() > 1, f.name


@pytest.mark.parametrize(
    ("term", "chinese", "english"),
    [
        ("slow_start", "出閘笨拙", "dwelt"),
        ("hampered", "受擠迫", "squeezed for room"),
        ("wide", "走大外疊", "raced wide"),
        ("checked", "勒避", "checked"),
        ("eased", "末段收慢", "eased late on"),
        ("pulled_hard", "早段搶口", "pulled hard"),
        ("kept_on", "略為追前", "kept on"),
        ("blocked", "未能望空", "no clear run"),
        ("uncovered", "沒有遮擋", "without cover"),
        ("weakened", "轉弱", "weakened"),
        ("blood", "流鼻血", "bled"),
    ],
)
def test_both_languages_mean_the_same(term, chinese, english):
    assert lexicon.terms(pl.Series([chinese, english.upper(), "", None]))[term].to_list() == [
        True,
        True,
        False,
        None,
    ]


def test_no_cover_is_not_cover():
    assert lexicon.terms(pl.Series(["走第二疊，有遮擋", "走第二疊，沒有遮擋"]))[
        "covered"
    ].to_list() == [True, False]


@settings(max_examples=100, deadline=None)
@given(hs.lists(hs.one_of(hs.none(), hs.text(max_size=40)), max_size=8))
def test_any_text_can_be_read(comments):
    found = lexicon.terms(pl.Series(comments, dtype=pl.String))
    assert found.shape == (len(comments), len(lexicon.LEXICON))
    assert [x is None for x in found["led"]] == [c is None for c in comments]


@pytest.mark.parametrize("alarm", [leaks.truncation, leaks.scramble])
def test_no_feature_sees_the_future(alarm, starts):
    days = starts["date"].unique().sort()
    for day in (days[len(days) // 2], days[-10]):
        assert alarm(build, starts, day) == []


def test_the_alarm_rings_for_a_comment_on_the_race_itself(starts):
    def leaking(s):
        return build(s).with_columns(now=lexicon.terms(s["comment"])["weakened"].cast(pl.Float64))

    assert leaks.scramble(leaking, starts, starts["date"].unique().sort()[-10]) == ["now"]


def test_one_card_equals_the_full_build_bit_for_bit(starts, frame):
    history = History.learn(starts)
    for race_id in starts["race_id"].unique().sort().sample(20, seed=1):
        card = starts.filter(race_id=race_id).drop("comment")
        assert compute(card, history.touching(card)).equals(frame.filter(race_id=race_id))


def test_the_first_card_of_a_quarter_needs_no_race_of_that_quarter(starts, frame):
    first = starts.filter(pl.col("date").dt.quarter() != pl.col("date").shift(1).dt.quarter())[
        "date"
    ][-1]
    card = starts.filter(date=first).drop("comment")
    assert compute(card, History.learn(starts.filter(pl.col("date") < first))).equals(
        frame.filter(date=first)
    )


def test_history_survives_a_file(starts, frame, tmp_path):
    History.learn(starts).save(tmp_path)
    card = starts.filter(race_id=starts["race_id"][-1])
    assert compute(card, History.load(tmp_path)).equals(frame.filter(race_id=card["race_id"][0]))


@pytest.mark.parametrize("how", ["absent", "null"])
def test_without_comments_there_are_nulls_and_one_warning(starts, how):
    silent = (
        starts.drop("comment")
        if how == "absent"
        else starts.with_columns(comment=pl.lit(None, pl.String))
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = build(silent)
    assert [str(w.message) for w in caught] == [semantic.NO_COMMENTS]
    talk = [
        "comment_sentiment",
        "comment_value",
        "trouble_in_running_last",
        "grok4_horse_fitness_assessment",
        "finishing_effort_L3",
        "eased_last",
    ]
    assert frame.select(pl.col(talk).null_count()).row(0) == (len(frame),) * len(talk)
    assert (
        frame["grok4_jockey_form_score"].drop_nulls().len()
        and frame["gear_change"].drop_nulls().len()
    )


def test_weights_are_learnt_from_a_horse_s_own_next_start():
    "Against a plain loop: pairs of a start and the same horse's next one, of earlier quarters."
    rng = np.random.default_rng(3)
    n, horses = 3000, 150
    day = np.sort(rng.integers(0, 800, n))
    history = pl.DataFrame(
        dict(
            date=[date(2020, 1, 1)] * n,
            horse_id=rng.integers(0, horses, n).astype(str),
            performance=rng.normal(size=n),
            market_log=rng.normal(size=n),
        ),
    ).with_columns(pl.col("date") + pl.duration(days=pl.Series(day)))
    said = pl.Series([SAID[i] for i in rng.integers(0, len(SAID) - 1, n)])
    scored = lexicon.learnt_scores(history, lexicon.terms(said))["said_sentiment"]
    flags, ids = lexicon.terms(said).to_numpy().astype(float), history["horse_id"].to_list()
    quarter = (
        history.select(pl.col("date").dt.year() * 4 + pl.col("date").dt.quarter())
        .to_series()
        .to_numpy()
    )
    profile, last, before = np.zeros_like(flags), {}, np.full(n, -1)
    for i in range(n):
        past = [i, *(last.get(ids[i], []))]
        weight = 0.5 ** np.arange(len(past))
        profile[i] = weight @ flags[past] / weight.sum()
        before[i] = past[1] if len(past) > 1 else -1
        last[ids[i]] = past
    y, market = history["performance"].to_numpy(), history["market_log"].to_numpy()
    for i in (n // 2, n - 1):
        pairs = [j for j in range(n) if before[j] >= 0 and quarter[j] < quarter[i]]
        Z = np.array([[1, y[before[j]], market[before[j]], *profile[before[j]]] for j in pairs])
        penalty = np.diag([0, 1, 1, *[lexicon.RIDGE] * flags.shape[1]])
        weights = np.linalg.solve(Z.T @ Z + penalty, Z.T @ y[pairs])[3:]
        assert scored[i] == pytest.approx(profile[i] @ weights, abs=1e-5)
    assert (
        scored.filter(pl.Series(quarter == quarter[0])).null_count()
        == (quarter == quarter[0]).sum()
    )


def test_gear_is_read_with_and_without_marks():
    kit = pl.DataFrame(
        dict(
            gear=["B1/TT", "B-/TT", "none", "", None, "tp1"],
            last_gear=["TT", "B/TT", "H", "", "B", "t"],
        )
    )
    of = {
        f.name: kit.select(f.fn().alias("x"))["x"].to_list()
        for f in features("semantic")
        if f.name in ("gear_change", "gear_removed", "first_time_gear")
    }
    assert of == dict(
        gear_change=[1, 1, 1, 0, None, 2],
        gear_removed=[0, 1, 1, 0, None, 1],
        first_time_gear=[1, 0, 0, 0, None, 1],
    )


def test_a_card_becomes_questions_that_hide_names_when_asked(starts, frame):
    card = starts.filter(race_id=starts["race_id"][-1])
    rows = frame.filter(race_id=card["race_id"][0])
    name = card["horse_name"][0]
    told = starts.with_columns(
        comment=pl.when(pl.col("horse_id") == card["horse_id"][0])
        .then(pl.lit(f"{name} led"))
        .otherwise("comment")
    )
    said = facts.recent_comments(told, card)
    assert all(len(c) <= 3 for c in said.values()) and any(
        name in c for c in said[card["horse_id"][0], card["date"][0]]
    )
    hidden, open_ = (facts.subjects(card, rows, said, anonymise=a) for a in (True, False))
    assert {(s.kind, s.id) for s in hidden} == {
        (k, i) for k in facts.REPLACED for i in card[f"{k}_id"]
    }
    names = [n for c in ("horse_name", "jockey_name", "trainer_name") for n in card[c]]
    text = str([s.facts for s in hidden])
    assert (
        not any(n in text for n in names if n and len(n) > 2) and str(card["date"][0]) not in text
    )
    assert name in str([s.facts for s in open_])


def test_comments_of_the_day_and_later_are_not_among_the_facts(starts):
    card = starts.filter(date=starts["date"].unique().sort()[100])
    said = facts.recent_comments(starts.with_columns(comment=pl.col("date").cast(pl.String)), card)
    assert said and all(c < str(card["date"][0]) for cs in said.values() for c in cs)


def test_every_value_says_whose_it_is_and_mixed_scorers_are_refused(starts, frame):
    card = starts.filter(race_id=starts["race_id"][-1])
    rows = frame.filter(race_id=card["race_id"][0])
    after = Settings(cutoff=date(2000, 1, 1))
    plain = facts.overlay(card, rows, {}, after)
    assert plain.select(rows.columns).equals(rows) and set(plain["horse_origin"]) == {"fallback"}
    scores = {
        (k, i): Score(0.9, 0.1, 0.8, "", "cache") for k in facts.REPLACED for i in card[f"{k}_id"]
    }
    spoken = facts.overlay(card, rows, scores, after)
    assert set(spoken["grok4_horse_fitness_assessment"]) == {0.9} and set(
        spoken["jockey_origin"]
    ) == {"cache"}
    opinions.demand_coverage(spoken)
    remembered = [
        facts.overlay(card, rows, scores, s)
        for s in (Settings(), Settings(cutoff=date(2099, 1, 1)))
    ]
    for wrong in (plain, pl.concat([plain, spoken]), *remembered):
        with pytest.raises(BadInput):
            opinions.demand_coverage(wrong)


def test_a_student_of_the_fallback_agrees_with_it(starts, frame, tmp_path):
    some = starts["race_id"].unique().sort()[-60:]
    card, rows = (x.filter(pl.col("race_id").is_in(some.implode())) for x in (starts, frame))
    asked = facts.subjects(card, rows, facts.recent_comments(starts, card), anonymise=True)
    fallback = facts.fallbacks(card, rows)
    lessons = student.examples(asked, {}, fallback)
    pupil = student.learn(lessons)
    pupil.save(tmp_path / "student.json")
    again = student.Student.load(tmp_path / "student.json")
    horses = [(s, a) for s, a in lessons if s.kind == "horse"]
    said, thought = (
        np.array([a.score for _, a in horses]),
        np.array([again.score(s).score for s, _ in horses]),
    )
    assert set(pupil.lessons) == set(facts.REPLACED) and np.corrcoef(said, thought)[0, 1] > 0.8
    assert (tmp_path / "student.json").stat().st_size < 100_000


def test_no_leak_in_hong_kong(hong_kong):
    assert hong_kong["comment"].null_count() < 0.05 * len(hong_kong)
    frame = build(hong_kong)
    day = date(2019, 3, 31)
    assert leaks.truncation(build, hong_kong, day, frame) == []
    assert leaks.scramble(build, hong_kong, day, frame=frame) == []
    leaks.demand_clean(leaks.screen(frame, hong_kong, NAMES))
    history = History.learn(hong_kong)
    for race_id in hong_kong["race_id"].unique().sort().sample(10, seed=2):
        card = hong_kong.filter(race_id=race_id)
        assert compute(card, history.touching(card)).equals(frame.filter(race_id=race_id))
