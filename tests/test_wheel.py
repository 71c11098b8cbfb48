"""The built wheel, installed outside the checkout: the journeys of a newcomer from an empty folder."""

import contextlib
import json
import os
import re
import shutil
import signal
import site
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = "racing_core", "serve", "reports", "setup.py", "settings.ini", "requirements.lock"
HOME_WAYS = "RACING_", "PYTHON", "JUPYTER", "VIRTUAL_ENV"  # variables that lead to a checkout
ENV = {k: v for k, v in os.environ.items() if not k.startswith(HOME_WAYS)}
RACES = "600"


def pip(*args: object) -> None:
    argv = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, args)]
    done = subprocess.run(argv, capture_output=True, text=True, env=ENV)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    "Built from a copy of the sources, so that no earlier build comes along."
    place = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, place / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", place / "dist", place)
    return next((place / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The scripts of a new environment with the wheel, and beside it the dependencies of this one.

    The folder of the dependencies is named in a .pth file: its own .pth files, among them the
    one of an editable racing-core, are not read.
    """
    place = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(place, symlinks=True)
    pip("--python", place / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    share = Path(sys.prefix) / "share" / "jupyter"  # the templates of Voilà and nbconvert
    (place / "share").mkdir(exist_ok=True)
    (place / "share" / "jupyter").symlink_to(share)
    return place / "bin"


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    "An empty folder outside the checkout, where all commands are typed."
    return tmp_path_factory.mktemp("empty")


@pytest.fixture(scope="module")
def racing(installed, here):
    "The command as the shell finds it; its one answer."

    def call(*args: str) -> dict:
        argv = [installed / "racing", *args, "--json"]
        done = subprocess.run(argv, capture_output=True, text=True, env=ENV, cwd=here)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return call


@pytest.fixture(scope="module")
def job(racing) -> dict:
    "What the main job of a small world found."
    return racing("run", "--races", RACES)


@contextlib.contextmanager
def listening(installed: Path, here: Path, *args: str) -> Iterator[tuple[subprocess.Popen, str]]:
    "A server of the command, and its address."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    argv = [installed / "racing", *args, "--port", str(port), "--json"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with subprocess.Popen(argv, env=ENV, cwd=here, **pipes) as server:
        try:
            yield server, json.loads(server.stdout.readline())["url"]
        finally:
            server.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(30)
            server.kill()


def waited(url: str, tries: int = 240) -> httpx.Response:
    "What a server says once it listens."
    for _ in range(tries):
        with contextlib.suppress(httpx.TransportError):
            if (reply := httpx.get(url, timeout=60)).status_code < 500:
                return reply
        time.sleep(0.25)
    raise AssertionError(f"{url} does not answer")


def test_the_wheel_is_what_is_imported(installed, here):
    code = "import racing_core, serve; print(racing_core.__file__, serve.__file__)"
    argv = [installed / "python", "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, env=ENV, cwd=here, check=True)
    assert all(Path(f).is_relative_to(installed.parent) for f in done.stdout.split())


def test_nothing_patches_the_path_of_modules():
    files = [f for part in SOURCES[:3] for f in (ROOT / part).rglob("*.[pi]*") if f.is_file()]
    patched = [f.name for f in files if re.search(r"sys\.path\b", f.read_text(encoding="utf-8"))]
    assert files and not patched


def test_doctor_finds_everything(racing):
    told = racing("doctor")
    assert told["usable"] and not [c for c in told["checks"] if c["state"] == "wrong"]
    advice = " ".join(c["do"] or "" for c in told["checks"])
    assert "-e" not in advice, "there is no checkout to install"


def test_the_main_job_runs(job, here):
    assert Path(job["report"]).is_file() and Path(job["report"]).is_relative_to(here)
    assert job["bundle"]["champion"] == job["bundle"]["version"]
    told = [w for w in job["prediction"]["warnings"] if not w.startswith("The market is not corr")]
    assert not told and job["prediction"]["stage"] == "combined"


def test_a_card_is_answered(racing, job):
    assert racing("predict", job["card"])["ranked"] == job["prediction"]["ranked"]


def test_a_backtest_and_a_contest_write_their_reports(racing, job):
    window = "--source", "simulated", "--test-from", "2018-07-23"
    for call in (("backtest", *window), ("contest", *window, "--only", "logistic_regression")):
        found = racing(*call)
        assert Path(found["report"]).stat().st_size > 10_000 and found["races"] > 50


def test_the_service_answers_and_stops(installed, here, job):
    with listening(installed, here, "serve") as (server, url):
        waited(f"{url}/api/v2/health")
        card = json.loads(Path(job["card"]).read_text(encoding="utf-8"))
        told = httpx.post(f"{url}/api/v2/predict", json=card, timeout=60)
        assert told.json()["ranked"] == job["prediction"]["ranked"]
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0


def test_the_page_is_shown(installed, here, job):
    with listening(installed, here, "dashboard") as (_, url):
        page = waited(url)
        assert page.status_code == 200 and "rd-" in page.text
        assert "Traceback" not in page.text and "widget-view+json" in page.text
