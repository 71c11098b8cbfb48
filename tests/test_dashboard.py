"""The race-day page from outside: explanations that add up, HTML that is safe, and a real browser on a real Voilà."""

import re
import shutil
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import polars as pl
import psutil
import pytest

from racing_core.config import Home, home
from racing_core.data.ingest import ingest_world
from racing_core.features.matrix import matrix
from racing_core.models.linear import ConditionalLogit
from racing_core.odds import softmax
from racing_core.pages import raceday as dashboard
from racing_core.pipeline import Pipeline
from racing_core.release.registry import promote
from racing_core.release.training import train
from racing_core.serving.explain import chart, movers, sentences, strongest
from racing_core.simulate import simulate

KEY = ["race_id", "runner_no"]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOTEBOOK = Path(__file__).resolve().parent.parent / "reports" / "dash_raceday.ipynb"


def _small() -> Pipeline:
    return Pipeline(
        {"conditional_logit": ConditionalLogit()}, {"conditional_logit": ConditionalLogit(l2=5000)}
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Home:
    """A home with a simulated store, a champion and a second bundle, neither trained on the last race days."""
    root = tmp_path_factory.mktemp("home")
    place, world = home(root, env={}), simulate(races=1400, seed=3)
    ingest_world(world, place)
    days = sorted(set(world.tables["races"]["date"]))
    train(place, "simulated", root / "first", NOW, until=days[-6], make=_small)
    train(place, "simulated", root / "second", NOW, until=days[-4], make=_small)
    promote(place, root / "first", "champion", NOW)
    return place


@pytest.fixture(scope="module")
def book(place) -> dashboard.Book:
    return dashboard.open_book(place, place.root / "first", before=4)


# --- explanations


@pytest.mark.parametrize(
    ("stage", "name"), [("fundamental", "fundamental"), ("residual", "combined")]
)
def test_what_moved_the_runners_adds_up_to_the_prediction(book, stage, name):
    pipeline, X = book.bundle.pipeline, matrix(book.frame)
    p = pipeline.predict(X, book.starts["odds"].to_numpy())
    moved = movers(pipeline, book.frame, stage)
    for kept in (moved, strongest(moved, 4)):
        sums = kept.group_by(KEY).agg(pl.col("contribution").sum())
        total = book.frame.select(KEY).join(sums, on=KEY, maintain_order="left")
        start = np.log(p["market"]) if stage == "residual" else 0.0
        assert np.allclose(
            softmax(start + total["contribution"].to_numpy(), X.race), p[name], atol=1e-9
        )


def test_a_value_stands_beside_the_mean_of_its_own_race(book):
    moved = movers(book.bundle.pipeline, book.frame)
    race = book.frame["race_id"][-1]
    here = moved.filter(race_id=race, feature="weight_carried")
    assert np.allclose(here["field_mean"], book.starts.filter(race_id=race)["weight_kg"].mean())
    assert np.allclose(here["value"], book.starts.filter(race_id=race)["weight_kg"])


def test_sentences_name_the_strongest_first(book):
    said = sentences(movers(book.bundle.pipeline, book.frame), 3)
    size = (
        said.group_by("race_id", "runner_no", maintain_order=True)
        .agg(pl.col("contribution").abs())["contribution"]
        .to_list()
    )
    assert all(x == sorted(x, reverse=True) and len(x) == 3 for x in size)
    assert all(
        row["sentence"].startswith(row["feature"])
        and f"{row['contribution']:+.2f}" in row["sentence"]
        for row in said.head(30).iter_rows(named=True)
    )


def test_the_picture_is_the_same_twice(book):
    rows = strongest(movers(book.bundle.pipeline, book.frame)).head(9)
    assert chart(rows) == chart(rows)


# --- the page's pieces


def test_only_days_up_to_the_end_of_training_are_marked(book):
    for label, day in book.days():
        card = dashboard.card(book, book.races(day)[0][1])
        assert card.known == (day <= book.trained_until), label
        assert ("in training" in dashboard.heading(card)) == card.known
    assert {day <= book.trained_until for _, day in book.days()} == {True, False}


def test_names_from_outside_are_escaped(book):
    evil = '"><img src=x onerror=alert(1)>'
    names = ["horse_name", "jockey_name", "name", "course", "rail"]
    spoilt = dashboard.Book(
        book.bundle, book.starts.with_columns(pl.lit(evil).alias(c) for c in names), book.frame
    )
    card = dashboard.card(spoilt, book.starts["race_id"][0])
    assert not any(
        "<img" in piece
        for piece in (
            dashboard.heading(card),
            dashboard.table(card),
            dashboard.reasons(card, card.runners["runner_no"][0]),
        )
    )


def test_a_race_that_has_not_been_run_or_priced_can_be_shown(book):
    absent = (
        "position",
        "status",
        "odds",
        "draw",
        "horse_name",
        "jockey_name",
        "going",
        "off_utc",
        "class_level",
    )
    bare = book.starts.with_columns(pl.lit(None, book.starts.schema[c]).alias(c) for c in absent)
    card = dashboard.card(
        dashboard.Book(book.bundle, bare, book.frame), book.starts["race_id"][0], "residual"
    )
    html = (
        dashboard.heading(card)
        + dashboard.table(card, 1)
        + dashboard.reasons(card, card.runners["runner_no"][0])
    )
    assert (
        card.stage == "fundamental"
        and "medal" not in html
        and "None" not in html
        and "nan" not in html
    )


def test_a_dead_heat_is_two_golds_and_a_faller_has_no_place(book):
    race = book.starts["race_id"][0]
    first, last = (
        book.starts.filter(race_id=race)["runner_no"].sort().to_list()[:2],
        book.starts.filter(race_id=race)["runner_no"].max(),
    )
    here = pl.col("race_id") == race
    changed = book.starts.with_columns(
        position=pl.when(here & pl.col("runner_no").is_in(first))
        .then(1)
        .when(here)
        .then(4)
        .otherwise("position")
        .cast(pl.Int16),
        status=pl.when(here & (pl.col("runner_no") == last))
        .then(pl.lit("did_not_finish"))
        .otherwise(pl.lit("finished"))
        .cast(book.starts.schema["status"]),
    )
    html = dashboard.table(dashboard.card(dashboard.Book(book.bundle, changed, book.frame), race))
    assert html.count("medal m1") == 2 and html.count("DNF") == 1


def test_without_a_champion_the_page_says_what_to_type(tmp_path):
    empty = home(tmp_path / "with space", env={})
    steps = dashboard.first_steps(empty)
    assert [s.split(" --home ")[1].split("' ")[1].split()[0] for s in steps] == [
        "simulate",
        "train",
        "promote",
    ]
    assert "&#x27;" in dashboard.trouble(
        empty, dashboard.BadInput("x")
    ) and "reload" in dashboard.trouble(empty, dashboard.BadInput("x"))


# --- the server and the browser


@pytest.fixture(scope="module")
def server(place):
    """Voilà as `racing dashboard` starts it."""
    pytest.importorskip("voila", reason="Voilà is not installed (extra `ui`)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = (
        "import sys, pathlib as p; from racing_core import config as c; from racing_core.pages"
        " import raceday as d; h, n, f = sys.argv[1:]; d.serve(c.home(h), int(n), p.Path(f))"
    )
    arguments = [str(place.root), str(port), str(NOTEBOOK)]
    log = (place.root / "voila.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-c", start, *arguments],
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=place.root,
    )
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (place.root / "voila.log").read_text()
            time.sleep(0.1)
        yield process, f"http://127.0.0.1:{port}/"
        tree = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.wait(30) == 0
        assert not psutil.wait_procs(tree, timeout=10)[1], "kernels outlive the server"
    finally:
        process.kill()
        log.close()


