"""The client for data sources against a real local server that is slow, broken, busy, flooding, curious."""

import asyncio
import base64
import contextlib
import gzip
import json
import logging
import pickle
import socket
import sqlite3
import threading
import time
import traceback
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, quote_plus, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from racing_core.data.http import (
    Client,
    Keys,
    Limits,
    Unreachable,
    _body,
    need,
    retry_after,
    wait,
)
from racing_core.errors import BadInput, RacingError

USER, PASSWORD, KEY = "ada-user-77", "p@ss/wörd 77", "key+77=%secret"
SECRETS = [
    *(f(v) for v in (USER, PASSWORD, KEY) for f in (str, quote, quote_plus)),
    base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode(),
]
QUICK = Limits(
    timeout_s=0.6, deadline_s=3.0, attempts=3, backoff_s=0.02, per_second=200, max_bytes=200_000
)


class Loopback:
    """A server on this machine; `routes` maps a path to a function that answers through the
    handler, or to a JSON value."""

    def __init__(self):
        self.routes, self.asked, self.busy, self.most = {}, [], 0, 0
        owner, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                url = urlsplit(self.path)
                query = {k: v if len(v) > 1 else v[0] for k, v in parse_qs(url.query).items()}
                with lock:
                    owner.asked.append((url.path, query, dict(self.headers)))
                    owner.busy += 1
                    owner.most = max(owner.most, owner.busy)
                route = owner.routes.get(url.path, {})
                with contextlib.suppress(OSError):
                    route(self, query) if callable(route) else self.send(route)
                with lock:
                    owner.busy -= 1

            def send(self, value=None, status=200, body=None, **headers):
                body = json.dumps(value).encode() if body is None else body
                self.send_response(status)
                for name, text in {"Content-Length": len(body), **headers}.items():
                    self.send_header(name.replace("_", "-"), str(text))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads, self._server.block_on_close = True, False
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def times(self, path):
        return sum(p == path for p, *_ in self.asked)

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def only_loopback(monkeypatch):
    "Any connection to another machine fails the test."
    connect = socket.socket.connect

    def guarded(self, address):
        assert self.family == socket.AF_UNIX or address[0] in (
            "127.0.0.1",
            "::1",
        ), f"a connection to {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def server(monkeypatch):
    only_loopback(monkeypatch)
    with contextlib.closing(Loopback()) as server:
        yield server


def ask(server, *paths, limits=QUICK, cache=None, fresh_s=0.0, params=None):
    "Answers or complaints, all asked at once, and the client."

    async def run():
        async with Client(
            server.url, Keys((USER, PASSWORD), {"appid": KEY}), limits, cache, do="check ADA_KEY"
        ) as client:
            return (
                await asyncio.gather(
                    *(client.get(p, params, fresh_s) for p in paths), return_exceptions=True
                ),
                client,
            )

    return wait(run())


def status(code, **headers):
    return lambda h, q: h.send({"code": code}, code, **headers)


def first(n, failing, then=None):
    "Fails n times, then answers."
    left = [n]

    def route(h, q):
        left[0] -= 1
        failing(h, q) if left[0] >= 0 else h.send(then or {"fine": True})

    return route


def stalls(h, q):
    time.sleep(1.5)


def drips(h, q):
    h.send_response(200)
    h.send_header("Content-Length", "1000")
    h.end_headers()
    for _ in range(15):
        h.wfile.write(b"[")
        h.wfile.flush()
        time.sleep(0.1)


def cut(h, q):
    h.send(body=b'{"races": [', Content_Length=1000)
    h.close_connection = True


def test_keys_reach_the_source(server):
    (answer,), *_ = ask(server, "/x", params={"day": "today", "region": ["gb", "ire"]})
    _, query, headers = server.asked[0]
    assert answer == {} and query == {"day": "today", "region": ["gb", "ire"], "appid": KEY}
    assert (
        base64.b64decode(headers["Authorization"].removeprefix("Basic ")).decode()
        == f"{USER}:{PASSWORD}"
    )


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_stumble_is_tried_again(server, code):
    server.routes["/x"] = first(2, status(code))
    (answer,), client = ask(server, "/x")
    assert answer == {"fine": True} and client.requests == 3


@pytest.mark.parametrize("code", [400, 401, 403, 404, 422])
def test_a_refusal_is_final(server, code):
    server.routes["/x"] = status(code)
    (e,), client = ask(server, "/x")
    assert (
        isinstance(e, Unreachable)
        and f"status {code}" in str(e)
        and "check ADA_KEY" in str(e)
        and client.requests == 1
    )


