"""The race-day page from outside: explanations that add up, HTML that is safe, and a real browser on a real Voilà."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

import httpx
import numpy as np
import polars as pl
import psutil
import pytest

from racing_core.config import Home, home
from racing_core.data.ingest import ingest_world
from racing_core.models.linear import ConditionalLogit
from racing_core.odds import centred
from racing_core.pages import raceday as dashboard
from racing_core.pipeline import PRICE, Pipeline
from racing_core.release.bundle import sealed
from racing_core.release.registry import promote
from racing_core.release.training import train
from racing_core.serving.explain import Explanation, sentences
from racing_core.serving.predictor import Answer, sample_card
from racing_core.simulate import simulate

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


@pytest.fixture(scope="module")
def answers(book) -> list[Answer]:
    "Every race shown, by each stage."
    cards = [
        sample_card(book.starts, race_id)
        for race_id in book.starts["race_id"].unique(maintain_order=True)
    ]
    return [
        book.predictor.look(c, stage)
        for c in cards
        for stage in ("combined", "blend", "fundamental")
    ]


def _sums(explanation: Explanation, numbers, n: int | None = None) -> np.ndarray:
    return np.array([sum(m.contribution for m in explanation.of(no, n)) for no in numbers])


def test_what_moved_the_runners_adds_up_to_the_stage_that_was_answered(book, answers):
    for answer in answers:
        explanation = book.predictor.explanation(answer)
        utility = np.log(answer.p)
        assert explanation.stage == answer.stage and explanation.error < 1e-9
        for n in (None, 4):
            sums = _sums(explanation, answer.runners["runner_no"], n)
            assert np.allclose(explanation.base + sums, utility, atol=1e-9)
            race = np.zeros(len(utility), dtype=int)
            assert np.allclose(sums, centred(utility, race), atol=1e-9)


def test_the_miss_of_an_explanation_that_does_not_add_up_is_told(book, answers):
    answer = answers[0]
    spoilt = answer.probabilities | {"combined": answer.p**2 / (answer.p**2).sum()}
    wrong = book.predictor.explanation(Answer(**vars(answer) | dict(probabilities=spoilt)))
    assert wrong.error > 0.1


def test_the_price_moves_the_stages_that_know_it_and_no_other(book, answers):
    for answer in answers:
        movers = book.predictor.explanation(answer, top=3).movers
        told = [m.contribution for m in movers if m.feature == PRICE]
        assert len(told) == (0 if answer.stage == "fundamental" else len(answer.runners))
        if answer.stage == "combined":
            logs = np.log(answer.probabilities["market"])
            assert np.allclose(told, logs - logs.mean(), atol=1e-12)


def test_a_value_stands_beside_the_mean_of_its_own_race(book, answers):
    answer = answers[-1]
    weights = answer.runners["weight_kg"]
    movers = book.predictor.explanation(answer).movers
    carried = [m for m in movers if m.feature == "weight_carried"]
    assert np.allclose([m.field_mean for m in carried], weights.mean())
    assert np.allclose([m.value for m in carried], weights)


def test_sentences_name_the_strongest_first(book, answers):
    explanation = book.predictor.explanation(answers[-1])
    for no in answers[-1].runners["runner_no"]:
        movers = explanation.of(no)[:3]
        sizes = [abs(m.contribution) for m in movers]
        assert sizes == sorted(sizes, reverse=True)
        for said, m in zip(sentences(explanation, no, 3), movers, strict=True):
            assert said.startswith(m.feature) and f"{m.contribution:+.2f}" in said


# --- the page's pieces


def test_only_days_up_to_the_end_of_training_are_marked(book):
    for label, day in book.days():
        sheet = dashboard.sheet(book, book.races(day)[0][1])
        assert sheet.in_training == (day <= book.trained_until), label
        assert ("in training" in dashboard.heading(sheet)) == sheet.in_training
        assert any("not a forecast" in w for w in sheet.prediction.warnings) == sheet.in_training
    assert {day <= book.trained_until for _, day in book.days()} == {True, False}


def _changed_book(book, **columns) -> dashboard.Book:
    return dashboard.Book(book.predictor, book.starts.with_columns(**columns))


def _pieces(sheet: dashboard.Sheet) -> str:
    no = sheet.lines[0].answer.runner_no
    return dashboard.heading(sheet) + dashboard.table(sheet, no) + dashboard.reasons(sheet, no)


def test_names_from_outside_are_escaped(book):
    evil = pl.lit('"><img src=x onerror=alert(1)>')
    names = ["horse_name", "jockey_name", "name", "course", "rail"]
    spoilt = _changed_book(book, **dict.fromkeys(names, evil))
    assert "<img" not in _pieces(dashboard.sheet(spoilt, book.starts["race_id"][0]))


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
    none = {c: pl.lit(None, book.starts.schema[c]) for c in absent}
    sheet = dashboard.sheet(_changed_book(book, **none), book.starts["race_id"][0])
    html = _pieces(sheet)
    assert sheet.prediction.stage == "fundamental"
    assert not any(word in html for word in ("medal", "None", "nan", "Result", ">Market<"))


def test_a_race_with_a_hole_in_its_prices_shows_form_alone(book):
    race_id = book.starts["race_id"][0]
    hole = (pl.col("race_id") == race_id) & (pl.col("runner_no") == 1)
    odds = pl.when(~hole).then("odds")
    sheet = dashboard.sheet(_changed_book(book, odds=odds), race_id)
    html = dashboard.table(sheet)
    assert sheet.prediction.stage == "fundamental" and 'class="p market"' not in html
    assert "odds are left aside" in html and ">Odds<" in html and " over" not in html


def test_a_stored_race_that_is_no_card_is_refused_by_name(book):
    race_id = book.starts["race_id"][0]
    with pytest.raises(dashboard.BadInput, match="distance_m"):
        dashboard.sheet(_changed_book(book, distance_m=pl.lit(12)), race_id)


def test_a_dead_heat_is_two_golds_and_a_faller_has_no_place(book):
    race = book.starts["race_id"][0]
    numbers = book.starts.filter(race_id=race)["runner_no"].sort().to_list()
    here, no = pl.col("race_id") == race, pl.col("runner_no")
    won = pl.when(here & no.is_in(numbers[:2])).then(1)
    position = won.when(here).then(4).otherwise("position").cast(pl.Int16)
    fell = pl.when(here & (no == numbers[-1])).then(pl.lit("did_not_finish"))
    status = fell.otherwise(pl.lit("finished")).cast(book.starts.schema["status"])
    sheet = dashboard.sheet(_changed_book(book, position=position, status=status), race)
    html = dashboard.table(sheet)
    assert html.count("medal m1") == 2 and html.count("DNF") == 1


def test_a_bundle_that_remembers_no_past_days_shows_later_ones_only(place):
    folder = shutil.copytree(place.root / "first", place.root / "forgetful")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest | dict(remembers_from=None))))
    book = dashboard.open_book(place, folder)
    assert len(book.days()) == 5 and all(day > book.trained_until for _, day in book.days())


def test_without_a_champion_the_page_says_what_to_type(tmp_path):
    empty = home(tmp_path / "with space", env={})
    steps = dashboard.first_steps(empty)
    assert [s.split(" --home ")[1].split("' ")[1].split()[0] for s in steps] == [
        "simulate",
        "train",
        "promote",
    ]
    assert "&#39;" in dashboard.trouble(
        empty, dashboard.BadInput("x")
    ) and "reload" in dashboard.trouble(empty, dashboard.BadInput("x"))


# --- the server and the browser


@contextlib.contextmanager
def voila(place, name="voila", **env):
    """Voilà as `racing dashboard` starts it."""
    pytest.importorskip("voila", reason="Voilà is not installed (extra `ui`)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = (
        "import sys, pathlib as p; from racing_core import config as c; from racing_core.pages"
        " import voila as d; h, n, f = sys.argv[1:]; d.serve(c.home(h), int(n), p.Path(f))"
    )
    arguments = [str(place.root), str(port), str(NOTEBOOK)]
    log = (place.root / f"{name}.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-c", start, *arguments],
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=place.root,
        env=os.environ | env,
    )
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (place.root / f"{name}.log").read_text()
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
def server(place):
    with voila(place) as server:
        yield server


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
    assert page.locator("p:has-text('from form and price')").count() == 1
    page.click("text=Form alone")
    _changed(page, "table.race", table)
    page.wait_for_selector("p:has-text('from form alone')")
    assert page.locator("tr.chosen").get_attribute("data-runner") == number

    heading = page.inner_html(".rd-main h2")
    page.click(".rd-bar button >> nth=0")  # an earlier day
    _changed(page, ".rd-main h2", heading)
    earlier = book.starts.filter(race_id=book.races(book.days()[1][1])[0][1])
    page.wait_for_selector(f"h2:has-text('{earlier['course'][0]} {earlier['race_no'][0]}')")
    page.wait_for_function(
        "n => document.querySelectorAll('table.race .horse').length === n", arg=len(earlier)
    )


def _told(page, kind: str = "model") -> list[list[float]]:
    "What the browser was given: runner and whole probability, from the top."
    rows = page.locator("table.race tbody tr")
    return rows.evaluate_all(
        "(rows, kind) => rows.map(r => [+r.dataset.runner, +r.querySelector(`.p.${kind}`).dataset.p])",
        kind,
    )


def test_the_browser_shows_what_the_predictor_answers_to_the_bit(page, book):
    race_id = book.races(book.days()[0][1])[0][1]
    asked = book.predictor.predict(sample_card(book.starts, race_id)).ranked
    assert _told(page) == [[r.runner_no, r.win_probability] for r in asked]
    assert _told(page, "market") == [[r.runner_no, r.market_probability] for r in asked]


def test_terms_are_not_floated_by_the_host_page_and_nothing_overflows_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.click("summary")
    floats = page.locator(".rd dt, .rd dd").evaluate_all(
        "all => all.map(e => getComputedStyle(e).float)"
    )
    assert floats and set(floats) == {"none"}
    wide = page.locator(".rd.wide").evaluate("e => e.scrollWidth - e.clientWidth")
    assert wide <= 0, "the table has to be pushed sideways"


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


# --- who may look, and how many


def kernels(server) -> set[int]:
    "Processes of kernels below the server."
    return {
        p.pid
        for p in psutil.Process(server[0].pid).children(recursive=True)
        if "ipykernel" in " ".join(p.cmdline())
    }


def stands_ready(server) -> set[int]:
    "The kernels once the one that is started ahead is there."
    for _ in range(600):
        if running := kernels(server):
            return running
        time.sleep(0.1)
    raise AssertionError("no kernel was started ahead")


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example.org"},
        {"Host": "rebound.example.org:8866", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "image", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Dest": "iframe", "Sec-Fetch-Mode": "navigate"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"},
        {"Origin": "https://example.org"},
        {"Accept": "image/avif,image/webp,*/*;q=0.8"},
    ],
    ids=str,
)
def test_a_request_that_is_no_visit_starts_no_kernel(server, headers):
    before = stands_ready(server)
    reply = httpx.get(server[1], headers=headers)
    assert reply.status_code == 403 and "table.race" not in reply.text
    assert kernels(server) == before


def test_pictures_on_a_stranger_s_page_start_no_kernel(server, chromium):
    pictures = "".join(f'<img src="{server[1]}?{i}" onerror="gone++">' for i in range(5))

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f"<script>gone = 0</script>{pictures}".encode())

        def log_message(self, *args): ...

    stranger = ThreadingHTTPServer(("127.0.0.1", 0), Stranger)
    threading.Thread(target=stranger.serve_forever, daemon=True).start()
    before, page = stands_ready(server), chromium.new_page()
    page.goto(f"http://localhost:{stranger.server_port}/")
    page.wait_for_function("gone === 5", timeout=60_000)
    assert kernels(server) == before
    page.close()
    stranger.shutdown()


@pytest.mark.parametrize(("grace_s", "last"), [("600", 503), ("0", 200)])
def test_there_are_no_more_kernels_than_the_bound(place, grace_s, last):
    bounds = dict(RACING_DASHBOARD_KERNELS="2", RACING_DASHBOARD_GRACE_S=grace_s)
    with voila(place, f"bound-{grace_s}", **bounds) as server:
        stands_ready(server)
        replies = []
        for _ in range(4):
            replies.append(httpx.get(server[1], timeout=120))
            assert len(kernels(server)) <= 2
        assert replies[0].status_code == 200 and replies[-1].status_code == last
        if last == 503:
            assert replies[-1].headers["Retry-After"] and "Close a tab" in replies[-1].text
