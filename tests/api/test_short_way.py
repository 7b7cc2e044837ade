"""Plain tokens that are written while their call waits: the same bytes as through the queue, in order, whatever the client
does. Under a real gunicorn gevent worker."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from serving.api.native_reply import stream_event
from serving.api.roles import TokenText
from serving.api.streaming import SSE, NativeEvents
from tests.api.gunicorn_app import PIECES, TORRENT_TOKENS
from tests.api.test_connections import Server, read_answer, request_bytes, serve

NUM_PLAIN = len("".join(PIECES).encode()) - 1  # one is special
NATIVE, CHAT, COMPLETIONS = "/generate_stream", "/v1/chat/completions", "/v1/completions"
RESPONSES = "/v1/responses"
_PROMPTS = {COMPLETIONS: "prompt", RESPONSES: "input"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(grace_s=10) as (running, _):
        yield running


def state(server: Server) -> dict[str, int]:
    counts: dict[str, int] = json.loads(server.get("/test/engine")[1])
    return counts


def taken(server: Server) -> int:
    return state(server)["taken"]


def body_of(server: Server, path: str, script: str, fields: dict[str, Any], headers: str = "") -> bytes:
    """What differs from call to call is taken out."""
    if path == CHAT:
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": script}]}
    else:
        asked = {_PROMPTS.get(path, "inputs"): script}
    with server.connect() as sock:
        sock.sendall(request_bytes(asked | fields, path, headers))
        status, _, body = read_answer(sock)
    assert status == 200, body
    return re.sub(rb'"id":"[a-z]+-[0-9a-f]{32}"|"created":\d+', b"", body)


STREAM = {"stream": True}
DETAILS = {"parameters": {"details": True}}


@pytest.mark.parametrize(
    ("path", "fields", "headers"),
    [
        (NATIVE, {}, ""),
        (NATIVE, DETAILS, ""),
        ("/invocations", STREAM, ""),
        ("/invocations", STREAM, "accept: application/jsonlines\r\n"),
        (CHAT, STREAM, ""),
        (CHAT, STREAM | {"stream_options": {"include_usage": True}}, ""),
        (COMPLETIONS, STREAM, ""),
        ("/generate", DETAILS, ""),
        ("/invocations", {}, ""),
        (CHAT, {}, ""),
        (COMPLETIONS, {}, ""),
    ],
)
def test_plain_tokens_make_the_same_bytes(
    server: Server, path: str, fields: dict[str, Any], headers: str
) -> None:
    through_queue = body_of(server, path, "early", fields, headers)
    before = taken(server)
    assert body_of(server, path, "later", fields, headers).replace(b"later", b"early") == through_queue
    # A chat's first token brings the role; in the queue every special token is followed by those of its turn.
    assert taken(server) - before >= NUM_PLAIN - 2


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (NATIVE, {"parameters": {"stop": ["zzz"]}}),
        (NATIVE, {"parameters": {"top_n_tokens": 2}}),
        (CHAT, STREAM | {"logprobs": True}),
        (CHAT, STREAM | {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}),
        (CHAT, STREAM | {"stop": "nothing"}),
        (COMPLETIONS, STREAM | {"logprobs": 1}),
        (RESPONSES, STREAM),
    ],
)
def test_others_go_through_the_queue(server: Server, path: str, fields: dict[str, Any]) -> None:
    before = taken(server)
    assert body_of(server, path, "later", fields)
    assert taken(server) == before


def test_a_slow_reader_gets_every_token_once(server: Server) -> None:
    before = state(server)["blocked"]
    with server.connect(receive_buffer_bytes=4096) as sock:
        sock.sendall(request_bytes({"inputs": "torrent"}, NATIVE))
        until_s = time.monotonic() + 10
        while state(server)["blocked"] == before and time.monotonic() < until_s:
            time.sleep(0.01)
        _, _, body = read_answer(sock)
    events = [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: ")]
    assert [event["index"] for event in events] == list(range(1, TORRENT_TOKENS + 2))
    text = "".join(chr(97 + number % 26) for number in range(TORRENT_TOKENS)) + "!"
    assert "".join(event["token"]["text"] for event in events) == text == events[-1]["generated_text"]
    assert state(server)["blocked"] > before


def test_a_plain_event_is_what_the_struct_says() -> None:
    events = NativeEvents(SSE)
    for index, (text, logprob) in enumerate(
        [
            ("a", -0.25),
            ('"\\\n', -1e-7),
            ("\x00é家\U0001f600", 0.0),
            ("", float("-inf")),
            ("x", float("nan")),
        ],
        1,
    ):
        struct = stream_event(index, TokenText(index * 7, text, logprob, False))
        assert events.event(index * 7, text, logprob) == SSE.frame(struct)