def test_a_source_that_stays_down_is_given_up(server):
    server.routes["/x"] = status(500)
    (e,), client = ask(server, "/x")
    assert (
        isinstance(e, Unreachable) and "status 500" in str(e) and client.requests == QUICK.attempts
    )


def test_retry_after_is_honoured(server):
    asked = []

    def strict(h, q):
        "Asks to be left alone for a second, and has done for good with whoever is back before."
        asked.append(time.monotonic())
        early = asked[-1] - asked[0] < 0.9
        h.send({"fine": True}, 200 if not early else 429 if len(asked) == 1 else 403, Retry_After=1)

    server.routes["/x"] = strict
    (answer, _), client = ask(server, "/x", "/y", limits=Limits(timeout_s=9, deadline_s=20))
    assert answer == {"fine": True} and len(asked) == 2 and client.requests == 3


def test_a_pause_beyond_the_deadline_ends_the_question_at_once(server):
    server.routes["/x"] = status(429, Retry_After=3600)
    (e,), client = ask(server, "/x")
    assert isinstance(e, Unreachable) and "429" in str(e) and client.requests == 1


@pytest.mark.parametrize("route", [stalls, drips])
def test_slow_answers_are_bounded_in_time(server, route):
    server.routes["/x"] = route
    (e,), client = ask(server, "/x")
    assert isinstance(e, Unreachable) and "nothing in 0.6 s" in str(e)


def test_the_deadline_ends_everything(server):
    server.routes["/x"] = stalls
    short = Limits(timeout_s=0.4, deadline_s=1.0, attempts=50, backoff_s=0.01)
    (e,), client = ask(server, "/x", limits=short)
    assert isinstance(e, Unreachable) and 2 <= client.requests < 10


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"<html>", b'{"a": NaN}', b"\xff\xfe{}", b"[" * 100_000, b'{"a": Infinity}'],
    ids=repr,
)
def test_what_is_not_json_is_a_complaint(server, body):
    server.routes["/x"] = lambda h, q: h.send(body=body)
    (e,), client = ask(server, "/x")
    assert isinstance(e, Unreachable) and "not JSON" in str(e) and client.requests == QUICK.attempts


def test_a_truncated_answer_is_asked_for_again(server):
    server.routes["/x"] = first(1, cut)
    server.routes["/y"] = cut
    (answer, e), *_ = ask(server, "/x", "/y")
    assert (
        answer == {"fine": True} and isinstance(e, Unreachable) and "RemoteProtocolError" in str(e)
    )


def test_a_flood_is_stopped(server):
    sent = []

    def flood(h, q):
        h.send_response(200)
        h.end_headers()
        while len(sent) < 2000:
            h.wfile.write(b"1," * 32768)
            sent.append(1)

    server.routes["/x"] = flood
    (e,), client = ask(server, "/x")
    time.sleep(0.2)
    assert isinstance(e, Unreachable) and "too large" in str(e) and client.requests == 1
    assert len(sent) < 500, "the server could send most of its flood"


def test_a_packed_flood_is_stopped(server):
    server.routes["/x"] = lambda h, q: h.send(
        body=gzip.compress(b"[" + b"1," * 5_000_000), Content_Encoding="gzip"
    )
    server.routes["/y"] = lambda h, q: h.send(
        body=gzip.compress(b"[1, 2]"), Content_Encoding="gzip"
    )
    server.routes["/z"] = lambda h, q: h.send(body=b"not packed", Content_Encoding="gzip")
    (flood, good, broken), *_ = ask(server, "/x", "/y", "/z")
    assert "too large" in str(flood) and good == [1, 2] and isinstance(broken, Unreachable)


def twice_packed(size=5_000_000):
    return gzip.compress(gzip.compress(b"[" + b"1," * size + b"1]"))


@pytest.mark.parametrize("encoding", ["gzip, gzip", "gzip,gzip", "deflate", "br", "x-gzip, br"])
def test_what_is_packed_otherwise_than_asked_for_is_not_unpacked(server, encoding):
    server.routes["/x"] = lambda h, q: h.send(body=twice_packed(9), Content_Encoding=encoding)
    (e,), _ = ask(server, "/x")
    assert isinstance(e, Unreachable) and "DecodingError" in str(e)
    assert server.asked[0][2]["accept-encoding"] == "gzip"


