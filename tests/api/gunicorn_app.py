"""The front as gunicorn loads it in tests, around a fake engine that does what the prompt says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from flask import Flask, Response

from serving.api import connection
from serving.api.app import create_app
from serving.api.readiness import StageFile
from serving.config import STAGE_FILE, HttpConfig, LimitsConfig, ServerConfig, Stage
from serving.messages import AddRequest
from tests.api.fake_engine import FakeEngine, FakeStream, FakeText, hello

PAYLOAD_LIMIT_BYTES = 100_000
BODY_TIMEOUT_S = 1.5
STALLED_READER_S = 1.0
NAP_S = 0.3


def drip(stream: FakeStream) -> None:
    """A token every 20 ms for as long as somebody listens."""
    stream.accept()
    while not stream.closed:
        stream.tokens("x")
        time.sleep(0.02)


def nap(stream: FakeStream) -> None:
    """An answer after a while."""
    time.sleep(NAP_S)
    stream.accept()
    stream.tokens("rested", "length")


def flood(stream: FakeStream) -> None:
    """Far more than socket buffers hold."""
    stream.accept()
    for _ in range(3000):
        stream.tokens("x" * 50)


SCRIPTS: dict[str, Callable[[FakeStream], None]] = {
    "hello": hello,
    "never": lambda stream: None,
    "silent": lambda stream: stream.accept(),
    "drip": lambda stream: threading.Thread(target=drip, args=(stream,), daemon=True).start(),
    "flood": flood,
    "nap": lambda stream: threading.Thread(target=nap, args=(stream,), daemon=True).start(),
}


class TimedEngine(FakeEngine):
    def __init__(self) -> None:
        super().__init__(lambda stream: SCRIPTS[bytes(stream.request.prompt_token_ids).decode()](stream))
        self.ended: dict[str, float] = {}

    def submit(self, *requests: AddRequest) -> FakeStream:
        stream = super().submit(*requests)
        close = stream.close

        def closing() -> None:
            self.ended.setdefault(stream.request.request_id, time.monotonic())
            close()

        stream.close = closing  # type: ignore[method-assign]
        return stream


def build(run_dir: str) -> Flask:
    connection.STALLED_READER_S = STALLED_READER_S
    directory = Path(run_dir)
    (directory / STAGE_FILE).write_bytes(msgspec.json.encode(Stage(stage="ready")))
    config = ServerConfig(
        limits=LimitsConfig(payload_limit_bytes=PAYLOAD_LIMIT_BYTES),
        http=HttpConfig(body_timeout_s=BODY_TIMEOUT_S, heartbeat_s=0.5),
    )
    engine, text = TimedEngine(), FakeText()
    app = create_app(engine, lambda: text, config, StageFile(directory / STAGE_FILE))

    @app.get("/test/engine")
    def state() -> Response:
        running = len(engine.streams) - len(engine.ended)
        return Response(json.dumps({"running": running, "ended": engine.ended}))

    return app