@pytest.fixture(scope="module")
def chromium():
    sync = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (extra `dev`)"
    )
    if not (
        path := shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    ):
        pytest.skip("no Chromium on this machine (on Debian: apt install chromium)")
    arguments = [
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    ]
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(server, chromium):
    """The page with its first race; whatever it complains of or asks of another host fails the test."""
    page, faults = chromium.new_page(viewport={"width": 1360, "height": 900}), []
    page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: faults.append(str(e)))
    page.on(
        "request",
        lambda r: (
            faults.append(r.url)
            if urlparse(r.url).scheme not in ("data", "blob")
            and urlparse(r.url).hostname != "127.0.0.1"
            else None
        ),
    )
    page.on(
        "websocket",
        lambda w: faults.append(w.url) if urlparse(w.url).hostname != "127.0.0.1" else None,
    )
    page.goto(server[1], wait_until="commit")
    page.wait_for_selector("table.race", timeout=60_000)
    yield page
    page.close()
    assert not faults, faults


def _changed(page, selector: str, before: str):
    page.wait_for_function(
        "([s, old]) => document.querySelector(s).innerHTML !== old",
        arg=[selector, before],
        timeout=20_000,
    )


def _shares(page, column: str) -> list[float]:
    return [
        float(re.sub(r"[^\d.]", "", t))
        for t in page.locator(f"table.race td.{column}").all_inner_texts()
    ]