def test_unpacking_stops_at_the_limit():
    "A packed body of one small chunk grows to no more than what may be read."

    async def read(packed):
        async def chunks():
            yield packed

        answer = httpx.Response(200, headers={"Content-Encoding": "gzip"}, content=chunks())
        return await _body(answer, 1000)

    assert len(wait(read(gzip.compress(bytes(50_000_000))))) == 1001
    assert wait(read(gzip.compress(b"[1, 2]"))) == b"[1, 2]"


def test_a_key_that_is_echoed_in_any_spelling_reaches_nobody(server, tmp_path):
    spelt = "".join(f"\\u{ord(c):04x}" for c in KEY)
    server.routes["/x"] = lambda h, q: h.send(body=f'[{{"{spelt}": ["a {spelt} b"]}}]'.encode())
    assert ask(server, "/x", cache=tmp_path, fresh_s=60)[0] == [[{"***": ["a *** b"]}]]
    ask(server, "/x", cache=tmp_path, fresh_s=60)
    assert server.times("/x") == 2, "it is not kept"


def test_an_answer_too_deep_to_be_read_is_a_complaint(server):
    server.routes["/x"] = lambda h, q: h.send(body=b"[" * 900 + b"]" * 900)
    (e,), _ = ask(server, "/x")
    assert isinstance(e, Unreachable) and "not JSON" in str(e)


def test_nobody_there():
    with contextlib.closing(Loopback()) as server:
        pass
    (e,), client = ask(server, "/x")
    assert (
        isinstance(e, Unreachable)
        and "ConnectError" in str(e)
        and client.requests == QUICK.attempts
    )


def test_a_redirect_carries_no_key_away(server):
    with contextlib.closing(Loopback()) as other:
        server.routes["/x"] = lambda h, q: h.send(
            {}, 302, Location=f"{other.url}/steal?appid={q['appid']}"
        )
        (e,), *_ = ask(server, "/x")
        assert isinstance(e, Unreachable) and "status 302" in str(e) and not other.asked


def test_questions_are_spaced_but_not_one_by_one(server):
    asked = []

    def slowly(h, q):
        "Takes its time, and turns the fourth away when it comes with the first."
        asked.append(time.monotonic())
        crowded = len(asked) == 4 and asked[-1] - asked[0] < 0.3
        time.sleep(0.7)
        h.send({"fine": True}, 429 if crowded else 200)

    server.routes["/x"] = slowly
    spaced = Limits(timeout_s=9, deadline_s=20, per_second=5)
    answers, client = ask(server, *["/x"] * 6, limits=spaced)
    assert answers == [{"fine": True}] * 6 and client.requests == 6 and server.most > 2


def test_the_cache_answers_while_it_is_fresh(server, tmp_path):
    server.routes["/x"] = {"fine": "x" * 150_000}
    assert (
        ask(server, "/x", cache=tmp_path, fresh_s=0.5)[0]
        == ask(server, "/x", cache=tmp_path, fresh_s=0.5)[0]
        == [server.routes["/x"]]
    )
    assert server.times("/x") == 1 and ask(server, "/x", cache=tmp_path)[1].requests == 1
    time.sleep(0.6)
    assert ask(server, "/x", cache=tmp_path, fresh_s=0.5)[1].requests == 1


def test_other_questions_are_other_entries(server, tmp_path):
    for day in ("today", "tomorrow", "today"):
        ask(server, "/x", cache=tmp_path, fresh_s=60, params={"day": day})
    assert server.times("/x") == 2


def test_nothing_bad_is_cached(server, tmp_path):
    for path, route in {
        "/a": status(500),
        "/b": lambda h, q: h.send(body=b"{"),
        "/c": status(404),
        "/d": cut,
    }.items():
        server.routes[path] = first(QUICK.attempts, route)
        assert isinstance(ask(server, path, cache=tmp_path, fresh_s=60)[0][0], Unreachable)
        server.routes[path] = {"fine": True}
        assert ask(server, path, cache=tmp_path, fresh_s=60)[0] == [{"fine": True}]


def test_a_broken_cache_is_no_cache(server, tmp_path):
    server.routes["/x"] = {"fine": True}
    (tmp_path / "cache.db").write_bytes(
        b"not a database, but long enough to be taken for one" * 100
    )
    assert ask(server, "/x", cache=tmp_path, fresh_s=60)[0] == [{"fine": True}]
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert ask(server, "/x", cache=tmp_path / "file", fresh_s=60)[0] == [{"fine": True}]


class Trap:
    sprung = False

    def __reduce__(self):
        return setattr, (Trap, "sprung", True)


