"""The `racing` command from outside: answers, exit codes, clean output, the way from nothing to a promoted model."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import unicodedata
import warnings
from collections import Counter
from datetime import date
from pathlib import Path

import httpx
import polars as pl
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from test_data_clients import env as keys
from test_data_clients import listed, result
from test_data_http import Loopback, status

from racing_core.app import main as cli
from racing_core.app import mainjob, terminal
from racing_core.errors import Leak
from racing_core.features.matrix import features as registered
from racing_core.records import to_json


def leaves(group, *path: str) -> list[str]:
    "Every command as it is typed."
    below = getattr(group, "commands", {})
    return [c for k, v in below.items() for c in leaves(v, *path, k)] or [" ".join(path)]


COMMANDS = leaves(typer.main.get_command(cli.app))
ENV = {k: v for k, v in os.environ.items() if not k.startswith("RACING_")} | {
    "OMP_NUM_THREADS": "1"
}
RACES = 1800
RACING = [
    sys.executable,
    "-c",
    "import sys; from racing_core.app.main import main; sys.exit(main())",
]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def waited(url: str, tries: int = 120) -> httpx.Response:
    "What a server says once it listens."
    for _ in range(tries):
        with contextlib.suppress(httpx.TransportError):
            if (reply := httpx.get(url, timeout=5)).status_code < 500:
                return reply
        time.sleep(0.5)
    raise AssertionError(f"{url} does not answer")


def racing(
    *args: object, home: Path | None = None, timeout: float = 900, **kw
) -> subprocess.CompletedProcess:
    "The command as the shell calls it."
    argv = [*RACING, *(["--home", str(home)] if home else []), *map(str, args)]
    return subprocess.run(
        argv, capture_output=True, text=True, env=ENV | kw.pop("env", {}), timeout=timeout, **kw
    )


def answer(*args: object, home: Path, code: int = 0, **kw) -> dict:
    "The one JSON object on standard output."
    done = racing(*args, "--json", home=home, **kw)
    assert done.returncode == code, done.stderr[-2000:]
    assert done.stdout.endswith("\n") and done.stdout.count("\n") == 1, done.stdout
    return json.loads(done.stdout, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    "A home with a world and a trained, promoted model; tests may read it, not change it."
    place = tmp_path_factory.mktemp("home")
    made = answer("simulate", "--races", RACES, home=place)
    assert made["races"] == RACES and made["changed"]
    assert answer("train", "--source", "simulated", home=place)["folder"] == str(
        place / "bundles" / "simulated"
    )
    answer("promote", "simulated", "--to", "champion", home=place)
    return place


@pytest.fixture(scope="module")
def card(home, tmp_path_factory) -> Path:
    "A card of horses that the model knows."
    from racing_core.config import home as home_of
    from racing_core.data.store import Store

    file = tmp_path_factory.mktemp("cards") / "card.json"
    file.write_text(
        mainjob.next_week(Store(home_of(home), "simulated").starts()).model_dump_json(
            exclude_none=True
        ),
        encoding="utf-8",
    )
    return file


# --- help ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_names_the_common_options(command, capsys):
    assert cli.main([*command.split(), "--help"]) == 0
    said = capsys.readouterr().out
    assert f"racing {command}" in said and "Examples:" in said
    assert "--json" in said and "--home" in said


def test_top_help_lists_every_command_and_the_exit_codes(capsys):
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(c.split()[0] in said for c in COMMANDS) and "--home" in said and "Exit codes" in said


def test_help_pays_for_no_heavy_import():
    heavy = {
        "numpy",
        "polars",
        "pandas",
        "lightgbm",
        "sklearn",
        "mlflow",
        "torch",
        "rich",
        "pydantic",
        "scipy",
        "matplotlib",
    }
    code = "import sys, racing_core.app.main; print(*{m.split('.')[0] for m in sys.modules})"
    assert not heavy & set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_the_installed_script_is_this_command():
    script = Path(sys.executable).with_name("racing")
    if not script.exists():
        pytest.skip("the package is not installed as a script beside this Python")
    assert subprocess.run([script, "nonsense"], capture_output=True, env=ENV).returncode == 2


def test_ingest_names_every_adapter(capsys):
    from racing_core.data.ingest import SOURCES

    assert cli.main(["ingest", "--help"]) == 0
    assert set(SOURCES) <= set(capsys.readouterr().out.replace(",", " ").replace(".", " ").split())


# --- refusals --------------------------------------------------------------------------------------------------------
SAMPLE = str(Path(__file__).parent.parent / "data/sample/card.json")
BAD = {
    "unknown command": (["nonsense"], "nonsense"),
    "unknown option": (["simulate", "--horses", "3"], "--horses"),
    "no races": (["simulate", "--races", "0"], "--races"),
    "races in words": (["simulate", "--races", "many"], "--races"),
    "market out of range": (["simulate", "--inefficiency", "1.5"], "inefficiency"),
    "unknown adapter": (["ingest", "nowhere", "."], "nowhere"),
    "missing path": (["ingest", "hkjc", "not/there"], "not/there"),
    "reserved name": (["ingest", "hkjc", ".", "--name", "simulated"], "simulated"),
    "no such kind": (["fetch", "gossip"], "gossip"),
    "whose weather": (["fetch", "weather"], "whose weather"),
    "fetched for a simulated world": (["fetch", "weather", "--source", "simulated"], "simulated"),
    "fetched since when": (["fetch", "results", "--since", "May"], "May"),
    "unknown source": (["backtest", "--source", "nowhere", "--test-from", "2020-01-01"], "nowhere"),
    "bad date": (["backtest", "--source", "simulated", "--test-from", "31/01/2020"], "31/01/2020"),
    "no test window": (["backtest", "--source", "simulated"], "--test-from"),
    "features of nothing": (
        ["features", "build", "--source", "nowhere", "--out", "x.parquet"],
        "nowhere",
    ),
    "unknown family": (["features", "list", "--family", "nobody"], "nobody"),
    "train on nothing": (["train", "--source", "nowhere"], "nowhere"),
    "train before all races": (
        ["train", "--source", "simulated", "--until", "1999-01-01"],
        "1999-01-01",
    ),
    "no such moment": (["train", "--source", "simulated", "--as-of", "noon"], "scheduled_off"),
    "a moment without prices": (
        ["features", "build", "--source", "simulated", "--out", "x.parquet", "--as-of", "T-10"],
        "its moments: morning, close",
    ),
    "card of no moment": (["predict", SAMPLE, "--as-of", "noon"], "scheduled_off"),
    "no such bundle": (["promote", "nowhere", "--to", "champion"], "nowhere"),
    "unknown title": (["promote", "simulated", "--to", "king"], "king"),
    "nothing to roll back": (["rollback"], "champion"),
    "no such card": (["predict", "nowhere.json"], "nowhere.json"),
    "serve without model": (["serve", "--bundle", "challenger"], "challenger"),
    "files for a simulated world": (["run", "--data", "."], "--source hkjc"),
    "real results that are not stored": (["run", "--source", "hkjc"], "hkjc"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_plain_words(case, home):
    args, named = BAD[case]
    told = answer(*args, home=home, code=2)
    assert named in json.dumps(told, ensure_ascii=False) and told["error"] in (
        "BadInput",
        "BadUsage",
    )


def test_a_refusal_for_people_is_on_standard_error(home):
    done = racing("train", "--source", "nowhere", home=home)
    assert (
        (done.returncode, done.stdout) == (2, "")
        and "racing simulate" not in done.stdout
        and "nowhere" in done.stderr
        and "Traceback" not in done.stderr
    )


CARDS = {
    "empty": ("", "card"),
    "no JSON": ("{", "card"),
    "a list": ("[]", "card"),
    "no runners": ('{"runners": []}', "jurisdiction"),
    "not text": (b"\xff\xfe\x00", "card"),
    "odds of one": (lambda c: c["runners"][0].update(odds=1.0), "runners.0.odds"),
    "a word for a number": (lambda c: c["runners"][1].update(draw="rail"), "runners.1.draw"),
    "unknown field": (lambda c: c.update(weather="fine"), "weather"),
    "no such going": (lambda c: c.update(going="bouncy"), "going"),
    "another source": (lambda c: c.update(source="hkjc"), "source"),
}


@pytest.mark.parametrize("case", CARDS)
def test_a_bad_card_is_refused_with_its_field(case, home, card, tmp_path):
    fault, field = CARDS[case]
    if callable(fault):
        content = json.loads(card.read_text())
        fault(content)
        fault = json.dumps(content)
    file = tmp_path / "card.json"
    file.write_bytes(fault.encode() if isinstance(fault, str) else fault)
    assert field in answer("predict", file, home=home, code=2)["what"]


def test_a_changed_bundle_has_a_code_of_its_own(home, card, tmp_path):
    import shutil

    shutil.copytree(home / "bundles" / "simulated", tmp_path / "bundle")
    victim = next(f for f in sorted((tmp_path / "bundle" / "pipeline").rglob("*")) if f.is_file())
    victim.write_bytes(victim.read_bytes() + b" ")
    told = answer("predict", card, "--bundle", tmp_path / "bundle", home=home, code=4)
    assert told["error"] == "Tampered" and victim.name in told["where"]


def test_a_leak_has_a_code_of_its_own(monkeypatch, capsys, home):
    def leak(*args, **kw):
        print("chatter")
        raise Leak("too good to be true", got=0.61, expected="top-1 below 45%")

    monkeypatch.setattr(mainjob, "report", leak)
    assert (
        cli.main(
            [
                "--home",
                str(home),
                "backtest",
                "--source",
                "simulated",
                "--test-from",
                "2019-01-01",
                "--json",
            ]
        )
        == 3
    )
    said = capsys.readouterr()
    assert json.loads(said.out)["error"] == "Leak" and "chatter" in said.err


FAULTS = {
    "a panic of polars": lambda: str(pl.Series([2**31 - 1]).cast(pl.Date)),
    "an error of polars": lambda: pl.Series(["x"]).cast(pl.Int8),
    "half a character": lambda: "\ud800".encode(),
    "ours": lambda: {}["x\x1b[2J"],
}


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_a_library_raises_is_one_line_and_a_code(fault, form, monkeypatch, capsys, home):
    monkeypatch.setattr(mainjob, "report", lambda *args, **kw: FAULTS[fault]())
    argv = ["--home", str(home), "backtest", "--source", "simulated", "--test-from", "2019-01-01"]
    assert cli.main([*argv, *(["--json"] if form == "json" else [])]) == 1
    said = capsys.readouterr()
    line = said.err.splitlines()[-1]
    assert line.startswith("racing: a fault that is not yours: got ") and "\x1b" not in said.err
    assert (json.loads(said.out)["error"] == "Fault") if form == "json" else said.out == ""


EVIL = "Ann\x1b[2J\x1b]0;owned\x07\x9b31m\u202elive\rgone"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_name_is_shown_and_never_obeyed(encoding, form, home, card, tmp_path):
    content = json.loads(card.read_text(encoding="utf-8"))
    content["runners"][0]["horse_name"] = EVIL + "馬"
    file = tmp_path / f"c{EVIL.replace('/', '')}.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    more = ["--json"] if form == "json" else []
    done = racing("predict", file, *more, home=home, env={"PYTHONIOENCODING": encoding})
    missing = racing("predict", f"{file}x", *more, home=home, env={"PYTHONIOENCODING": encoding})
    assert "Traceback" not in done.stderr + missing.stderr and missing.returncode == 2
    for said in (done.stdout, done.stderr, missing.stdout, missing.stderr):
        assert not any(c < " " and c not in "\n\t" or c in "\x7f\x9b\u202e" for c in said)
    assert done.returncode == 0
    if form == "json":
        names = [r["horse_name"] for r in json.loads(done.stdout)["ranked"]]
        assert "Ann [2J ]0;owned 31m live gone馬" in names, (
            "control characters are no part of a name"
        )


def test_half_a_character_ends_no_command(home, card, tmp_path):
    content = json.loads(card.read_text(encoding="utf-8"))
    content["runners"][0]["horse_name"] = "half \ud800"
    file = tmp_path / "card.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    for more in ([], ["--json"]):
        done = racing("predict", file, *more, home=home)
        assert "Traceback" not in done.stderr and done.stderr.startswith("racing: ")


@given(st.text(), st.sampled_from(["utf-8", "ascii", "latin-1", "utf-16"]))
def test_any_text_can_be_printed_and_says_nothing_to_the_terminal(text, encoding):
    shown = terminal.plain(text, encoding)
    shown.encode(encoding)
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in shown)
    whole = json.dumps(dict(name=text), ensure_ascii=False)
    assert json.loads(terminal.plain(whole, encoding)) == dict(name=text)


def test_a_home_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    assert answer("simulate", "--races", 50, home=tmp_path / "file", code=2)["error"] == "BadInput"
    told = answer("doctor", home=tmp_path / "file", code=1)
    assert not told["usable"] and [
        c["name"] for c in told["checks"] if c["required"] and c["state"] != "ok"
    ] == ["home"]


# --- answers ---------------------------------------------------------------------------------------------------------
@given(
    st.recursive(
        st.floats() | st.integers() | st.text() | st.none() | st.booleans() | st.dates(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_every_answer_is_strict_json(value):
    json.loads(json.dumps(to_json(dict(value=value)), allow_nan=False))


def test_the_option_goes_before_the_environment(tmp_path):
    for args, env, place in (
        (["--home", tmp_path / "a"], tmp_path / "b", "a"),
        ([], tmp_path / "c", "c"),
    ):
        assert (
            racing(*args, "simulate", "--races", 50, env={"RACING_HOME": str(env)}).returncode == 0
        )
        assert (tmp_path / place / "store" / "simulated" / "manifest.json").is_file()
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_one_option_for_the_home(command):
    here = typer.main.get_command(cli.app)
    for name in command.split():
        here = here.commands[name]
    (home,) = [p for p in here.params if "--home" in p.opts]
    settled = terminal.Shared(sys.stdout, json=False)
    with here.make_context(command, ["--home", "x"], obj=settled, resilient_parsing=True) as ctx:
        home.callback(ctx, home, ["x"])
    assert settled.home.root == Path("x").resolve()


@pytest.mark.parametrize("argv", ["--home=A doctor --home=B", "doctor --home=A --home=B"])
def test_two_homes_are_refused(argv, tmp_path, capsys):
    argv = argv.replace("A", str(tmp_path / "a")).replace("B", str(tmp_path / "b"))
    assert cli.main([*argv.split(), "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert "twice" in told["what"] and told["got"] == f"{tmp_path / 'a'} and {tmp_path / 'b'}"


def test_the_home_after_the_command_is_the_one_that_is_used(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RACING_HOME", str(tmp_path / "env"))
    for argv in (["--home", "a"], ["--home=b"], ["--home", "c", "--home", f"{tmp_path}/c"]):
        monkeypatch.chdir(tmp_path)
        assert cli.main(["simulate", "--races", "50", *argv, "--json"]) == 0
    assert cli.main(["--home=d", "simulate", "--races", "50", "--home", "d", "--json"]) == 0
    capsys.readouterr()
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b", "c", "d"}


def test_the_lab_runs_in_the_home_and_as_root_when_told(tmp_path):
    pytest.importorskip("jupyterlab")
    port, root = free_port(), os.geteuid() == 0
    if root:
        assert "--allow-root" in answer("lab", home=tmp_path, code=2)["do"]
    argv = ["lab", "--home", str(tmp_path), "--port", str(port), "--json"]
    env = ENV | dict(HOME=str(tmp_path), BROWSER="true")
    argv = [*RACING, *argv, *(["--allow-root"] if root else [])]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
    ) as server:
        try:
            assert json.loads(server.stdout.readline())["home"] == str(tmp_path)
            assert waited(f"http://127.0.0.1:{port}/lab").status_code in (200, 302)
            lab = Path(f"/proc/{server.pid}/environ").read_text().split("\0")
            assert f"RACING_HOME={tmp_path}" in lab
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(30) is not None and server.stdout.read() == ""


def test_a_world_is_stored_once_and_replaced_whole(tmp_path):
    first, again = (
        answer("simulate", "--races", 200, "--seed", 1, home=tmp_path) for _ in range(2)
    )
    assert first["changed"] and not again["changed"] and again["starters"] == first["starters"]
    assert answer("simulate", "--races", 100, "--seed", 2, home=tmp_path)["changed"]
    assert (
        answer(
            "features",
            "build",
            "--source",
            "simulated",
            "--out",
            tmp_path / "f.parquet",
            home=tmp_path,
        )["starters"]
        < first["starters"]
    )
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["simulated"]


def test_features_are_listed_and_counted(home):
    told = answer("features", "list", home=home)
    assert (
        told["counts"] == Counter(f["family"] for f in told["features"])
        and [f["name"] for f in told["features"]] == [f.name for f in registered()]
        and {"name", "unit", "family", "reads"} <= set(told["features"][0])
    )


def test_doctor_finds_the_champion(home):
    told = answer("doctor", home=home)
    found = {c["name"]: c for c in told["checks"]}
    assert (
        told["usable"]
        and found["champion"]["state"] == "ok"
        and "verified" in found["champion"]["found"]
        and found["sources"]["state"] == "ok"
    )
    assert all(c["do"] for c in told["checks"] if c["state"] != "ok")


def test_a_card_is_ranked_from_a_file_and_from_standard_input(home, card):
    told = answer("predict", card, home=home)
    assert (
        sum(r["win_probability"] for r in told["ranked"]) == pytest.approx(1)
        and told["stage"] == "combined"
    )
    assert answer("predict", "-", home=home, input=card.read_text()) == told
    assert answer("predict", card, "--bundle", home / "bundles" / "simulated", home=home) == told
    table = racing("predict", card, home=home).stdout
    assert table.splitlines()[2].split()[0] == "1" and len(table.splitlines()) >= 2 + len(
        told["ranked"]
    )


HAND = """date,track,country,race,trip,distance,surface,no,horse,odds,age
2026-01-31,Ascot,GB,1,x,1m,turf,1,Alpha,5/2,4
2026-01-31,Ascot,GB,1,x,1m,turf,2,Beta,evens,old
2026-01-31,Ascot,GB,2,x,1m,turf,1,Gamma,2.5,3
2026-01-31,Ascot,GB,2,x,1m,turf,2,Delta,11-4,3
"""


def test_an_answer_says_as_of_when_it_was_made(home, card):
    plain, early = (
        answer("predict", card, home=home),
        answer("predict", card, "--as-of", "morning", home=home),
    )
    assert (plain["as_of"], early["as_of"]) == ("close", "morning")
    assert plain["ranked"] == early["ranked"]
    (more,) = set(early["warnings"]) - set(plain["warnings"])
    assert "trained on prices of the close of betting, asked as of the morning" in more


def test_a_card_typed_by_hand_is_ranked(home, tmp_path):
    file = tmp_path / "card.csv"
    file.write_text(HAND)
    told = answer("predict", file, home=home, code=2)
    assert "row 2, column age: got 'old'" in told["do"] and "column trip" in told["do"]
    races = answer("predict", file, "--lenient", home=home)["races"]
    assert len(races) == 2 and all(any("column age" in w for w in r["warnings"]) for r in races)
    assert all(
        sum(r["win_probability"] for r in race["ranked"]) == pytest.approx(1) for race in races
    )
    by_hand = {
        "date": "31/01/2026",
        "venue": "Ascot",
        "country": "GB",
        "race": 1,
        "distance": "1m",
        "surface": "turf",
    }
    by_hand["runners"] = [
        {"no": 1, "horse": "Alpha", "odds": "5/2", "age": 4},
        {"no": 2, "horse": "Beta", "odds": "evens"},
    ]
    typed = answer("predict", "-", home=home, input=json.dumps(by_hand))
    assert {r["odds"] for r in typed["ranked"]} == {3.5, 2.0}
    by_hand["runners"][1]["odds"] = "soon"
    assert (
        "row 2, column odds"
        in answer("predict", "-", home=home, code=2, input=json.dumps(by_hand))["do"]
    )


# --- over the network: a server on this machine ----------------------------------------------------------------------
@pytest.fixture
def server():
    with contextlib.closing(Loopback()) as server:
        yield server


def test_results_are_fetched_and_a_second_time_remembered(server, tmp_path):
    server.routes["/v1/results"] = listed("results", [result(date(2026, 8, d)) for d in (3, 5)])
    call = "fetch", "results", "--since", "2026-08-01", "--until", "2026-08-08"
    told = answer(*call, "--source", "mine", home=tmp_path, env=keys(server))
    assert (told["kind"], told["name"], told["races"], told["runners"], told["changed"]) == (
        "results",
        "mine",
        2,
        6,
        True,
    )
    again = racing(*call, "--source", "mine", home=tmp_path, env=keys(server))
    assert (
        again.returncode == 0
        and "nothing new" in again.stdout
        and again.stderr == ""
        and server.times("/v1/results") == 1
    )
    doctor = {
        c["found"].split(":")[0]: c
        for c in answer("doctor", home=tmp_path, code=0)["checks"]
        if c["name"] == "columns"
    }
    assert (
        "absent" in doctor["mine"]["found"]
        and "body_weight_kg" in doctor["mine"]["found"]
        and "horse_id" not in doctor["mine"]["found"]
    )


@pytest.mark.parametrize(
    ("kind", "names"),
    [("card", ["RACING_API_USER"]), ("weather", ["WEATHERAPI_KEY", "OPENWEATHERMAP_API_KEY"])],
)
def test_a_missing_key_is_named(kind, names, server, tmp_path):
    none = dict.fromkeys(
        ("RACING_API_USER", "RACING_API_PASSWORD", "WEATHERAPI_KEY", "OPENWEATHERMAP_API_KEY"), ""
    )
    done = racing(
        "fetch",
        kind,
        "--source",
        "mine",
        "--since",
        "2026-08-01",
        home=tmp_path,
        env=keys(server) | none,
    )
    assert (
        done.returncode == 2
        and done.stdout == ""
        and all(n in done.stderr for n in names)
        and "Traceback" not in done.stderr
    )
    assert not server.asked and not (tmp_path / "store").exists()


def test_a_source_that_refuses_is_no_fault_of_the_caller(server, tmp_path):
    server.routes["/v1/results"] = status(401)
    told = answer(
        "fetch",
        "results",
        "--since",
        "2026-08-01",
        "--until",
        "2026-08-08",
        home=tmp_path,
        env=keys(server),
        code=1,
    )
    assert told["error"] == "Unreachable" and "RACING_API_USER" in told["do"]


def test_weather_that_came_later_does_not_hide_the_results(tmp_path):
    from racing_core.config import home as home_of
    from racing_core.data.store import Store

    assert racing("simulate", "--races", 50, home=tmp_path).returncode == 0
    (tmp_path / "store" / "simulated").rename(tmp_path / "store" / "mine")
    place = home_of(tmp_path)
    file = Store(place, "mine").folder / "manifest.json"
    manifest = json.loads(file.read_text())
    last = manifest["ingests"][-1]
    manifest["ingests"].append(
        {k: 0 if isinstance(v, int) else v for k, v in last.items()}
        | {"source": "weather", "races": 3}
    )
    file.write_text(json.dumps(manifest))
    assert mainjob.obtain(place, "mine", None, 0, 0)["starters"] == last["starters"] > 0


def test_a_warning_is_one_plain_line(monkeypatch, capsys, tmp_path):
    from racing_core.app import doctor

    def examine(home):
        for _ in range(3):
            warnings.warn("no comments", stacklevel=1)
        warnings.warn("no comments", stacklevel=2)
        return []

    before = warnings.showwarning
    monkeypatch.setattr(doctor, "examine", examine)
    assert cli.main(["--home", str(tmp_path), "doctor"]) == 0
    assert capsys.readouterr().err == "note: no comments\n" and warnings.showwarning is before


def test_absent_comments_are_told_without_a_file_name(home, tmp_path):
    said = racing(
        "features", "build", "--source", "simulated", "--out", tmp_path / "x.parquet", home=home
    ).stderr.splitlines()
    assert (
        said
        and all(line.startswith("note: ") and ".py" not in line for line in said)
        and len(said) == len(set(said))
    ), said


@pytest.mark.parametrize(
    ("command", "variable", "text"),
    [
        ("serve", "RACING_SERVE_PATIENCE_S", "nan"),
        ("serve", "RACING_LLM_DAILY_BUDGET_USD", "inf"),
        ("dashboard", "RACING_DASHBOARD_KERNELS", "-3"),
        ("score", "RACING_LLM_OUTPUT_USD", "-1"),
    ],
)
def test_a_number_of_the_environment_is_refused_by_name(command, variable, text, home, card):
    argv = [command, *([card] if command == "score" else ["--port", free_port()])]
    told = answer(*argv, home=home, code=2, env={variable: text})
    assert told["where"] == variable and told["got"] == text


def test_the_service_starts_answers_and_stops(home, card):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
        assert str(port) in answer("serve", "--port", port, home=home, code=2)["got"]
    argv = [*RACING, "--home", str(home), "serve", "--port", str(port), "--json"]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENV
    ) as server:
        try:
            url = json.loads(server.stdout.readline())["url"]
            waited(f"{url}/api/v2/health")
            told = httpx.post(
                f"{url}/api/v2/predict",
                content=card.read_bytes(),
                headers={"content-type": "application/json"},
                timeout=60,
            )
            assert told.json()["ranked"] == answer("predict", card, home=home)["ranked"]
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0 and server.stdout.read() == ""


# --- from nothing to a promoted model --------------------------------------------------------------------------------
def test_the_way_of_a_model(tmp_path, card):
    made = answer("simulate", "--races", RACES, home=tmp_path)
    built = answer(
        "features", "build", "--source", "simulated", "--out", tmp_path / "x.parquet", home=tmp_path
    )
    assert built["starters"] == made["starters"] and built["features"] == len(registered())
    found = answer(
        "backtest",
        "--source",
        "simulated",
        "--test-from",
        "2019-10-01",
        "--report",
        tmp_path / "report",
        home=tmp_path,
    )
    assert {
        "races",
        "starters",
        "uniform_logloss",
        "delta_r2",
        "boards",
        "test_looks",
        "tripwires",
        "seconds",
        "peak_mb",
    } <= set(found)
    assert list(found["boards"])[:3] == ["uniform", "price", "market"]
    assert found["delta_r2"].keys() == {"value", "low", "high"}
    assert all(
        {"logloss", "r2", "top1", "ndcg_linear@4", "brier", "ece"} <= set(found["boards"][stage])
        for stage in ("price", "market", "fundamental", "combined")
    )
    assert (
        Path(found["report"]).parent == tmp_path / "report"
        and Path(found["report"]).stat().st_size > 10_000
    )
    versions = []
    for until in ("2019-10-01", "2019-11-01"):
        versions.append(
            answer(
                "train",
                "--source",
                "simulated",
                "--until",
                until,
                "--out",
                tmp_path / until,
                home=tmp_path,
            )["version"]
        )
        assert (
            answer("promote", tmp_path / until, "--to", "champion", home=tmp_path)["champion"]
            == versions[-1]
        )
    assert answer("predict", card, home=tmp_path)["version"] == versions[1]
    assert answer("rollback", home=tmp_path)["champion"] == versions[0]
    assert answer("predict", card, home=tmp_path)["version"] == versions[0]


def test_the_main_job_resumes_where_it_stopped(tmp_path):
    first = racing("run", "--races", RACES, "--test-from", "2019-10-01", home=tmp_path)
    assert first.returncode == 0, first.stderr[-2000:]
    assert (
        "report: " in first.stdout
        and first.stdout.count("\n  ") >= 3
        and "racing predict" not in first.stderr
    )
    ledger = (tmp_path / "runs" / "looks.json").read_text()
    again = answer("run", "--races", RACES, "--test-from", "2019-10-01", home=tmp_path)
    assert (tmp_path / "runs" / "looks.json").read_text() == ledger, (
        "the test window is not looked at again"
    )
    assert (
        Path(again["report"]).is_file()
        and again["bundle"]["champion"] == again["bundle"]["version"]
        and not again["results"]["changed"]
    )
    assert answer("predict", again["card"], home=tmp_path)["ranked"] == again["prediction"][
        "ranked"
    ] and all(w.startswith("The market is not corr") for w in again["prediction"]["warnings"])
