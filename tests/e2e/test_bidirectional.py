"""The WebSocket of a real server: the same text as over HTTP, many connections, the key, aborts and the drain."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from local_mode.server_process import ServerProcess
from tests.e2e.conftest import metric, serving, wait_until
from tests.e2e.native_calls import ask

PATH = "/invocations-bidirectional-stream"
KEY = "sk-canary-77"
Event = dict[str, Any]


@pytest.fixture(scope="module")
def server(server_environment: dict[str, str]) -> Iterator[ServerProcess]:
    with serving(server_environment, API_WORKERS="2", MAX_CONCURRENT_REQUESTS="256") as running:
        yield running


def open_socket(server: ServerProcess, **headers: str) -> ClientConnection:
    address = f"ws://127.0.0.1:{server.port}{PATH}"
    return connect(address, compression=None, additional_headers=headers, open_timeout=30)


def create(event_id: str, **body: Any) -> str:
    return json.dumps({"type": "response.create", "event_id": event_id, **body})


def long_answer(event_id: str) -> str:
    return create(event_id, prompt="Once upon a time", max_tokens=400)


def until_done(ws: ClientConnection) -> list[Event]:
    events: list[Event] = []
    while not events or events[-1]["type"] != "response.done":
        events.append(json.loads(ws.recv(timeout=60)))
    return events


def test_the_text_is_that_of_the_routes(server: ServerProcess) -> None:
    asked = {"input": "Tell me of the sea 🌊.", "temperature": 0, "max_output_tokens": 24}
    over_http = ask(server, "POST", "/v1/responses", asked).json
    with open_socket(server) as ws:
        ws.send(create("one", **asked))
        events = until_done(ws)
    assert {event["event_id"] for event in events} == {"one"}
    assert [event["type"] for event in events][:2] == ["response.created", "response.in_progress"]
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert text == over_http["output"][-1]["content"][0]["text"]
    assert events[-2]["response"]["usage"] == over_http["usage"] | {
        "input_tokens_details": events[-2]["response"]["usage"]["input_tokens_details"]
    }
    assert events[-1]["status"] == "completed"


def test_a_seeded_chat_is_the_same_twice_at_once_and_over_http(server: ServerProcess) -> None:
    messages = [{"role": "user", "content": "Who lives there?"}]
    asked = {"messages": messages, "seed": 11, "temperature": 1.0, "max_tokens": 20}
    over_http = ask(server, "POST", "/v1/chat/completions", asked).json["choices"][0]["message"]["content"]
    with open_socket(server) as ws:
        ws.send(create("a", **asked))
        ws.send(create("b", **asked))
        events = until_done(ws) + until_done(ws)
    for event_id in ("a", "b"):
        mine = [event for event in events if event["event_id"] == event_id]
        deltas = [choice["delta"] for event in mine for choice in event.get("choices", ())]
        assert "".join(delta.get("content", "") for delta in deltas) == over_http


def test_cancelling_and_leaving_abort_at_once(server: ServerProcess) -> None:
    def is_idle() -> bool:
        return metric(server, "textgen_sequences_running") == 0

    with open_socket(server) as ws:
        ws.send(long_answer("x"))
        ws.recv(timeout=30)
        ws.send('{"type": "response.cancel", "event_id": "x"}')
        assert until_done(ws)[-1]["status"] == "cancelled"
        wait_until(is_idle, limit_s=5.0, what="the cancelled generation goes on")
        ws.send(long_answer("y"))
        ws.recv(timeout=30)
    wait_until(is_idle, limit_s=5.0, what="the generation of a client that left goes on")


def test_many_connections_leave_room_for_the_ping(server: ServerProcess, full: bool) -> None:
    with ExitStack() as stack:
        sockets = [stack.enter_context(open_socket(server)) for _ in range(200 if full else 50)]
        for ws in sockets:
            ws.send(create("x", prompt="Once", max_tokens=8))
        for _ in range(5):
            started_s = time.monotonic()
            assert ask(server, "GET", "/ping").status == 200
            assert time.monotonic() - started_s < 2.0
        for ws in sockets:
            assert until_done(ws)[-1]["status"] == "completed"


def test_responses_are_logged_under_the_ids_of_their_connection(server: ServerProcess) -> None:
    with open_socket(server, **{"x-request-id": "my-connection"}) as ws:
        ws.send(create("x", prompt="Once", max_tokens=2))
        until_done(ws)
    wait_until(
        lambda: "request_id=my-connection\n" in server.log + "\n", limit_s=5.0, what="the connection's line"
    )
    [response] = [line for line in server.log.splitlines() if "request_id=my-connection/1" in line]
    assert "route=/v1/completions status=200" in response
    [connection] = [line for line in server.log.splitlines() if line.endswith("request_id=my-connection")]
    assert f"route={PATH} status=101" in connection


def test_the_key_is_asked_for_when_the_connection_is_made(server_environment: dict[str, str]) -> None:
    with serving(server_environment, API_KEY=KEY) as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            with pytest.raises(InvalidStatus) as refused, open_socket(server, **headers):
                pass
            assert refused.value.response.status_code == 401
        with open_socket(server, Authorization=f"Bearer {KEY}") as ws:
            ws.send(create("x", prompt="Once", max_tokens=2))
            assert until_done(ws)[-1]["status"] == "completed"
            code = code_at_the_end(server, ws)
        assert code == 1001


def code_at_the_end(server: ServerProcess, idle: ClientConnection) -> int | None:
    """SIGTERM while one connection generates and `idle` does not; the code that `idle` is closed with."""
    with open_socket(server, Authorization=f"Bearer {KEY}") as busy:
        busy.send(create("last", prompt="Once upon a time", max_tokens=60))
        busy.recv(timeout=30)
        server.terminate()
        assert until_done(busy)[-1]["status"] == "completed"
        with pytest.raises(ConnectionClosed) as closed:
            busy.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
    with pytest.raises(ConnectionClosed) as closed:
        idle.recv(timeout=10)
    return None if closed.value.rcvd is None else closed.value.rcvd.code


def test_metrics_of_cloudwatch_come_from_one_worker(server_environment: dict[str, str]) -> None:
    settings = {"CLOUDWATCH_EMF": "true", "CLOUDWATCH_EMF_INTERVAL_S": "1", "CLOUDWATCH_EMF_ENDPOINT": "chat"}
    with serving(server_environment, API_WORKERS="2", JSON_OUTPUT="true", **settings) as server:
        for _ in range(6):
            body = {"inputs": "Once", "parameters": {"max_new_tokens": 4}}
            assert ask(server, "POST", "/generate", body).status == 200

        def documents() -> list[Event]:
            objects = [json.loads(line) for line in server.log.splitlines()]
            return [each for each in objects if "_aws" in each]

        wait_until(
            lambda: sum(each["Requests"] for each in documents()) == 6,
            limit_s=20.0,
            what="the requests' metrics",
        )
        found = documents()
        times = [each["_aws"]["Timestamp"] for each in found]
        assert all(later - earlier > 900 for earlier, later in itertools.pairwise(times))
        assert {(each["Endpoint"], each["Errors"]) for each in found} == {("chat", 0)}
        assert any("TimeToFirstTokenP50" in each for each in found)
