"""Two real servers for real clients: one open, one that asks for a key and takes one request at a time."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import pytest

from local_mode.server_process import ServerProcess
from tests.e2e.conftest import endless_model_dir, serving, wait_until

__all__ = ["endless_model_dir"]  # a fixture of the end-to-end tests, used here as well

Json = dict[str, Any]

KEY = "a key that only these tests know"
MODEL = "demo"
CLIENT_TIMEOUT_S = 60.0

PROMPT = "Once upon a time"
QUESTION = "Who is Zoë?"
ANSWER = "Zoë is a cheerful girl and the painter of Willowbrook."
PORTRAIT_QUESTION = "Describe Pip as JSON with the keys name, kind and home."
PORTRAIT = {"name": "Pip", "kind": "mouse", "home": "the clock tower"}
PORTRAIT_SCHEMA: Json = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in PORTRAIT},
    "required": list(PORTRAIT),
    "additionalProperties": False,
}
DAYS = ("today", "tomorrow")
DAY_SCHEMA: Json = {
    "type": "object",
    "properties": {"day": {"enum": list(DAYS)}},
    "required": ["day"],
    "additionalProperties": False,
}
FORECAST: Json = {
    "type": "function",
    "function": {"name": "forecast", "description": "the weather of a day", "parameters": DAY_SCHEMA},
}
REMINDER: Json = {
    "type": "function",
    "function": {"name": "remind", "description": "remember a day", "parameters": DAY_SCHEMA},
}


@dataclass(frozen=True)
class Endpoint:
    """A running server as a client sees it."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"

    def send(
        self, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """POST with a body, GET without: status, headers by their lower-case names, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=CLIENT_TIMEOUT_S)
        try:
            given = {"content-type": "application/json", **(headers or {})}
            content = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", path, content, given)
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return response.status, names, response.read()
        finally:
            connection.close()

    def ask(self, path: str, body: object) -> Any:
        """The JSON answer of a request that must succeed."""
        status, _, answer = self.send(path, body)
        assert status == 200, (path, body, status, answer)
        return json.loads(answer)

    def events(self, path: str, body: object) -> list[Any]:
        """The JSON data of each event of a stream that must succeed; the closing `[DONE]` as this string."""
        status, headers, answer = self.send(path, body)
        assert status == 200, (path, body, status, answer)
        assert headers["content-type"].startswith("text/event-stream")
        return [event.data for event in parse_events(answer)]


@dataclass(frozen=True)
class Event:
    """One server-sent event; `name` is empty when it has none."""

    name: str
    data: Any


def parse_events(stream: bytes) -> list[Event]:
    events, name = [], ""
    for line in stream.decode().splitlines():
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            text = line[5:].strip()
            events.append(Event(name, text if text == "[DONE]" else json.loads(text)))
        elif not line:
            name = ""
    return events


def environment(**settings: str) -> dict[str, str]:
    """Small and quiet: one compute thread, a loopback port of its own, nothing from this test run."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAX_", "SM_"))}
    return {
        **inherited,
        "DEVICE": "cpu",
        "HOSTNAME": "127.0.0.1",
        "PORT": "0",
        "NUM_THREADS": "1",
        **settings,
    }


@pytest.fixture(scope="session")
def process() -> Iterator[ServerProcess]:
    """The open server."""
    with serving(environment(MODEL_ID=MODEL)) as server:
        yield server


@pytest.fixture(scope="session")
def endpoint(process: ServerProcess) -> Endpoint:
    return Endpoint(process.port)


@pytest.fixture(scope="session")
def guarded(endless_model_dir: os.PathLike[str]) -> Iterator[Endpoint]:
    """Needs `KEY`, and refuses a second request while one runs; its model never ends by itself."""
    settings = {"MODEL_ID": str(endless_model_dir), "API_KEY": KEY, "MAX_CONCURRENT_REQUESTS": "1"}
    with serving(environment(**settings)) as server:
        yield Endpoint(server.port)


@pytest.fixture
def occupied(guarded: Endpoint) -> Iterator[Endpoint]:
    """The guarded server while its only place is taken."""
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    body = json.dumps({"inputs": "Once upon a time", "parameters": {"max_new_tokens": 2000}})
    with ExitStack() as connections:

        def take_the_place() -> bool:
            """False while the stream of the test before is still being ended."""
            connection = connections.enter_context(
                closing(http.client.HTTPConnection("127.0.0.1", guarded.port, timeout=CLIENT_TIMEOUT_S))
            )
            connection.request("POST", "/generate_stream", body, headers)
            response = connection.getresponse()
            return response.status == 200 and response.readline().startswith(b"data:")

        wait_until(take_the_place, limit_s=CLIENT_TIMEOUT_S, what="a place in the guarded server")
        yield guarded
