"""Whatever a client sends to a real server is answered with a 4xx that says what is wrong, and harms nobody else."""

from __future__ import annotations

import http.client
import json
import random
import socket
from collections.abc import Iterator

import pytest

from local_mode.server_process import ServerProcess
from tests.e2e.conftest import metric, pid_of, serving, wait_until

ROUTES = ("/generate", "/generate_stream", "/invocations", "/")
GOLDEN = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 20, "details": True}}
NUMBERS: list[object] = [
    -1, 0, 1, 2, 3, 5, 2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1, 2**64, 10**40, -(2**63) - 1,
    -0.0, 0.5, 1.0, 1.5, 1e-300, 1e38, 1e39, 1e308, -1e308,
]  # fmt: skip
OTHERS: list[object] = [
    None,
    True,
    False,
    "",
    "1",
    "NaN",
    [],
    [1],
    {},
    {"a": 1},
    "x" * 5000,
    "\u0000",
    "\U0001f600",
]
FIELDS = [
    "best_of", "temperature", "repetition_penalty", "frequency_penalty", "top_k", "top_p", "typical_p", "do_sample",
    "max_new_tokens", "return_full_text", "stop", "truncate", "watermark", "details", "decoder_input_details", "seed",
    "top_n_tokens", "grammar", "adapter_id", "unheard_of",
]  # fmt: skip
BODIES = [
    b"", b"{", b"[]", b"null", b'"text"', b"1", b"{}", b'{"inputs":}', b'{"inputs":"a","inputs":"b"}',
    b'{"inputs":"a","parameters":{"temperature":NaN}}', b'{"inputs":"a","parameters":{"temperature":1e400}}',
    b'{"inputs":"a","parameters":{"seed":-1}}', b'{"inputs":"\\ud800"}', b"\xff\xfe{}", b"\xef\xbb\xbf{}",
    b'{"inputs":' + b"[" * 100_000, b'{"inputs":"' + b"a" * 300_000 + b'"}', b'{"inputs":""}', b'{"inputs":["a"]}',
    b'{"messages":[{"role":"user","content":"hi"}]}', b'{"prompt":"hi"}',
    b'{"inputs":"a","stream":"yes","parameters":{"max_new_tokens":2}}',
    b'{"inputs":"a","parameters":[]}', b'{"inputs":"a","parameters":{"stop":[""]}}',
    b'{"inputs":"<|begin_of_text|>' + b"<|end_of_turn|>" * 50 + b'","parameters":{"max_new_tokens":3}}',
]  # fmt: skip


@pytest.fixture(scope="module")
def server(server_environment: dict[str, str]) -> Iterator[ServerProcess]:
    with serving(server_environment, MAX_BEST_OF="3") as server:
        yield server


def _post(
    port: int, path: str, body: bytes, content_type: str = "application/json"
) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", path, body, {"content-type": content_type})
        response = connection.getresponse()
        return response.status, response.getheader("content-type", ""), response.read()
    finally:
        connection.close()


def _golden(port: int) -> object:
    status, _, body = _post(port, "/generate", json.dumps(GOLDEN).encode())
    assert status == 200
    return json.loads(body)


def _assert_honest(status: int, content_type: str, body: bytes, sent: object) -> None:
    assert status == 200 or 400 <= status < 500, (sent, status, body)
    if status != 200:
        assert content_type.startswith("application/json"), sent
        error = json.loads(body)
        assert set(error) >= {"error", "error_type", "request_id"} and error["error"], sent
        assert len(body) < 1024, sent
        for leak in (b"Traceback", b".py", b"site-packages", b"0x"):
            assert leak not in body, (sent, body)


