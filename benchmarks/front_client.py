"""A client that costs little: many streams in one loop, and requests one after the other on connections that stay. For
measuring the front, with which it shares the machine.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_READ_BYTES = 256 * 1024
_LIMIT_S = 120.0
_LOGPROB = re.compile(rb'"logprob":-([0-9.]+)')


def request_bytes(path: str, body: object | None = None) -> bytes:
    """`body` makes it a POST of JSON."""
    if body is None:
        return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


@dataclass(slots=True)
class Window:
    """What happened while every stream was running. `cpu_s` is whatever was asked for, over that time."""

    num_tokens: int = 0
    num_reads: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    path_s: list[float] = field(default_factory=list)
    """From the engine's step to the client, of tokens that carry the time of their step."""


@dataclass(slots=True)
class _Stream:
    sock: socket.socket
    num_events: int = 0
    tail: bytes = b""


class StreamsClient:
    """Opens `num_streams` over `opening_s` and reads them to their ends.

    The window begins when each has `skipped` events, and ends with the first that has all but `skipped`.
    """

    def __init__(
        self,
        port: int,
        request: bytes,
        *,
        num_streams: int,
        num_events: int,
        skipped: int,
        opening_s: float = 0.0,
    ) -> None:
        self._port = port
        self._request = request
        self._num_streams = num_streams
        self._num_events = num_events
        self._skipped = skipped
        self._opening_s = opening_s
        self._selector = selectors.DefaultSelector()
        self._behind = num_streams
        self._window = Window()
        self._began_s = 0.0
        self._measures = False

    def run(self, cpu_s: Callable[[], float]) -> Window:
        """Raises `RuntimeError` when a stream did not end as it should."""
        began_s = time.monotonic()
        num_opened = num_ended = 0
        while num_ended < self._num_streams:
            passed_s = time.monotonic() - began_s
            if passed_s > _LIMIT_S:
                raise RuntimeError(
                    f"{self._num_streams - num_ended} streams had not ended after {_LIMIT_S:g} s"
                )
            due = self._num_streams
            if passed_s < self._opening_s:
                due = 1 + int(self._num_streams * passed_s / self._opening_s)
            for _ in range(num_opened, due):
                self._open()
            num_opened = due
            for key, _ in self._selector.select(0.001 if due < self._num_streams else 1.0):
                num_ended += self._read(key.data, cpu_s)
        self._selector.close()
        return self._window

    def _open(self) -> None:
        sock = socket.create_connection(("127.0.0.1", self._port))
        sock.sendall(self._request)
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, _Stream(sock))

    def _read(self, stream: _Stream, cpu_s: Callable[[], float]) -> bool:
        """True when the stream has ended."""
        data = stream.sock.recv(_READ_BYTES)
        now_s = time.monotonic()
        new = data.count(b"data: {")
        before, stream.num_events = stream.num_events, stream.num_events + new
        if before < self._skipped <= stream.num_events:
            self._behind -= 1
            if not self._behind:
                self._measures = True
                self._began_s = now_s
                self._window.cpu_s = -cpu_s()
        elif self._measures and new:
            self._window.num_tokens += new
            self._window.num_reads += 1
            self._window.path_s += [now_s - float(text) for text in _LOGPROB.findall(data)]
            if stream.num_events >= self._num_events - self._skipped:
                self._measures = False
                self._window.cpu_s += cpu_s()
                self._window.wall_s = now_s - self._began_s
        stream.tail = (stream.tail + data)[-2048:]
        if data and not stream.tail.endswith(b"\r\n0\r\n\r\n"):
            return False
        self._selector.unregister(stream.sock)
        stream.sock.close()
        if stream.num_events < self._num_events or b'"error"' in stream.tail:
            raise RuntimeError(f"a stream ended with {stream.num_events} events: {stream.tail[-300:]!r}")
        return True


def request_times(port: int, request: bytes, *, num_connections: int, seconds: float) -> list[float]:
    """Seconds of each request, sent one after the other on each connection. Raises `RuntimeError` for an answer that is not
    200."""
    taken_s: list[float] = []
    end_s = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for _ in range(num_connections):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(request)
            selector.register(sock, selectors.EVENT_READ, [time.monotonic(), b""])
        while selector.get_map():
            for key, _ in selector.select(10.0):
                sock = key.fileobj  # type: ignore[assignment]
                key.data[1] += sock.recv(_READ_BYTES)
                if not _is_whole(key.data[1]):
                    continue
                if not key.data[1].startswith(b"HTTP/1.1 200"):
                    raise RuntimeError(f"answered {key.data[1][:300]!r}")
                now_s = time.monotonic()
                taken_s.append(now_s - key.data[0])
                if now_s >= end_s:
                    selector.unregister(sock)
                    sock.close()
                    continue
                key.data[:] = [time.monotonic(), b""]
                sock.sendall(request)
    return taken_s


def _is_whole(answer: bytes) -> bool:
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return False
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return length is not None and len(body) >= int(length[1])
