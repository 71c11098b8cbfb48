"""The service: POST a card, get ranked probabilities.

One bundle for the life of the process, one worker answers whole races.

The annotations of `decode_request` and `encode_response` are read by LitServe, so this
module must not postpone their evaluation.
"""

import asyncio
import json
import logging
import multiprocessing
import multiprocessing.util
import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import litserve
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from racing_core.config import Home
from racing_core.config import home as home_of
from racing_core.errors import RacingError, as_error
from racing_core.release.bundle import manifest_of, read
from racing_core.serving.answer import Health, Prediction
from racing_core.serving.contract import NO_MODEL, Card, complaint, complaints
from racing_core.serving.guard import MAX_BODY
from racing_core.serving.predictor import Predictor
from racing_core.serving.process import follow_parent, overdue, patience_s

PREDICT, HEALTH = "/api/v2/predict", "/api/v2/health"
_LOG = logging.getLogger(__name__)
_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Stop:
    """What SIGTERM does: interrupt the owner, once, and not before the server stands, or children
    would be torn while they are handed their work."""

    def __init__(self):
        self.owner, self.standing, self.asked = os.getpid(), False, False

    def __call__(self, signum: int, frame: object) -> None:
        if os.getpid() != self.owner:  # a child that was forked with this handler
            raise SystemExit(0)
        signal.signal(
            signal.SIGTERM, signal.SIG_IGN
        )  # a second one must not interrupt the cleaning up
        self.asked = True
        if self.standing:
            raise KeyboardInterrupt

    def stand(self) -> None:
        "All children are there: interrupt now if that was asked for meanwhile."
        self.standing = True
        if self.asked:
            raise KeyboardInterrupt


class Patient(AutoHTTPProtocol):
    "A connection whose requests come in time, head and body, or it is cut."

    seconds, linger, _timer, _late = 10.0, 1.0, None, False

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        if self._late:
            return
        self._expect()
        super().data_received(data)
        if (c := self.cycle) and not overdue(True, not c.more_body, c.response_complete):
            self._relax()

    def connection_lost(self, exc: Exception | None) -> None:
        self._relax()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._timer = self._timer or self.loop.call_later(self.seconds, self._cut)

    def _relax(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = None

    def _cut(self) -> None:
        if self.transport.is_closing():
            return
        self._late = True
        self.transport.write(_LATE)
        self.transport.write_eof()
        # closed at once, what the client still sends would reset the connection before it has read why
        self.loop.call_later(self.linger, self.transport.close)


class Server(litserve.LitServer):
    "A LitServer that says when all of its processes have been started."

    def _start_server(self, *args, **kwargs) -> dict:
        workers = super()._start_server(*args, **kwargs)
        self.stop.stand()
        return workers


class PredictAPI(litserve.LitAPI):
    "A card in, a prediction out. Cards are validated before they are queued."

    def __init__(self, bundle_folder: Path | None, home: Home):
        super().__init__(api_path=PREDICT)
        self.bundle_folder, self.home = bundle_folder, home

    def setup(self, device: str) -> None:
        follow_parent()
        folder = self.bundle_folder
        self.predictor = None if folder is None else Predictor.of(read(folder), self.home)
        if self.predictor:
            self.predictor.warm()

    def decode_request(self, request: Card) -> Card:
        return request

    def predict(self, card: Card) -> Prediction:
        if self.predictor is None:
            raise HTTPException(503, NO_MODEL)
        try:
            answer = self.predictor.predict(card)
            self.predictor.ask_later(card, datetime.now(UTC))
            return answer
        except RacingError as e:
            said = complaint(["body", e.where or "card"], e.message, "refused")
            raise HTTPException(422, [said]) from e
        except BaseException as e:  # a panic of polars is no Exception, and would end the worker
            if isinstance(e, KeyboardInterrupt | SystemExit):
                raise
            _LOG.error("%s", as_error(e).message)
            said = complaint(["body"], "a fault of the service; the card is not at fault", "fault")
            raise HTTPException(500, [said]) from None

    def encode_response(self, output: Prediction) -> Prediction:
        return output


async def _bad_card(request: Request, e: RequestValidationError) -> Response:
    "422 with the fields named."
    detail = complaints(e.errors(), request.headers.get("content-type", ""))
    return Response(json.dumps({"detail": detail}), 422, media_type="application/json")


def _describe(app: FastAPI) -> None:
    "What the OpenAPI page says about the service."
    app.title, app.version = "racing-core", "2"
    app.description = "Win probabilities for a race card."
    route = next(r for r in app.routes if getattr(r, "path", "") == PREDICT)
    route.summary = "Rank the runners of a card"
    route.description = "Send one race; get its starters ranked, with probabilities that sum to 1."
    route.responses = {
        413: {"description": f"Body over {MAX_BODY} bytes"},
        503: {"description": "No model is promoted"},
    }


def build(
    bundle_folder: Path | None,  # a promoted bundle; None: there is none yet
    workers: int = 1,  # processes that answer
    home: Home | None = None,  # holds the cache of semantic scores; the environment's by default
) -> litserve.LitServer:
    "The server, not yet running. A tampered bundle is refused here, with the name of the file."
    manifest, started = manifest_of(bundle_folder) if bundle_folder else {}, time.monotonic()
    server = Server(
        PredictAPI(bundle_folder, home or home_of()),
        accelerator="cpu",
        workers_per_device=workers,
        max_payload_size=MAX_BODY,
    )
    server.stop = Stop()
    server.app.add_exception_handler(RequestValidationError, _bad_card)

    @server.app.get(HEALTH, summary="Is there a model, and which?")
    def health(response: Response) -> Health:
        response.status_code = 200 if manifest else 503
        return Health.of(manifest, time.monotonic() - started)

    _describe(server.app)
    return server


def run(
    host: str,  # 127.0.0.1, or 0.0.0.0 to be reached from outside
    port: int,
    bundle_folder: str | Path | None,  # a promoted bundle; None: answer 503 until there is one
    workers: int = 1,  # processes that answer
    home: Home | None = None,  # holds the cache of semantic scores; the environment's by default
) -> None:
    "Serve until SIGINT or SIGTERM; leave no process behind."
    protocol = type("Patient", (Patient,), {"seconds": patience_s()})
    server = build(Path(bundle_folder) if bundle_folder else None, workers, home)
    multiprocessing.util.register_after_fork(server, lambda _: follow_parent())
    signal.signal(signal.SIGTERM, server.stop)
    try:
        server.run(
            host=host,
            port=port,
            num_api_servers=1,
            generate_client_file=False,
            log_level="warning",
            http=protocol,
        )
    except KeyboardInterrupt:  # while LitServe was starting; later it catches it itself
        pass
    finally:
        for child in multiprocessing.active_children():
            child.terminate()
            child.join(5)
            if child.is_alive():
                child.kill()
