"""Real servers for tests: PostgreSQL from Debian, an S3 store that moto brings; loopback, removed after.

| fixture | scope | gives |
|---|---|---|
| `postgres` | session | `postgres.database()`: the URL of a new, empty database |
| `postgres_url` | test | that, for tests that want one database |
| `s3_store` | session | `s3_store.bucket()`: `s3://…` of a new bucket; `s3_store.env`: for processes of their own |
| `s3` | test | `s3://…` of a new bucket, and the environment set as it is for `s3_store.env` |

A test names the fixture, no import is needed; conftest has them all. A fixture of wider scope than a
test takes `s3_store` and sets its environment by `pytest.MonkeyPatch.context()`. URLs carry a password
of this session alone: a test may look for `servers.SECRET` in what must not repeat it. Where the
binaries are missing the tests skip and say so.
"""

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

SECRET = "not-told-" + secrets.token_hex(8)  # of every URL here
_NUMBER = count(1)


def free_port() -> int:
    "A port of the loopback that nobody listens on now."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@dataclass(frozen=True)
class Postgres:
    "A running PostgreSQL of this session."

    port: int

    def url(self, database: str) -> str:
        return f"postgresql://racing:{SECRET}@127.0.0.1:{self.port}/{database}"

    def database(self, name: str | None = None) -> str:
        "The URL of a new, empty database."
        import psycopg

        name = name or f"test_{next(_NUMBER)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as c:
            c.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)


def _binaries() -> Path:
    "Where Debian, or the PATH, has the newest PostgreSQL."
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
    on_path = [Path(p).parent for p in [shutil.which("postgres")] if p]
    for folder in [*reversed(found), *on_path]:
        if (folder / "initdb").is_file():
            return folder
    pytest.skip("no PostgreSQL here (apt-get install postgresql)")


def _as() -> list[str]:
    "PostgreSQL refuses to run as root: another user then; it ends when the tests are killed."
    user = ["--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    return ["setpriv", "--pdeathsig=QUIT", *user]


def _answers(server: subprocess.Popen, url: str, log: Path) -> None:
    "Wait until a database lets us in."
    import psycopg

    for _ in range(600):
        try:
            return psycopg.connect(url).close()
        except psycopg.OperationalError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.05)
    pytest.fail(f"PostgreSQL does not answer: {log.read_text()}")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    "A PostgreSQL of its own for this session (and, under xdist, for this worker)."
    bin_, folder = _binaries(), Path(tempfile.mkdtemp(prefix="racing-pg-"))
    data, log, password = folder / "data", folder / "log", folder / "password"
    password.write_text(SECRET)
    if os.getuid() == 0:
        for path in (folder, password):
            shutil.chown(path, "postgres", "postgres")
    try:
        rules = ["--auth=scram-sha-256", "--username=racing", f"--pwfile={password}"]
        here = dict(cwd=folder, check=True, stdout=subprocess.DEVNULL)
        make = [bin_ / "initdb", "-D", data, "--encoding=UTF8", "--locale=C", "--no-sync", *rules]
        subprocess.run([*_as(), *map(str, make)], **here)
        one = Postgres(free_port())
        told = dict(port=one.port, listen_addresses="127.0.0.1", unix_socket_directories=folder)
        told |= dict(fsync="off", synchronous_commit="off", full_page_writes="off")
        options = [w for k, v in told.items() for w in ("-c", f"{k}={v}")]
        with log.open("w") as out:
            run = [*_as(), str(bin_ / "postgres"), "-D", str(data), *options]
            server = subprocess.Popen(run, cwd=folder, stdout=out, stderr=out)
        try:
            _answers(server, one.url("postgres"), log)
            yield one
        finally:
            server.send_signal(signal.SIGINT)  # ends its sessions, then itself
            server.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres) -> str:
    "A new, empty database."
    return postgres.database()


@dataclass(frozen=True)
class S3Store:
    "A running S3 server of this session."

    endpoint: str  # http://127.0.0.1:port

    @property
    def env(self) -> dict[str, str]:
        "The variables by which any client finds it, and no other."
        return dict(
            AWS_ENDPOINT_URL=self.endpoint,
            MLFLOW_S3_ENDPOINT_URL=self.endpoint,
            AWS_ACCESS_KEY_ID="testing",
            AWS_SECRET_ACCESS_KEY=SECRET,
            AWS_DEFAULT_REGION="us-east-1",
            AWS_EC2_METADATA_DISABLED="true",
            AWS_CONFIG_FILE=os.devnull,
            AWS_SHARED_CREDENTIALS_FILE=os.devnull,
        )

    def client(self) -> Any:
        "A client of boto3 that needs no environment."
        from boto3 import Session

        keys = dict(aws_access_key_id="testing", aws_secret_access_key=SECRET)
        return Session(**keys, region_name="us-east-1").client("s3", endpoint_url=self.endpoint)

    def bucket(self, name: str | None = None) -> str:
        "The URL of a new, empty bucket."
        name = name or f"test-{next(_NUMBER)}"
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"


@pytest.fixture(scope="session")
def s3_store() -> Iterator[S3Store]:
    "An S3 server in a thread of this process."
    server = pytest.importorskip(
        "moto.server", reason="no S3 server here (pip install moto[server])"
    )
    logging.getLogger("werkzeug").setLevel("ERROR")  # or every request is a line
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield S3Store(f"http://{host}:{port}")
    running.stop()


@pytest.fixture
def s3(s3_store, monkeypatch) -> str:
    "A new, empty bucket; AWS clients of this process and of those that it starts find it."
    for variable, value in s3_store.env.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return s3_store.bucket()