def test_any_value_in_any_field(server: ServerProcess, full: bool) -> None:
    """A seeded sample of field, value and route; three fields at once, so that checks meet each other."""
    rng = random.Random(5)
    golden, engine = _golden(server.port), pid_of(server, "engine")
    statuses = []
    for _ in range(3000 if full else 250):
        parameters: dict[str, object] = {"max_new_tokens": 2}
        for field in rng.sample(FIELDS, rng.choice([1, 1, 2, 3])):
            value = rng.choice(NUMBERS if rng.random() < 0.6 else OTHERS)
            parameters[field] = [value] if field == "stop" and rng.random() < 0.5 else value
        if parameters["max_new_tokens"] != 2 and not isinstance(
            parameters["max_new_tokens"], int | float | str
        ):
            parameters["max_new_tokens"] = 2
        body = {"inputs": rng.choice(["a", "Once upon", "日本 🙂", " ", "\n"]), "parameters": parameters}
        path = rng.choice(ROUTES)
        status, content_type, answer = _post(server.port, path, json.dumps(body).encode())
        _assert_honest(status, content_type, answer, (path, body))
        statuses.append(status)
    assert 200 in statuses and 422 in statuses
    assert pid_of(server, "engine") == engine
    assert _golden(server.port) == golden


@pytest.mark.parametrize("path", ROUTES)
def test_broken_bodies(server: ServerProcess, path: str) -> None:
    golden = _golden(server.port)
    for body in BODIES:
        status, content_type, answer = _post(server.port, path, body)
        _assert_honest(status, content_type, answer, (path, body[:80]))
    assert _golden(server.port) == golden


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"temperature": 0}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"typical_p": 0}, "typical_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 10**9}, "max_new_tokens"),
        ({"truncate": 0}, "truncate"),
        ({"best_of": 4, "do_sample": True}, "best_of"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"top_n_tokens": 6}, "top_n_tokens"),
        ({"seed": "1"}, "seed"),
        ({"grammar": {"type": "json"}}, "grammar"),
        ({"watermark": 1}, "watermark"),
        ({"adapter_id": "mine"}, "adapter_id"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
    ],
)
def test_the_field_is_named(server: ServerProcess, parameters: dict[str, object], field: str) -> None:
    for path in ROUTES:
        status, _, body = _post(
            server.port, path, json.dumps({"inputs": "a", "parameters": parameters}).encode()
        )
        assert 400 <= status < 500, (path, status, body)
        assert field in json.loads(body)["error"], (path, body)


def test_other_content_types_and_paths(server: ServerProcess) -> None:
    for content_type in (
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
    ):
        status, kind, body = _post(server.port, "/invocations", json.dumps(GOLDEN).encode(), content_type)
        assert status == 415
        _assert_honest(status, kind, body, content_type)
    for path in ("/nothing", "/x/../generate", "/generate.json", "/ping/x", "/%2e%2e/generate"):
        status, kind, body = _post(server.port, path, b"{}")
        assert status in (404, 405)
        _assert_honest(status, kind, body, path)


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /ping HTTP/9.9\r\nhost: a\r\n\r\n", 400),
        (b"GET /ping HTTP/1.1\r\nhost: a\r\nbad header\r\n\r\n", 400),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 414),
        (b"GET /ping HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 200 + b"\r\n", 431),
        (b"POST /generate HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", 400),
        (b"POST /generate HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
    ],
)
def test_malformed_http_is_answered_in_json_too(
    server: ServerProcess, request_head: bytes, status: int
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request_head)
        with connection.makefile("rb") as reader:
            line = reader.readline().split()
            assert int(line[1]) == status
            headers = {}
            while header := reader.readline().strip():
                name, _, value = header.partition(b":")
                headers[name.lower()] = value.strip()
            error = json.loads(reader.read(int(headers[b"content-length"])))
    assert error["error"] and error["error_type"]
    assert error["request_id"] == headers[b"x-request-id"].decode()


def test_nothing_is_left_behind(server: ServerProcess) -> None:
    wait_until(lambda: metric(server, "tgi_batch_current_size") == 0, limit_s=2.0, what="idle")
    assert metric(server, "textgen_kv_blocks_free") == metric(server, "textgen_kv_blocks")
