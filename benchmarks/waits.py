"""How long we wait for others that are slow, silent or gone: python benchmarks/waits.py

Tests say that a wait ends, and what then happens; how long it took on this machine is said here.
"""

import argparse
import socket
import tempfile
import threading
import time
from contextlib import contextmanager
from datetime import date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from racing_core.memo import DiskCache, RedisCache
from racing_core.models.preprocess import MulticollinearityReducer
from racing_core.semantic.client import lookup, prefetch
from racing_core.semantic.scorer import Settings, Subject

NOW = datetime(2025, 3, 1, 8)
FIELD = [Subject("horse", f"H{i}", date(2025, 3, 1), {"starts": i}) for i in range(40)]


@contextmanager
def silent_model():
    "Settings of a service that takes every question and answers none."
    go = threading.Event()

    class Silent(BaseHTTPRequestHandler):
        def do_POST(self):
            go.wait(60)

        def log_message(self, *args): ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    yield Settings(base_url=url, api_key="k", attempts=1, attempt_s=2, deadline_s=3)
    go.set()
    server.shutdown()


def timed(what: str, allowed: str, call) -> None:
    began = time.perf_counter()
    call()
    print(f"{what:44}{allowed:>12}{time.perf_counter() - began:10.2f} s", flush=True)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(f"{'wait':44}{'allowed':>12}{'took':>12}")
    with tempfile.TemporaryDirectory() as folder, silent_model() as settings:
        cache = DiskCache(Path(folder))
        timed(
            "one question to a silent model",
            "2 s",
            lambda: prefetch(FIELD[:1], cache, settings, NOW),
        )
        timed("forty questions to it", "3 s", lambda: prefetch(FIELD, cache, settings, NOW))
    gone = RedisCache("redis://127.0.0.1:9/0")
    timed("forty answers of a Redis that is gone", "0.25 s", lambda: lookup(FIELD, gone, settings))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        mute = RedisCache(f"redis://127.0.0.1:{s.getsockname()[1]}/0")
        timed("forty answers of a silent Redis", "0.25 s", lambda: lookup(FIELD, mute, settings))
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80_000, 40)) @ rng.normal(size=(40, 120)) + rng.normal(size=(80_000, 120))
    won = rng.random(len(X)) < 0.08
    timed("collinear columns of 80,000 x 120", "", lambda: MulticollinearityReducer().fit(X, won))


if __name__ == "__main__":
    main()
