"""The WebSocket of the front under a real gunicorn worker: events, limits, slow readers, and how connections end."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect

from serving.api.realtime.responses import MAX_OPEN
from serving.config import Stage
from tests.api.gunicorn_app import BODY_TIMEOUT_S, PAYLOAD_LIMIT_BYTES
from tests.api.test_connections import ABORT_LIMIT_S, Server, serve

PATH = "/invocations-bidirectional-stream"
Event = dict[str, Any]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(grace_s=10) as (running, _):
        yield running


def open_socket(server: Server, path: str = PATH, **options: Any) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{server.port}{path}", compression=None, **options)


def create(event_id: str, prompt: str = "hello", **fields: Any) -> str:
    return json.dumps({"type": "response.create", "event_id": event_id, "prompt": prompt, **fields})


def receive(ws: ClientConnection) -> Event:
    event: Event = json.loads(ws.recv(timeout=10))
    return event


def until_done(ws: ClientConnection, num_responses: int = 1) -> list[Event]:
    events = []
    while num_responses:
        events.append(receive(ws))
        num_responses -= events[-1]["type"] == "response.done"
    return events


def text_of(events: list[Event], event_id: str) -> str:
    mine = [event for event in events if event["event_id"] == event_id]
    return "".join(choice["text"] for event in mine for choice in event.get("choices", ()))


def running(server: Server) -> int:
    number: int = json.loads(server.get("/test/engine")[1])["running"]
    return number


def wait_idle(server: Server, limit_s: float = 5.0) -> float:
    started_s = time.monotonic()
    while running(server):
        assert time.monotonic() - started_s < limit_s, "generations go on"
        time.sleep(0.01)
    return time.monotonic() - started_s


def test_responses_after_each_other_and_at_once(server: Server) -> None:
    with open_socket(server, PATH + "?session=1") as ws:
        for event_id in ("first", "second"):
            ws.send(create(event_id))
            events = until_done(ws)
            assert text_of(events, event_id) == "hello"
            assert {event["event_id"] for event in events} == {event_id}
            assert events[0]["type"] == "text_completion"
            assert events[-1] == {"type": "response.done", "event_id": event_id, "status": "completed"}
        ws.send(create("a", "nap"))
        ws.send(create("b"))
        both = until_done(ws, 2)
        assert (text_of(both, "a"), text_of(both, "b")) == ("rested", "hello")
        assert [event["event_id"] for event in both if event["type"] == "response.done"] == ["b", "a"]


def test_an_id_is_made_where_none_is_given(server: Server) -> None:
    with open_socket(server) as ws:
        ws.send(json.dumps({"type": "response.create", "prompt": "hello"}))
        events = until_done(ws)
        assert len({event["event_id"] for event in events}) == 1
        assert events[0]["event_id"].startswith("event_")


@pytest.mark.parametrize(
    ("frame", "field", "event_id"),
    [
        ("no json", None, None),
        ("[1]", "event", None),
        ("", None, None),
        (b"\x00\x01", "event", None),
        ("{}", "type", None),
        ('{"type": 3}', "type", None),
        ('{"type": "response.dance", "event_id": "x"}', "type", "x"),
        ('{"type": "response.create", "event_id": "x"}', "input", "x"),
        ('{"type": "response.create", "event_id": 7, "prompt": "hello"}', "event_id", None),
        ('{"type": "response.create", "event_id": "", "prompt": "hello"}', "event_id", None),
        ('{"type": "response.create", "event_id": "x", "prompt": "hello", "stream": false}', "stream", "x"),
        ('{"type": "response.create", "type": "response.create"}', None, None),
        ('{"type": "response.cancel", "event_id": "gone"}', "event_id", "gone"),
        ('{"type": "response.cancel", "reason": "x"}', "reason", None),
    ],
)
def test_odd_frames_get_an_error_and_the_connection_goes_on(
    server: Server, frame: str | bytes, field: str | None, event_id: str | None
) -> None:
    with open_socket(server) as ws:
        ws.send(frame)
        error = receive(ws)
        assert (error["type"], error["event_id"]) == ("error", event_id)
        assert set(error["error"]) == {"message", "type", "param", "code", "request_id"}
        assert (error["error"]["type"], error["error"]["param"]) == ("invalid_request_error", field)
        assert 400 <= error["status"] < 500
        ws.send(create("next"))
        assert text_of(until_done(ws), "next") == "hello"


def test_what_is_wrong_with_a_request_is_said_as_its_route_says_it(server: Server) -> None:
    with open_socket(server) as ws:
        ws.send(create("x", max_tokens=-1))
        error, done = until_done(ws)
        assert (error["type"], error["event_id"], error["status"]) == ("error", "x", 400)
        assert error["error"]["param"] == "max_tokens"
        assert done == {"type": "response.done", "event_id": "x", "status": "failed"}


def test_requests_at_once_are_bounded_and_ids_unique(server: Server) -> None:
    with open_socket(server) as ws:
        for number in range(MAX_OPEN):
            ws.send(create(str(number), "silent"))
        ws.send(create("one more"))
        error = receive(ws)
        assert (error["event_id"], error["status"], error["retry_after_s"]) == ("one more", 429, 1)
        ws.send(create("3"))
        assert receive(ws)["error"]["param"] == "event_id"
        ws.send('{"type": "response.cancel"}')
        ended = until_done(ws, MAX_OPEN)
        assert {event["status"] for event in ended} == {"cancelled"}
    wait_idle(server)


def test_what_is_cancelled_before_it_began_says_so_too(server: Server) -> None:
    with open_socket(server) as ws:
        frames = [create("x", "silent"), '{"type": "response.cancel", "event_id": "x"}']
        # In one piece, so that they are read together.
        ws.socket.sendall(b"".join(Frame(Opcode.TEXT, text.encode()).serialize(mask=True) for text in frames))
        assert receive(ws) == {"type": "response.done", "event_id": "x", "status": "cancelled"}
        ws.send(create("y"))
        assert text_of(until_done(ws), "y") == "hello"
    wait_idle(server)


def test_cancel_ends_one_response_at_once(server: Server) -> None:
    with open_socket(server) as ws:
        ws.send(create("long", "drip"))
        ws.send(create("other", "drip"))
        receive(ws)
        ws.send('{"type": "response.cancel", "event_id": "long"}')
        asked_s = time.monotonic()
        assert [event["event_id"] for event in until_done(ws)][-1] == "long"
        assert time.monotonic() - asked_s < ABORT_LIMIT_S
        assert running(server) == 1
        assert receive(ws)["event_id"] == "other"
    wait_idle(server)


@pytest.mark.parametrize("politely", [True, False])
def test_a_client_that_leaves_ends_its_responses(server: Server, politely: bool) -> None:
    with open_socket(server) as ws:
        for number in range(3):
            ws.send(create(str(number), "drip"))
        while running(server) < 3:
            receive(ws)
        if politely:
            ws.close()
        else:
            ws.socket.shutdown(socket.SHUT_RDWR)
        assert wait_idle(server) < ABORT_LIMIT_S


def test_fragments_are_one_event(server: Server) -> None:
    with open_socket(server) as ws:
        ws.send(iter([part for part in create("é🙂")]))
        ws.ping().wait(5)
        assert text_of(until_done(ws), "é🙂") == "hello"


def test_pings_are_answered_between_fragments_and_while_events_flow(server: Server) -> None:
    with open_socket(server) as ws:
        ws.send(create("flow", "drip"))
        for _ in range(5):
            assert ws.ping().wait(2)
            receive(ws)


def test_the_largest_message_is_taken_and_a_larger_one_closes(server: Server) -> None:
    event = create("big", "hello", user="")
    with open_socket(server) as ws:
        ws.send(create("big", "hello", user="x" * (PAYLOAD_LIMIT_BYTES - len(event))))
        assert text_of(until_done(ws), "big") == "hello"
        with pytest.raises(ConnectionClosed) as closed:
            for _ in range(40):  # far more than the buffers of the connection hold
                ws.send(iter(["x" * 10_000] * 100))
            ws.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


@pytest.mark.parametrize("payload", [b"\xff\xfe", b'{"a": "\xed\xa0\x80"}'])
def test_text_that_is_no_utf8_closes(server: Server, payload: bytes) -> None:
    with open_socket(server) as ws:
        frame = Frame(Opcode.TEXT, payload).serialize(mask=True)
        ws.socket.sendall(frame)
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1007


def test_broken_frames_close_with_a_protocol_error(server: Server) -> None:
    with open_socket(server) as ws:
        ws.socket.sendall(b"\xf1\x80\x00\x00\x00\x00")  # reserved bits
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1002


def test_a_message_that_stops_in_its_middle_closes(server: Server) -> None:
    with open_socket(server) as ws:
        ws.socket.sendall(Frame(Opcode.TEXT, b'{"type"', fin=False).serialize(mask=True))
        started_s = time.monotonic()
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason[:9]) == (1008, "a message")
        assert time.monotonic() - started_s < BODY_TIMEOUT_S + 2


def test_other_paths_are_closed_and_plain_requests_told(server: Server) -> None:
    for path in ("/nothing", "/ping", "/invocations", PATH + "/x"):
        with open_socket(server, path) as ws, pytest.raises(ConnectionClosed) as closed:
            ws.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
    assert server.get(PATH)[0] == 426
    assert server.get("/nothing")[0] == 404
    assert server.get("/ping")[0] == 200


def test_bad_handshakes_are_refused(server: Server) -> None:
    for headers in ("Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "X: y"):
        with server.connect() as sock:
            head = f"GET {PATH} HTTP/1.1\r\nhost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{headers}"
            sock.sendall(f"{head}\r\n\r\n".encode())
            assert sock.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_before_the_server_is_ready_the_handshake_is_refused(server: Server) -> None:
    for stage in ("loading", "draining"):
        server.publish(Stage(stage=stage))
        try:
            with pytest.raises(InvalidStatus) as refused:
                open_socket(server)
        finally:
            server.publish(Stage(stage="ready"))
        assert refused.value.response.status_code == 503
        assert json.loads(refused.value.response.body)["error"]["type"] == "server_error"


def test_a_slow_reader_is_cut_off_and_keeps_nobody_waiting(server: Server) -> None:
    slow = server.connect(receive_buffer_bytes=4096)
    options: dict[str, Any] = {"sock": slow, "compression": None, "max_queue": 1, "close_timeout": 1}
    with connect("ws://x" + PATH, **options) as ws, open_socket(server) as other:
        ws.send(create("flood", "flood", logprobs=5))
        other.send(create("quick"))  # behind what it takes the fake engine to make floods
        until_done(other)
        for _ in range(5):
            started_s = time.monotonic()
            other.send(create("quick"))
            assert text_of(until_done(other), "quick") == "hello"
            assert time.monotonic() - started_s < 2.0
        wait_idle(server, 20.0)
        with pytest.raises(ConnectionClosed):
            while receive(ws)["type"] != "response.done":
                continue


def test_many_connections_at_once(server: Server, full: bool) -> None:
    with ExitStack() as stack:
        sockets = [stack.enter_context(open_socket(server)) for _ in range(200 if full else 40)]
        for ws in sockets:
            ws.send(create("x", "nap"))
        started_s = time.monotonic()
        assert server.get("/ping")[0] == 200
        assert time.monotonic() - started_s < 2.0
        for ws in sockets:
            assert text_of(until_done(ws), "x") == "rested"


def test_open_responses_end_before_the_server_does() -> None:
    with serve(grace_s=10) as (server, process), open_socket(server) as idle, open_socket(server) as busy:
        busy.send(create("last", "drip", max_tokens=5))
        receive(busy)
        server.publish(Stage(stage="draining"))
        with pytest.raises(ConnectionClosed) as closed:
            idle.recv(timeout=5)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
        busy.send(create("late"))
        while (event := receive(busy))["type"] != "error":
            continue
        assert (event["event_id"], event["status"]) == ("late", 503)
        assert receive(busy)["event_id"] in ("late", "last")
        process.send_signal(signal.SIGTERM)
        busy.send('{"type": "response.cancel"}')
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                receive(busy)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
        process.wait(10)
