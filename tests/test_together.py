"""Several processes at once: what is read, changed and written back loses nothing."""

import json
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from racing_core.config import home, write_whole
from racing_core.errors import BadInput, Tampered
from racing_core.lab.tracking import begin, look, looks
from racing_core.release.bundle import Manifest, Origin, sealed

PROCESSES = 6


def toy(folder: Path, name: str) -> str:
    "A bundle that holds nothing but a manifest, which is all that titles need; its version."
    days = dict(trained_from=date(2020, 1, 1), trained_until=date(2025, 1, 1))
    origin = Origin(name, "simulated", **days, now=datetime(2026, 1, 1, tzinfo=UTC))
    facts = dict.fromkeys(Manifest.model_fields) | origin.facts()
    manifest = sealed(facts | dict(features=[], code={}, libraries={}, files={}))
    write_whole(folder / "manifest.json", json.dumps(manifest))
    return manifest["version"]


def together(code: str, place, times: int = PROCESSES) -> None:
    "Run a piece of code in several processes that start on the same signal."
    gate = place.root / "gate"
    begin = (
        "import sys, time, pathlib\n"
        "from datetime import UTC, date, datetime\n"
        "from racing_core.config import home\n"
        "place, me, gate = home(sys.argv[1], env={}), int(sys.argv[2]), pathlib.Path(sys.argv[3])\n"
    )
    wait = "while not gate.exists(): time.sleep(0.005)\n"
    parts = code.split("# go\n")
    script = begin + parts[0] + wait + parts[1]
    command = [sys.executable, "-c", script, str(place.root)]
    running = [
        subprocess.Popen([*command, str(i), str(gate)], stderr=subprocess.PIPE, text=True)
        for i in range(times)
    ]
    place.root.mkdir(parents=True, exist_ok=True)
    gate.touch()
    faults = [p.communicate()[1] for p in running]
    assert all(p.returncode == 0 for p in running), faults


def test_no_look_is_lost(tmp_path):
    place = home(tmp_path / "home", env={})
    code = (
        "from racing_core.lab.tracking import look\n# go\n"
        "for _ in range(10):\n"
        "    look(place, 'hkjc', date(2023, 1, 1), date(2023, 12, 31), datetime.now(UTC))\n"
    )
    together(code, place)
    looks = json.loads((place.runs / "looks.json").read_text())
    assert len(looks) == 10 * PROCESSES


def test_no_promotion_is_lost(tmp_path):
    place = home(tmp_path / "home", env={})
    for i in range(PROCESSES):
        toy(place.bundles / f"v{i}", f"v{i}")
    code = (
        "from racing_core.release.registry import promote\n# go\n"
        "for _ in range(3): promote(place, f'v{me}', 'champion', datetime.now(UTC))\n"
    )
    together(code, place)
    state = json.loads((place.bundles / "aliases.json").read_text())
    assert len(state["log"]) == 3 * PROCESSES
    chain = [(c["before"], c["version"]) for c in state["log"]]
    assert all(a[1] == b[0] for a, b in zip(chain, chain[1:], strict=False))
    assert state["champion"] == chain[-1][1]


def test_a_damaged_ledger_of_looks_is_told_and_kept(tmp_path):
    place = home(tmp_path, env={})
    for text in ("[", "7", "[{}]"):
        file = write_whole(place.runs / "looks.json", text)
        with pytest.raises(Tampered, match=r"looks is damaged.*looks\.json"):
            look(place, "hkjc", date(2023, 1, 1), date(2023, 12, 31), datetime.now(UTC))
        assert file.read_text() == text


def test_a_run_has_a_name_that_stays_in_the_home(tmp_path):
    place = home(tmp_path / "home", env={})
    for source in ("../../x", "/x", "a b"):
        with pytest.raises(BadInput, match="not a name of a run"):
            begin(place, "backtest", source, {})
    assert not list(tmp_path.iterdir())


def test_a_tuning_is_in_the_ledger_and_is_no_look(tmp_path):
    place, now = home(tmp_path, env={}), datetime.now(UTC)
    window = (date(2023, 1, 1), date(2023, 12, 31), now)
    assert look(place, "hkjc", *window, purpose="tuning", run="3f2a") == 0
    assert look(place, "hkjc", *window) == 1 and look(place, "netkeiba", *window) == 1
    assert look(place, "hkjc", *window, "tuning") == 1
    assert [(e.purpose, e.run) for e in looks(place, "hkjc")] == [
        ("tuning", "3f2a"),
        ("test", None),
        ("tuning", None),
    ]
    assert len(looks(place)) == 4


def test_a_look_knows_the_run_of_its_folder(tmp_path):
    place, now = home(tmp_path, env={}), datetime.now(UTC)
    run = begin(place, "backtest", "hkjc", {})
    for out in (run.folder, tmp_path / "no run"):
        look(place, "hkjc", date(2023, 1, 1), date(2023, 12, 31), now, out=out)
    assert [e.run for e in looks(place)] == [run.id, None]