def test_a_visitor_reads_a_race_changes_it_and_asks_why(page, book):
    day, (_, race) = book.days()[0][1], book.races(book.days()[0][1])[0]
    runners = book.starts.filter(race_id=race)
    assert page.locator("table.race tbody tr").count() == len(runners)
    assert all(
        abs(sum(_shares(page, column)) - 100) < 0.05 * len(runners) + 0.05
        for column in ("model", "market")
    )
    assert sorted(page.locator("table.race .horse").all_inner_texts()) == sorted(
        runners["horse_name"]
    )

    table = page.inner_html("table.race")
    page.click(".rd-race + button")
    _changed(page, "table.race", table)
    following = book.starts.filter(race_id=book.races(day)[1][1])
    assert sorted(page.locator("table.race .horse").all_inner_texts()) == sorted(
        following["horse_name"]
    )
    assert abs(sum(_shares(page, "model")) - 100) < 0.05 * len(following) + 0.05

    why = page.inner_html(".rd-main .rd:has(svg)")
    row = page.locator("table.race tbody tr").nth(2)
    number = row.get_attribute("data-runner")
    row.click()
    page.wait_for_selector(f"h2:text-is('Why number {number}?')")
    assert page.inner_html(".rd-main .rd:has(svg)") != why
    assert page.locator("tr.chosen").get_attribute("data-runner") == number

    table = page.inner_html("table.race")
    page.click("text=Against the market")
    _changed(page, "table.race", table)
    page.wait_for_selector("p:has-text('corrected from its price')")
    assert page.locator("tr.chosen").get_attribute("data-runner") == number

    heading = page.inner_html(".rd-main h2")
    page.click(".rd-bar button >> nth=0")  # an earlier day
    _changed(page, ".rd-main h2", heading)
    earlier = book.starts.filter(race_id=book.races(book.days()[1][1])[0][1])
    page.wait_for_selector(f"h2:has-text('{earlier['course'][0]} {earlier['race_no'][0]}')")
    page.wait_for_function(
        "n => document.querySelectorAll('table.race .horse').length === n", arg=len(earlier)
    )


def test_the_next_visitor_sees_the_new_champion(page, place, server, chromium):
    assert "unseen" in page.inner_text(".rd-main")
    time.sleep(4)  # the next visitor's kernel is being started ahead
    version = promote(place, place.root / "second", "champion", NOW)["champion"]
    other = chromium.new_page()
    other.goto(server[1], wait_until="commit")
    other.wait_for_selector("table.race", timeout=60_000)
    assert version in other.inner_text(".rd-app") and version not in page.inner_text(".rd-app")
    other.close()


def test_server_and_kernels_listen_on_this_machine_only(page, server):
    process = psutil.Process(server[0].pid)
    listening = [
        c.laddr.ip
        for p in (process, *process.children(recursive=True))
        for c in p.net_connections()
        if c.status == psutil.CONN_LISTEN
    ]
    assert listening and set(listening) <= {"127.0.0.1", "::1"}
