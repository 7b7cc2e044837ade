"""The load generator of every HTTP engine: one thread, one selector, times taken when bytes arrive.

Events are understood after the last stream ended: the client shares the cores with what it measures.
"""

from __future__ import annotations

import selectors
import socket
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.peers.contracts import EngineFailed, Measured, Request, RequestTimes, Workload

_RECEIVE_BYTES = 1 << 18
_STALL_LIMIT_S = 300.0
_LAST_CHUNK = b"\r\n0\r\n\r\n"


@dataclass(slots=True)
class Event:
    """What one server-sent event says. `total` is the engine's own count of output tokens, where it tells."""

    num_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    total: int | None = None
    error: str = ""


class Dialect(Protocol):
    """The route of one kind of server."""

    @property
    def path(self) -> str: ...

    def body(self, request: Request) -> bytes:
        """JSON that asks for a stream."""

    def read(self, data: bytes) -> Event:
        """What follows `data:`. Raises ValueError or KeyError when it is nothing this dialect knows."""


@dataclass(slots=True)
class _Stream:
    """One connection: what came, and when, unread."""

    connection: socket.socket
    start_s: float
    pieces: list[bytes] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    content_bytes_left: int | None = None  # of an answer that is no stream

    def take(self, data: bytes, now_s: float) -> bool:
        """True when the answer is complete."""
        if not data:
            return True
        if not self.pieces:
            self.content_bytes_left = _content_length(data)
        elif self.content_bytes_left is not None:
            self.content_bytes_left -= len(data)
        self.pieces.append(data)
        self.times_s.append(now_s)
        if self.content_bytes_left is not None:
            return self.content_bytes_left <= 0
        tail = data if len(data) >= len(_LAST_CHUNK) else b"".join(self.pieces[-8:])
        return tail.endswith(_LAST_CHUNK)


def run_streams(port: int, dialect: Dialect, workload: Workload) -> Measured:
    """Each request on a connection of its own to 127.0.0.1. Raises EngineFailed when nothing comes for 5 minutes."""
    payloads = [_http(dialect, request) for request in workload.requests]
    waiting = deque(range(len(payloads)))
    streams: dict[int, _Stream] = {}
    refused: dict[int, RequestTimes] = {}
    num_open = 0
    cpu_started_s, started_s = time.process_time(), time.perf_counter()
    with selectors.DefaultSelector() as selector:
        while waiting or num_open:
            now_s = time.perf_counter() - started_s
            wait_s = _STALL_LIMIT_S
            while waiting and (workload.concurrency is None or num_open < workload.concurrency):
                index = waiting[0]
                wait_s = workload.requests[index].arrival_s - now_s
                if wait_s > 0:
                    break
                waiting.popleft()
                wait_s = _STALL_LIMIT_S
                try:
                    streams[index] = _open(port, payloads[index], now_s)
                except OSError as error:
                    refused[index] = RequestTimes(
                        start_s=now_s, end_s=now_s, error=f"cannot connect: {error}"
                    )
                    continue
                selector.register(streams[index].connection, selectors.EVENT_READ, streams[index])
                num_open += 1
                now_s = time.perf_counter() - started_s
            if not num_open and not waiting:
                break
            ready = selector.select(min(wait_s, _STALL_LIMIT_S))
            if not ready and wait_s >= _STALL_LIMIT_S:
                _close_all(streams)
                raise EngineFailed(f"{num_open} streams open, and nothing came for {_STALL_LIMIT_S:g} s")
            now_s = time.perf_counter() - started_s
            for key, _ in ready:
                if _receive(key.data, now_s):
                    selector.unregister(key.fileobj)
                    key.data.connection.close()
                    num_open -= 1
    wall_s = time.perf_counter() - started_s
    client_cpu_s = time.process_time() - cpu_started_s
    results = [
        refused[index] if index in refused else _understand(streams[index], dialect)
        for index in range(len(payloads))
    ]
    return Measured(requests=results, wall_s=wall_s, client_cpu_s=client_cpu_s)


