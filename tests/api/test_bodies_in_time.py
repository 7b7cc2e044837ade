"""The front under a real gunicorn gevent worker: bodies that take their time, and bodies of many lines."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.gunicorn_app import BODY_TIMEOUT_S, NAP_S, PAYLOAD_LIMIT_BYTES
from tests.api.test_connections import Server, read_answer, request_bytes, serve, wait_for

NUM_LINES = 40


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(grace_s=10) as (running, _):
        yield running


def lines(*prompts: str) -> bytes:
    body = "".join(json.dumps({"inputs": prompt}) + "\n" for prompt in prompts).encode()
    return request_bytes(body).replace(b"application/json\r", b"application/jsonlines\r")


def test_a_body_that_keeps_coming_may_take_longer_than_a_silent_one(server: Server) -> None:
    padding = "x" * (PAYLOAD_LIMIT_BYTES - 200)
    whole = request_bytes({"inputs": "hello", "note": padding})
    started_s = time.monotonic()
    with server.connect() as sock:
        for part in (whole[:45_000], whole[45_000:90_000], whole[90_000:]):
            sock.sendall(part)
            if part != whole[90_000:]:
                time.sleep(BODY_TIMEOUT_S * 0.75)
        status, _, _ = read_answer(sock)
    assert time.monotonic() - started_s > BODY_TIMEOUT_S
    assert status == 200


def test_a_large_body_that_falls_silent_is_given_up(server: Server) -> None:
    """What it sent pays for a slow rate, not for silence."""
    whole = request_bytes({"inputs": "hello", "note": "x" * (PAYLOAD_LIMIT_BYTES - 200)})
    with server.connect() as sock:
        sock.sendall(whole[:-5])
        sent_s = time.monotonic()
        status, headers, body = read_answer(sock)
        assert BODY_TIMEOUT_S * 0.9 < time.monotonic() - sent_s < BODY_TIMEOUT_S + 0.5
    assert (status, headers["connection"], json.loads(body)["error_type"]) == (408, "close", "body_timeout")


def test_a_body_in_drops_has_no_more_time_than_a_silent_one(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /invocations HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        started_s = time.monotonic()
        sock.settimeout(0.1)
        received = b""
        while not received:
            assert time.monotonic() - started_s < 2 * BODY_TIMEOUT_S
            sock.sendall(b"1\r\n{\r\n")
            try:
                received = sock.recv(4096)
            except TimeoutError:
                continue
    assert received.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - started_s < BODY_TIMEOUT_S + 0.5


def test_lines_run_side_by_side(server: Server) -> None:
    started_s = time.monotonic()
    with server.connect() as sock:
        sock.sendall(lines(*["nap", "hello"] * (NUM_LINES // 2)))
        status, headers, body = read_answer(sock)
        took_s = time.monotonic() - started_s
        assert (status, headers["content-type"]) == (200, "application/jsonlines")
        answers = [json.loads(line)[0]["generated_text"] for line in body.splitlines()]
        assert answers == ["naprested", "hellohello"] * (NUM_LINES // 2)
        assert took_s < NUM_LINES // 2 * NAP_S / 2
        sock.sendall(request_bytes({"inputs": "hello"}))
        assert read_answer(sock)[0] == 200  # the connection is still in order


def test_ping_and_others_are_answered_meanwhile(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(lines(*["nap"] * NUM_LINES))
        began_s = time.monotonic()
        assert server.get("/ping", timeout_s=2)[0] == 200
        assert time.monotonic() - began_s < 0.5
        assert read_answer(sock)[0] == 200


def test_a_client_that_leaves_frees_all_its_lines(server: Server) -> None:
    known = set(server.ended())
    # As many as the rig takes at once, and one that must never begin.
    sock = server.connect()
    sock.sendall(lines(*["silent", "never", "drip"] * 22))
    while json.loads(server.get("/test/engine")[1])["running"] < 64:
        time.sleep(0.02)
    sock.close()
    wait_for(server, known, 64)
    assert json.loads(server.get("/test/engine")[1])["running"] == 0


def test_a_large_number_of_bad_lines(server: Server) -> None:
    with server.connect() as sock:
        body = b"{\n" * 1000
        sock.sendall(request_bytes(body).replace(b"application/json\r", b"application/x-jsonlines\r"))
        status, _, answer = read_answer(sock)
    assert status == 200
    assert [json.loads(line)["status"] for line in answer.splitlines()] == [400] * 1000


def test_lines_that_are_cut_at_the_end_of_the_grace_time_say_so() -> None:
    with serve(grace_s=1) as (stopping, process), stopping.connect() as sock:
        sock.sendall(lines("hello", "silent", "never", "silent"))
        while json.loads(stopping.get("/test/engine")[1])["running"] < 3:
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        status, _, body = read_answer(sock)
    assert status == 200
    first, *rest = [json.loads(line) for line in body.splitlines()]
    assert first == [{"generated_text": "hellohello"}]
    assert [(error["status"], error["error_type"]) for error in rest] == [(503, "draining")] * 3
