"""Calls as they arrive through SageMaker's proxies and from clients of every kind: without a content type, in odd parts,
wrong in ways that must be told shortly."""

from __future__ import annotations

import http.client
import json
import random
import socket
import time
from collections.abc import Iterator

import pytest

from local_mode.server_process import ServerProcess
from tests.e2e.conftest import LIMIT_S
from tests.e2e.native_calls import Answer, ask

# One, two, three and four bytes of UTF-8, a joined emoji and a combining mark.
TEXT = "Once upon a time, ein Mädchen, 从前有一个女孩, \U0001f469\u200d\U0001f680 e\u0301"
GOLDEN = json.dumps({"inputs": TEXT, "parameters": {"max_new_tokens": 4}}, ensure_ascii=False).encode()
PAUSE_S = 0.02
MAX_ERROR_BYTES = 1024

Pieces = list[bytes]


def send(server: ServerProcess, pieces: Pieces, *, pause_s: float = 0.0, limit_s: float = LIMIT_S) -> Answer:
    """Each piece in a segment of its own, and the answer to what they are together."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=limit_s) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
            if pause_s:
                time.sleep(pause_s)  # the pause is what is sent
        response = http.client.HTTPResponse(connection)
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())


def head(*lines: str, path: str = "/invocations") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: model.aws.local:8080", *lines, "", ""]).encode()


def with_length(body: bytes, *lines: str) -> bytes:
    return head("Content-Type: application/json", f"Content-Length: {len(body)}", *lines) + body


def bytewise(data: bytes) -> Pieces:
    return [data[at : at + 1] for at in range(len(data))]


def at_random(data: bytes, rng: random.Random, cuts: int) -> Pieces:
    places = sorted(rng.sample(range(1, len(data)), cuts))
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


def within_characters(data: bytes) -> Pieces:
    """Cut before every byte that continues a character, and nowhere else."""
    places = [at for at in range(len(data)) if data[at] & 0xC0 == 0x80]
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


def chunked(pieces: Pieces, extension: str = "") -> Pieces:
    """One chunk of each piece, and the end."""
    chunks = [f"{len(piece):x}{extension}\r\n".encode() + piece + b"\r\n" for piece in pieces]
    return [head("Content-Type: application/json", "Transfer-Encoding: chunked"), *chunks, b"0\r\n\r\n"]


def cuts() -> Iterator[tuple[str, Pieces]]:
    """A name and the pieces of the same request, each time cut differently."""
    rng = random.Random(7)
    start, whole = with_length(b"x" * len(GOLDEN))[: -len(GOLDEN)], with_length(GOLDEN)
    yield "content-length, byte by byte, head included", bytewise(whole)
    yield "content-length, within characters", [start, *within_characters(GOLDEN)]
    yield "content-length, within the head", at_random(whole, rng, 9)
    yield "content-length, the head and then all", [start, GOLDEN]
    yield "chunked, byte by byte", chunked(bytewise(GOLDEN))
    yield "chunked, within characters", chunked(within_characters(GOLDEN))
    yield "chunked, one chunk", chunked([GOLDEN])
    yield "chunked, with extensions", chunked(at_random(GOLDEN, rng, 5), ";part=1")
    yield "chunked, the frames cut as well", at_random(b"".join(chunked(bytewise(GOLDEN))), rng, 60)
    yield "chunked, frames byte by byte", bytewise(b"".join(chunked([GOLDEN])))
    yield "chunked, all at once", [b"".join(chunked(within_characters(GOLDEN)))]


@pytest.fixture(scope="module")
def golden(container: ServerProcess) -> bytes:
    answer = ask(container, "POST", "/invocations", GOLDEN)
    assert answer.status == 200 and TEXT in answer.json[0]["generated_text"]
    return answer.body


def test_a_body_cut_in_odd_parts_is_the_same_body(
    container: ServerProcess, golden: bytes, full: bool
) -> None:
    for name, pieces in cuts():
        answer = send(container, pieces)
        assert (answer.status, answer.body) == (200, golden), name
        if len(pieces) <= 40 or full:
            answer = send(container, pieces, pause_s=PAUSE_S)
            assert (answer.status, answer.body) == (200, golden), f"{name}, with pauses"
    rng = random.Random(8)
    for number in range(500 if full else 20):
        pieces = at_random(with_length(GOLDEN), rng, rng.randrange(1, 40))
        assert send(container, pieces).body == golden, number


@pytest.mark.parametrize(
    "content_type", [None, "application/octet-stream", "application/json; charset=utf-8", "APPLICATION/JSON"]
)
def test_an_absent_content_type_means_json(
    container: ServerProcess, golden: bytes, content_type: str | None
) -> None:
    """boto3 sends none without `ContentType`."""
    named = [] if content_type is None else [f"Content-Type: {content_type}"]
    answer = send(container, [head(f"Content-Length: {len(GOLDEN)}", *named) + GOLDEN])
    assert (answer.status, answer.body) == (200, golden)
    assert answer.headers["content-type"] == "application/json"
    if content_type is None:
        broken = GOLDEN[:-1]
        refused = send(container, [head(f"Content-Length: {len(broken)}") + broken])
        assert 400 <= refused.status < 500 and len(refused.body) < MAX_ERROR_BYTES


def wrong_requests() -> Iterator[tuple[str, bytes]]:
    """What clients send by mistake or on purpose; each name says what is wrong."""
    bodies: dict[str, object] = {
        "a value of 100 KB": {"inputs": "a", "parameters": {"max_new_tokens": "9" * 100_000}},
        "a model's name of 100 KB": {"model": "m" * 100_000, "messages": []},
        "a role of 100 KB": {"messages": [{"role": "r" * 100_000, "content": "x"}]},
        "1,000 wrong messages": {"messages": [{"role": "nobody"}] * 1000},
        "a prompt over the context": {"inputs": "a b " * 30_000},
        "a chat over the context": {"messages": [{"role": "user", "content": "a b " * 30_000}]},
        "an answer over the context": {"inputs": "a", "parameters": {"max_new_tokens": 10**9}},
        "a grammar that is none": {
            "inputs": "a",
            "parameters": {"grammar": {"type": "json", "value": {"type": "z" * 50_000}}},
        },
        "a regular expression that is none": {
            "inputs": "a",
            "parameters": {"grammar": {"type": "regex", "value": "(" * 5000}},
        },
        "no known key": {"k" * 50_000: 1},
        "input": {"input": "x"},
        "an adapter": {"inputs": "a", "adapters": "n" * 50_000},
    }
    for name, body in bodies.items():
        yield name, with_length(json.dumps(body).encode())
    yield "no JSON", with_length(b"{" * 50_000)
    yield "no UTF-8", with_length(b'{"inputs": "' + b"\xff" * 5000 + b'"}')
    yield "no body", head("Content-Type: application/json", "Content-Length: 0")
    yield "no HTTP", b"\x16\x03\x01" + b"A" * 200 + b"\r\n\r\n"
    yield "a path of 8 KB", head("Content-Length: 0", path="/" + "p" * 8000)
    yield "a request line over the limit", head("Content-Length: 0", path="/" + "p" * 9000)
    yield "a header over the limit", with_length(GOLDEN, "X-Long: " + "v" * 20_000)
    yield "too many headers", with_length(GOLDEN, *(f"X-{number}: 1" for number in range(150)))
    yield "an unknown route", head("Content-Length: 0", path="/models/x/invoke")
    yield "a wrong method", b"DELETE /invocations HTTP/1.1\r\nHost: a\r\n\r\n"
    yield "another type", head("Content-Type: application/x-npy", f"Content-Length: {len(GOLDEN)}") + GOLDEN
    yield "a long other type", head(f"Content-Type: a/{'b' * 9000}", "Content-Length: 2") + b"{}"
    yield "over the limit", head("Content-Type: application/json", f"Content-Length: {1 << 30}")
    yield "a length that is none", head("Content-Type: application/json", "Content-Length: ten")
    yield "chunks that are none", head("Transfer-Encoding: chunked") + b"zz\r\n"
    yield "a long session", with_length(GOLDEN, f"X-Amzn-SageMaker-Session-Id: {'s' * 5000}")
    yield "an unknown session", with_length(GOLDEN, "X-Amzn-SageMaker-Session-Id: unheard-of")
    yield "an adapter's header", with_length(GOLDEN, f"X-Amzn-SageMaker-Adapter-Identifier: {'a' * 5000}")
    yield "another model", with_length(GOLDEN, "X-Amzn-SageMaker-Target-Model: s3://b/a.tar.gz")


def test_every_error_is_json_below_1_kb(container: ServerProcess, golden: bytes) -> None:
    longest = ("", 0)
    for name, request in wrong_requests():
        answer = send(container, [request])
        assert 400 <= answer.status < 500, (name, answer.status)
        assert len(answer.body) < MAX_ERROR_BYTES, (name, answer.body)
        assert answer.headers["content-type"] == "application/json", name
        error = answer.json["error"]
        assert isinstance(error, str) or error["message"], (name, error)
        longest = max(longest, (name, len(answer.body)), key=lambda entry: entry[1])
    assert send(container, [with_length(GOLDEN)]).body == golden, "the next caller is not harmed"
    print(f"longest error: {longest[1]} bytes ({longest[0]})")