def _http(dialect: Dialect, request: Request) -> bytes:
    body = dialect.body(request)
    head = (
        f"POST {dialect.path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"accept: text/event-stream\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


def _open(port: int, payload: bytes, now_s: float) -> _Stream:
    connection = socket.create_connection(("127.0.0.1", port), timeout=_STALL_LIMIT_S)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(payload)
        connection.setblocking(False)
    except OSError:
        connection.close()
        raise
    return _Stream(connection, now_s)


def _receive(stream: _Stream, now_s: float) -> bool:
    try:
        return stream.take(stream.connection.recv(_RECEIVE_BYTES), now_s)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def _close_all(streams: dict[int, _Stream]) -> None:
    for stream in streams.values():
        stream.connection.close()


def _content_length(first: bytes) -> int | None:
    """Bytes still to come of an answer with a stated length; None for a stream."""
    head, _, body = first.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:]) - len(body)
    return None


def _understand(stream: _Stream, dialect: Dialect) -> RequestTimes:
    """Read what came. `end_s` is when the last event arrived, not when the connection was closed."""
    result = RequestTimes(
        start_s=stream.start_s, end_s=stream.times_s[-1] if stream.times_s else stream.start_s
    )
    raw = b"".join(stream.pieces)
    head, separator, _ = raw.partition(b"\r\n\r\n")
    status = head.split(b"\r\n")[0].decode("latin-1")
    if not separator or " 200" not in status:
        body = raw[len(head) + len(separator) :][:300].decode("utf-8", "replace")
        result.error = f"{status}: {body}" if status else "the connection was closed without an answer"
        return result
    is_chunked = b"transfer-encoding: chunked" in head.lower()
    total: int | None = None
    for line, now_s in _lines(raw, len(head) + len(separator), stream, is_chunked=is_chunked):
        if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
            continue
        try:
            event = dialect.read(line[5:])
        except (ValueError, KeyError) as error:
            result.error = f"not understood ({error!r}): {line[:200]!r}"
            return result
        if event.error:
            result.error = event.error
            return result
        result.token_s += [now_s] * event.num_tokens
        result.token_ids += event.token_ids
        total = event.total if event.total is not None else total
        result.end_s = now_s
    result.num_tokens = len(result.token_s) if total is None else total
    result.first_token_s = result.token_s[0] if result.token_s else None
    return result


def _lines(raw: bytes, offset: int, stream: _Stream, *, is_chunked: bool) -> Iterator[tuple[bytes, float]]:
    """Lines of the body, each with the time at which the bytes that complete it arrived."""
    ends: list[int] = []
    for piece in stream.pieces:
        ends.append((ends[-1] if ends else 0) + len(piece))
    pending = b""
    for payload, end in _chunks(raw, offset) if is_chunked else _pieces(raw, offset, ends):
        now_s = stream.times_s[min(bisect_left(ends, end), len(ends) - 1)]
        *complete, pending = (pending + payload).split(b"\n")
        for line in complete:
            yield line.strip(), now_s
    if pending.strip():
        yield pending.strip(), stream.times_s[-1]


def _chunks(raw: bytes, offset: int) -> Iterator[tuple[bytes, int]]:
    """Payload of each HTTP chunk and the offset behind it; stops at a chunk that was cut off."""
    while (line_end := raw.find(b"\r\n", offset)) >= 0:
        size = int(raw[offset:line_end].split(b";")[0] or b"0", 16)
        begin = line_end + 2
        if size == 0 or begin + size > len(raw):
            return
        yield raw[begin : begin + size], begin + size
        offset = begin + size + 2


def _pieces(raw: bytes, offset: int, ends: list[int]) -> Iterator[tuple[bytes, int]]:
    for end in ends:
        if end > offset:
            yield raw[offset:end], end
            offset = end
