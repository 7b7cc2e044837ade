"""The front under a real gunicorn gevent worker: clients that leave, dawdle, stall or send broken frames."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serving.config import STAGE_FILE, Stage
from tests.api.gunicorn_app import BODY_TIMEOUT_S, PAYLOAD_LIMIT_BYTES

ABORT_LIMIT_S = 0.5
ROOT = Path(__file__).parents[2]


class Server:
    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port

    def connect(self, receive_buffer_bytes: int | None = None) -> socket.socket:
        sock = socket.socket()
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        sock.settimeout(20)
        sock.connect(("127.0.0.1", self.port))
        return sock

    def get(self, path: str, *, timeout_s: float = 20) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def ended(self) -> dict[str, float]:
        ended: dict[str, float] = json.loads(self.get("/test/engine")[1])["ended"]
        return ended

    def publish(self, stage: Stage) -> None:
        temporary = self.directory / "new"
        temporary.write_bytes(msgspec.json.encode(stage))
        temporary.replace(self.directory / STAGE_FILE)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(grace_s=10) as (running, _):
        yield running


@contextmanager
def serve(*, grace_s: int) -> Iterator[tuple[Server, subprocess.Popen[bytes]]]:
    with tempfile.TemporaryDirectory(prefix="front-") as name, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(512)
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "gunicorn",
                "--worker-class=gevent",
                "--worker-connections=1000",
                "--no-control-socket",
                "--keep-alive=5",
                f"--graceful-timeout={grace_s}",
                f"--worker-tmp-dir={name}",
                f"--bind=fd://{listener.fileno()}",
                "--log-level=warning",
                f"tests.api.gunicorn_app:build({name!r})",
            ],
            pass_fds=[listener.fileno()],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            running = Server(Path(name), listener.getsockname()[1])
            assert running.get("/ping", timeout_s=60)[0] == 200
            yield running, process
        finally:
            process.terminate()
            process.wait(20)


def request_bytes(body: Any, path: str = "/invocations", headers: str = "") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{headers}"
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


def read_answer(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    response = http.client.HTTPResponse(sock)
    response.begin()
    return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()


def wait_for(server: Server, known: set[str], count: int) -> dict[str, float]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        new = {key: when for key, when in server.ended().items() if key not in known}
        if len(new) == count:
            return new
        time.sleep(0.02)
    raise AssertionError("the requests of clients that left were never freed")


@pytest.mark.parametrize(
    ("prompt", "stream", "reads"),
    [
        ("never", True, b""),
        ("never", False, b""),
        ("silent", True, b"\r\n\r\n"),
        ("silent", True, b":\n\n"),
        ("silent", False, b""),
        ("drip", True, b'"index":3'),
        ("drip", False, b""),
    ],
)
@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
def test_a_client_that_leaves_frees_its_request(
    server: Server, prompt: str, stream: bool, reads: bytes, reset: bool
) -> None:
    delays = []
    for _ in range(3):
        known = set(server.ended())
        running = json.loads(server.get("/test/engine")[1])["running"]
        sock = server.connect()
        sock.sendall(request_bytes({"inputs": prompt, "stream": stream}))
        received = b""
        while reads not in received:
            received += sock.recv(4096)
        while json.loads(server.get("/test/engine")[1])["running"] == running:
            time.sleep(0.01)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        left = time.monotonic()
        sock.close()
        (ended,) = wait_for(server, known, 1).values()
        delays.append(ended - left)
    assert statistics.median(delays) <= ABORT_LIMIT_S
    assert max(delays) <= 4 * ABORT_LIMIT_S


def test_many_clients_that_leave_at_once(server: Server) -> None:
    known = set(server.ended())
    sockets = []
    for number in range(30):
        sock = server.connect()
        prompt = ("never", "silent", "drip")[number % 3]
        sock.sendall(request_bytes({"inputs": prompt, "stream": number % 2 == 0}))
        sockets.append(sock)
    while json.loads(server.get("/test/engine")[1])["running"] < 30:
        time.sleep(0.02)
    for sock in sockets:
        sock.close()
    wait_for(server, known, 30)


def test_headers_come_before_the_first_token(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(request_bytes({"inputs": "silent", "stream": True}))
        response = http.client.HTTPResponse(sock)
        response.begin()
        assert response.status == 200
        assert response.getheader("content-type") == "text/event-stream"
        assert response.readline() == b":\n"


def test_whole_and_streamed_over_the_wire(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(request_bytes({"inputs": "hello"}))
        status, headers, body = read_answer(sock)
        assert (status, body) == (200, b'[{"generated_text":"hellohello"}]')
        assert headers["connection"] == "keep-alive"
        sock.sendall(request_bytes({"inputs": "hello"}, "/generate_stream"))
        status, headers, body = read_answer(sock)
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        assert body.count(b"data: ") == 5 and body.endswith(b"}\n\n")


def test_bytes_sent_ahead_are_not_a_disconnect(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(request_bytes({"inputs": "hello"}) + request_bytes({"inputs": "drip", "stream": True}))
        # Each HTTPResponse may buffer what follows its own answer, so the bytes are looked at directly.
        received = b""
        while b'"index":20' not in received:
            received += sock.recv(4096)
        assert received.count(b"HTTP/1.1 200 OK") == 2


def test_requests_sent_ahead_keep_nobody_waiting(server: Server) -> None:
    num_ahead, line = 1500, b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n"
    with server.connect() as hasty, server.connect() as other:
        hasty.sendall(line * num_ahead)
        assert hasty.recv(12) == b"HTTP/1.1 200"
        other.sendall(line)
        assert other.recv(12) == b"HTTP/1.1 200"
        hasty.setblocking(False)
        answers = b""
        with contextlib.suppress(BlockingIOError):
            while data := hasty.recv(1_000_000):
                answers += data
        assert answers.count(b"HTTP/1.1 200") < num_ahead - 1


def test_a_refusal_keeps_the_connection(server: Server) -> None:
    with server.connect() as sock:
        for body in (b"{", {"inputs": ""}, {"inputs": "hello"}):
            sock.sendall(request_bytes(body))
            status, headers, _ = read_answer(sock)
            assert headers["connection"] == "keep-alive"
        assert status == 200


def test_slow_bodies_do_not_stop_ping_and_end_with_408(server: Server) -> None:
    slow = []
    for number in range(100):
        sock = server.connect()
        if number % 2:
            sock.sendall(request_bytes({"inputs": "hello"})[:-5])
        else:
            head = b"POST /invocations HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            sock.sendall(head + b'5\r\n{"inp\r\n')
        slow.append(sock)
    sent = time.monotonic()
    times = []
    while time.monotonic() - sent < BODY_TIMEOUT_S / 2:
        began = time.monotonic()
        assert server.get("/ping", timeout_s=2)[0] == 200
        times.append(time.monotonic() - began)
    assert statistics.median(times) < 0.1
    for sock in slow:
        with sock:
            status, headers, body = read_answer(sock)
            assert (status, headers["connection"]) == (408, "close")
            assert json.loads(body)["error_type"] == "body_timeout"
            assert sock.recv(1) == b""


CHUNKED = b"POST /invocations HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("chunks", "status"),
    [
        (b'12\r\n{"inputs":"hello"}\r\n0\r\n\r\n', 200),
        (b"".join(b"1\r\n%c\r\n" % byte for byte in b'{"inputs":"hello"}') + b"0\r\n\r\n", 200),
        (b"zz\r\n{}\r\n0\r\n\r\n", 400),
        (b"-1\r\n{}\r\n0\r\n\r\n", 400),
        (b"0x2\r\n{}\r\n0\r\n\r\n", 400),
        (b"2\r\n{}xx0\r\n\r\n", 400),
        (b"\r\n{}\r\n0\r\n\r\n", 400),
        (b"ffffffffffffffffffff\r\n{}", 408),
        (b"2\r\n{}\r\n0\r\nbad trailer\r\n\r\n", 400),
        (b"0\r\n\r\n", 400),
    ],
)
def test_chunked_bodies(server: Server, chunks: bytes, status: int) -> None:
    with server.connect() as sock:
        sock.sendall(CHUNKED + chunks)
        answered, _, body = read_answer(sock)
        assert answered == status, body
        assert status == 200 or set(json.loads(body)) == {"error", "error_type", "request_id"}
    assert server.get("/ping")[0] == 200


def test_a_declared_body_over_the_limit_is_refused_unread(server: Server) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 1073741824\r\n\r\n")
        status, headers, body = read_answer(sock)
        assert (status, headers["connection"]) == (413, "close")
        assert json.loads(body)["error_type"] == "payload_too_large"


@pytest.mark.parametrize(
    "line", ["GET /ping", "GET /generate", "POST /health", "POST /nothing", "GET /v1/models"]
)
@pytest.mark.parametrize("framing", ["content-length: 1073741824", "transfer-encoding: chunked"])
def test_a_body_that_nobody_wants_stays_unread(server: Server, line: str, framing: str) -> None:
    with server.connect() as sock:
        sock.sendall(f"{line} HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n".encode())
        status, headers, _ = read_answer(sock)
        assert status in (200, 404, 405)
        assert headers["connection"] == "close"


def test_the_answer_survives_a_body_that_is_still_being_sent(server: Server) -> None:
    with server.connect() as sock:
        size = 3_000_000
        sock.sendall(b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size)
        assert read_answer(sock)[0] == 413


@pytest.mark.parametrize("chunk", [1, 1000, 100_000])
def test_a_chunked_body_over_the_limit_is_refused(server: Server, chunk: int) -> None:
    with server.connect() as sock:
        sock.sendall(CHUNKED)
        piece = b"%x\r\n%s\r\n" % (chunk, b"x" * chunk)
        sent = 0
        block = piece * max(1, 10_000 // chunk)
        while sent <= PAYLOAD_LIMIT_BYTES:
            sock.sendall(block)
            sent += len(block) * chunk // len(piece)
        assert read_answer(sock)[0] == 413
    assert server.get("/ping")[0] == 200


def test_a_reader_that_stalls_is_cut_and_its_request_freed(server: Server) -> None:
    known = set(server.ended())
    with server.connect(receive_buffer_bytes=4096) as sock:
        sock.sendall(request_bytes({"inputs": "flood", "stream": True}))
        wait_for(server, known, 1)
        assert server.get("/ping")[0] == 200


def test_draining_is_seen_at_once(server: Server) -> None:
    with server.connect() as running:
        running.sendall(request_bytes({"inputs": "drip", "stream": True}))
        assert running.recv(15) == b"HTTP/1.1 200 OK"
        server.publish(Stage(stage="draining"))
        try:
            assert server.get("/ping")[0] == 503
            with server.connect() as sock:
                sock.sendall(request_bytes({"inputs": "hello"}))
                status, headers, body = read_answer(sock)
                assert (status, headers["connection"]) == (503, "close")
                assert json.loads(body)["error_type"] == "draining"
                assert sock.recv(1) == b""
            assert b"index" in running.recv(100_000) + running.recv(100_000)
        finally:
            server.publish(Stage(stage="ready"))


def test_what_is_cut_at_the_end_of_the_grace_time_gets_an_answer() -> None:
    with serve(grace_s=1) as (server, process), server.connect() as whole, server.connect() as stream:
        whole.sendall(request_bytes({"inputs": "silent"}))
        stream.sendall(request_bytes({"inputs": "silent", "stream": True}))
        response = http.client.HTTPResponse(stream)
        response.begin()
        while json.loads(server.get("/test/engine")[1])["running"] < 2:
            time.sleep(0.02)
        # The worker alone: gunicorn's master would kill it at the moment it gives up waiting.
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        last = response.read().split(b"data: ")[-1]
        assert json.loads(last)["error_type"] == "draining"
        status, _, body = read_answer(whole)
        assert (status, json.loads(body)["error_type"]) == (503, "draining")
