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
PATIENCE_S = 0.05
TORRENT_TOKENS = 60_000


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


PIECES = ["a", "é", "b ", "家", '"\n', "\U0001f600", "$", "end"]


def pieces_early(stream: FakeStream) -> None:
    """Everything is there before anybody waits for it: it goes through the queue."""
    stream.accept()
    for byte in "".join(PIECES).encode():
        stream.tokens(chr(byte))
    stream.tokens("!", "length", queue_s=0.25, inference_s=0.5)


def pieces_late(stream: FakeStream) -> None:
    """The same, one by one to a call that waits: it takes the short way."""
    stream.accept()
    for byte in "".join(PIECES).encode():
        until_s = time.monotonic() + PATIENCE_S
        while not stream.waits and time.monotonic() < until_s:
            time.sleep(0.0)
        stream.tokens(chr(byte))
    stream.tokens("!", "length", queue_s=0.25, inference_s=0.5)


def torrent(stream: FakeStream) -> None:
    """Without a pause, to a call that waits; more than socket buffers hold."""
    stream.accept()
    for number in range(TORRENT_TOKENS):
        stream.tokens(chr(97 + number % 26))
        if number % 100 == 0:
            time.sleep(0.001)
    stream.tokens("!", "length")


SCRIPTS: dict[str, Callable[[FakeStream], None]] = {
    "hello": hello,
    "never": lambda stream: None,
    "silent": lambda stream: stream.accept(),
    "drip": lambda stream: threading.Thread(target=drip, args=(stream,), daemon=True).start(),
    "flood": flood,
    "early": pieces_early,
    "later": lambda stream: threading.Thread(target=pieces_late, args=(stream,), daemon=True).start(),
    "torrent": lambda stream: threading.Thread(target=torrent, args=(stream,), daemon=True).start(),
    "nap": lambda stream: threading.Thread(target=nap, args=(stream,), daemon=True).start(),
}


def run_script(stream: FakeStream) -> None:
    """What the prompt names, be it a chat's."""
    prompt = bytes(stream.request.prompt_token_ids).decode()
    SCRIPTS[prompt.removeprefix("user: ").partition("\n")[0]](stream)


class TimedEngine(FakeEngine):
    def __init__(self) -> None:
        super().__init__(run_script)
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
        taken = sum(stream.num_taken for stream in engine.streams)
        blocked = sum(stream.num_blocked for stream in engine.streams)
        state = {"running": running, "ended": engine.ended, "taken": taken, "blocked": blocked}
        return Response(json.dumps(state))

    return app