def test_a_planted_pickle_is_not_loaded(server, tmp_path):
    server.routes["/x"] = {"fine": True}
    ask(server, "/x", cache=tmp_path, fresh_s=60)
    with contextlib.closing(sqlite3.connect(tmp_path / "cache.db")) as db, db:
        assert (
            db.execute(
                "UPDATE Cache SET mode = 4, value = ?, filename = NULL", (pickle.dumps(Trap()),)
            ).rowcount
            == 1
        )
    assert ask(server, "/x", cache=tmp_path, fresh_s=60)[0] == [{"fine": True}] and not Trap.sprung


def test_no_key_in_any_log_error_or_file(server, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    echo = {"you": f"{USER} {PASSWORD} {KEY} {quote(KEY)} {SECRETS[-1]}"}
    server.routes |= {
        "/fine": {"fine": True},
        "/echo": echo,
        "/stumble": first(1, status(500)),
        "/down": status(503),
        "/html": lambda h, q: h.send(body=b"<html>"),
        "/refuse": lambda h, q: h.send(
            body=f"bad key {h.path} {h.headers['Authorization']} {KEY} {PASSWORD}".encode(),
            status=401,
        ),
        "/slow": stalls,
        "/cut": cut,
    }
    answers, client = ask(server, *server.routes, "/gone", cache=tmp_path, fresh_s=60)
    assert answers[0] == {"fine": True} and answers[1] == {"you": " ".join(["***"] * 5)}
    complaints = [e for e in answers if isinstance(e, RacingError)]
    assert len(complaints) == 5
    told = [
        repr(client),
        repr(client.keys),
        *map(str, complaints),
        *map(repr, complaints),
        *(json.dumps(e.as_dict()) for e in complaints),
    ]
    told += [
        "".join(traceback.TracebackException.from_exception(e, capture_locals=False).format())
        for e in complaints
    ]
    told += [record.getMessage() for record in caplog.records] + list(capfd.readouterr())
    told += [str(p) for p in tmp_path.rglob("*")]
    kept = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert any("HTTP Request: GET" in line for line in told), (
        "httpx no longer logs addresses: this test looks at nothing"
    )
    assert b"fine" in kept
    for secret in SECRETS:
        assert not [line for line in told if secret in line], secret
        assert secret.encode() not in kept, secret


def test_no_part_of_a_key_survives_where_a_complaint_is_cut(server):
    for padding in range(150, 210, 5):
        server.routes["/x"] = lambda h, q, n=padding: h.send(
            body=b"x" * n + f"{PASSWORD} {KEY}".encode(), status=401
        )
        assert PASSWORD[:4] not in str(ask(server, "/x")[0][0]) and KEY[:4] not in str(
            ask(server, "/x")[0][0]
        )


def test_an_answer_that_repeats_a_key_is_not_kept(server, tmp_path):
    server.routes["/echo"] = {"you": KEY}
    for _ in range(2):
        ask(server, "/echo", cache=tmp_path, fresh_s=60)
    assert server.times("/echo") == 2


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org",
        f"https://{USER}:{KEY}@example.org",
        "example.org",
        "",
        "file:///etc/passwd",
        f"https://x/?appid={KEY}",
        "https://",
    ],
)
def test_addresses_that_would_give_a_key_away(url):
    with pytest.raises(BadInput) as e:
        Client(url)
    assert KEY not in str(e.value) and USER not in str(e.value)


@pytest.mark.parametrize("env", [{}, {"ADA_KEY": ""}, {"ADA_KEY": " \n"}])
def test_a_missing_key_is_named(env):
    with pytest.raises(BadInput, match="ADA_KEY"):
        need("ADA_KEY", env)


def test_plain_code_and_a_busy_loop_alike():
    async def inner():
        return 7

    async def notebook():
        return wait(inner())

    assert wait(inner()) == 7 and asyncio.run(notebook()) == 7


@given(
    st.one_of(
        st.none(),
        st.text(),
        st.integers().map(str),
        st.datetimes().map(lambda d: d.strftime("%a, %d %b %Y %H:%M:%S GMT")),
    )
)
def test_any_retry_after_is_a_pause(value):
    assert 0 <= retry_after(value, datetime(2026, 1, 1, tzinfo=UTC)) < float("inf")


@given(st.text(min_size=4), st.text(min_size=4), st.text(min_size=4), st.text())
def test_any_key_is_hidden(user, password, key, around):
    keys = Keys((user, password), {"appid": key})
    hidden = keys.hide(f"{around}|{key}|{quote(key)}|{quote_plus(key)}|{password}|{user}")
    assert all(
        secret not in hidden.replace("***", "") or secret in around
        for secret in (key, password, user)
    )
