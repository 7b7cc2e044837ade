"""The engine's end of the transport: one unix socket, many fronts, never a blocking write.

Owns connections and frames. It must not know what a request is, beyond the front id that its name carries.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from serving import logs
from serving.errors import TransportError
from serving.ipc.channel import MAX_FRAME_BYTES, FrameReader, decode_to_engine, encode_frame
from serving.messages import (
    AbortRequest,
    AddRequest,
    CloseSession,
    EngineReady,
    FromEngine,
    Hello,
    LoadAdapter,
    OpenSession,
    Ping,
    SequenceOutput,
    StepOutputs,
    ToEngine,
    UnloadAdapter,
)

MAX_BUFFERED_BYTES = 16 * 1024 * 1024

_READ_BYTES = 256 * 1024
_READ_BUDGET_BYTES = 8 * 1024 * 1024
_MAX_UNIX_PATH_BYTES = 107
_READ_AND_WRITE = selectors.EVENT_READ | selectors.EVENT_WRITE

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FrontClosed:
    """A front is gone; nobody waits for its requests any more."""

    front_id: str


FrontEvent = tuple[
    str,
    AddRequest | AbortRequest | Ping | LoadAdapter | UnloadAdapter | OpenSession | CloseSession | FrontClosed,
]


@dataclass(slots=True, eq=False)
class _Front:
    sock: socket.socket
    reader: FrameReader
    front_id: str | None = None
    outgoing: bytearray = field(default_factory=bytearray)
    closed: bool = False


class EngineHub:
    """Listens in a private directory and speaks with every front. `poll` belongs to one thread; `send`,
    `broadcast`, `flush` and `wake` may be called from any.

    A front that sends anything but valid frames, speaks for another front, or lets `max_buffered_bytes` pile
    up is dropped with a log line; the others do not notice.
    """

    def __init__(
        self,
        path: Path,
        ready: EngineReady,
        *,
        max_frame_bytes: int = MAX_FRAME_BYTES,
        max_buffered_bytes: int = MAX_BUFFERED_BYTES,
    ) -> None:
        """Listen on `path`, replacing a stale socket. Raises `TransportError` if its folder is open."""
        self._path = path
        self._ready = encode_frame(ready)
        self._max_frame_bytes = max_frame_bytes
        self._max_buffered_bytes = max_buffered_bytes
        self._fronts: dict[str, _Front] = {}
        self._connections: set[_Front] = set()
        self._closed_ids: list[str] = []
        self._lock = threading.RLock()
        self._selector = selectors.DefaultSelector()
        self._listener = _listen(path)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, self._drain_wake)

    @property
    def front_ids(self) -> list[str]:
        return list(self._fronts)

    def poll(self, timeout_s: float | None = 0.0) -> list[FrontEvent]:
        """What has arrived; waits up to `timeout_s` (None: for ever) for the first. Also writes what waits.

        Order per front is kept; `FrontClosed` is a front's last event. `wake` ends the wait without events.
        """
        events: list[FrontEvent] = []
        with self._lock:
            self._report_closed(events)
        ready = self._selector.select(0.0 if events else timeout_s)
        with self._lock:
            for key, mask in ready:
                if isinstance(key.data, _Front):
                    self._serve(key.data, mask, events)
                else:
                    accept_or_drain: Callable[[], None] = key.data
                    accept_or_drain()
            self._report_closed(events)
        return events

    def send(self, front_id: str, message: FromEngine) -> None:
        """Queue `message` and write what the socket takes. For a front that has left, it is discarded."""
        with self._lock:
            front = self._fronts.get(front_id)
            if front is not None:
                self._write(front, encode_frame(message, max_frame_bytes=self._max_frame_bytes))

    def deliver(self, outputs: Iterable[SequenceOutput]) -> None:
        """Send each front the news of its requests, as one message."""
        by_front: dict[str, list[SequenceOutput]] = {}
        for output in outputs:
            by_front.setdefault(front_of(output.request_id), []).append(output)
        for front_id, news in by_front.items():
            self.send(front_id, StepOutputs(outputs=news))

    def broadcast(self, message: FromEngine) -> None:
        """`send` to every connection, also to one that has not said hello yet."""
        frame = encode_frame(message, max_frame_bytes=self._max_frame_bytes)
        with self._lock:
            for front in list(self._connections):
                self._write(front, frame)

    def flush(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` until everything is written. True when it is. For the end of the process."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            while waiting := [front for front in self._connections if front.outgoing]:
                left_s = deadline - time.monotonic()
                if left_s <= 0.0:
                    return False
                with selectors.DefaultSelector() as writable:
                    for front in waiting:
                        writable.register(front.sock, selectors.EVENT_WRITE, front)
                    for key, _ in writable.select(left_s):
                        self._flush_front(key.data)
        return True

    def wake(self) -> None:
        """End a waiting `poll`. Safe in signal handlers and other threads."""
        try:
            self._wake_writer.send(b"\0")
        except OSError:
            return  # a wake-up is pending already, or the hub is closed

    def close(self) -> None:
        with self._lock:
            for front in list(self._connections):
                self._close_front(front)
            self._selector.close()
            for sock in (self._listener, self._wake_reader, self._wake_writer):
                sock.close()
            self._path.unlink(missing_ok=True)

    def _report_closed(self, events: list[FrontEvent]) -> None:
        events.extend((front_id, FrontClosed(front_id)) for front_id in self._closed_ids)
        self._closed_ids.clear()

    def _drain_wake(self) -> None:
        try:
            while self._wake_reader.recv(4096):
                pass
        except BlockingIOError:
            return

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError as error:  # BlockingIOError: none left; EMFILE and kin: the client tries again
                if not isinstance(error, BlockingIOError):
                    logs.event(logger, logging.WARNING, "front not accepted", reason=str(error))
                return
            sock.setblocking(False)
            front = _Front(sock, FrameReader(max_frame_bytes=self._max_frame_bytes))
            self._connections.add(front)
            self._selector.register(sock, selectors.EVENT_READ, front)
            self._write(front, self._ready)

    def _serve(self, front: _Front, mask: int, events: list[FrontEvent]) -> None:
        if mask & selectors.EVENT_WRITE and not front.closed:
            self._flush_front(front)
        if not mask & selectors.EVENT_READ:
            return
        num_read_bytes = 0
        # A frame may exceed the socket's buffer: read on while the front refills it, but not for ever.
        while not front.closed and num_read_bytes < _READ_BUDGET_BYTES:
            try:
                data = front.sock.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._drop(front, str(error))
                return
            if not data:
                self._end(front)
                return
            num_read_bytes += len(data)
            try:
                for payload in front.reader.feed(data):
                    self._take(front, decode_to_engine(payload), events)
            except TransportError as error:
                self._drop(front, error.message)

    def _take(self, front: _Front, message: ToEngine, events: list[FrontEvent]) -> None:
        if isinstance(message, Hello):
            self._introduce(front, message.front_id, events)
            return
        if front.front_id is None:
            raise TransportError(f"{type(message).__name__} came before Hello")
        if isinstance(message, AddRequest | AbortRequest) and front_of(message.request_id) != front.front_id:
            raise TransportError(f"front {front.front_id!r} speaks for request {message.request_id!r}")
        events.append((front.front_id, message))

    def _introduce(self, front: _Front, front_id: str, events: list[FrontEvent]) -> None:
        if not front_id or front.front_id is not None:
            raise TransportError(f"Hello with front id {front_id!r} refused: empty, or said twice")
        if before := self._fronts.get(front_id):
            self._drop(before, "the same front connected again")
            self._report_closed(events)
        front.front_id = front_id
        self._fronts[front_id] = front

    def _write(self, front: _Front, frame: bytes) -> None:
        if front.closed:
            return
        if len(front.outgoing) > self._max_buffered_bytes:
            self._drop(front, f"does not read, {len(front.outgoing)} bytes wait for it")
            return
        if front.outgoing:
            front.outgoing += frame
            return
        num_sent = self._send(front, frame)
        if num_sent < len(frame) and not front.closed:
            front.outgoing += frame[num_sent:]
            self._selector.modify(front.sock, _READ_AND_WRITE, front)

    def _flush_front(self, front: _Front) -> None:
        num_sent = self._send(front, front.outgoing)
        if front.closed:
            return
        del front.outgoing[:num_sent]
        if not front.outgoing:
            self._selector.modify(front.sock, selectors.EVENT_READ, front)

    def _send(self, front: _Front, data: bytes | bytearray) -> int:
        """How many bytes the socket took. Drops a front that is gone."""
        try:
            return front.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._drop(front, str(error))
            return 0

    def _end(self, front: _Front) -> None:
        if front.reader.num_pending_bytes:
            self._drop(front, f"closed inside a frame, {front.reader.num_pending_bytes} bytes of it had come")
        else:
            self._close_front(front)

    def _drop(self, front: _Front, reason: str) -> None:
        if not front.closed:
            name = front.front_id or "unknown"
            logs.event(logger, logging.WARNING, "front dropped", front=name, reason=reason)
            self._close_front(front)

    def _close_front(self, front: _Front) -> None:
        front.closed = True
        self._connections.discard(front)
        self._selector.unregister(front.sock)
        front.sock.close()
        front.outgoing.clear()
        if front.front_id is not None and self._fronts.get(front.front_id) is front:
            del self._fronts[front.front_id]
            self._closed_ids.append(front.front_id)


def front_of(request_id: str) -> str:
    """The front id that `request_id` carries: everything before its last hyphen."""
    return request_id.rpartition("-")[0]


def _listen(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > _MAX_UNIX_PATH_BYTES:
        raise TransportError(
            f"{path} is too long for a socket (over {_MAX_UNIX_PATH_BYTES} bytes): use a shorter folder"
        )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = path.parent.stat()
    if folder.st_uid != os.geteuid() or stat.S_IMODE(folder.st_mode) & 0o077:
        mode = stat.S_IMODE(folder.st_mode)
        raise TransportError(f"{path.parent} must belong to this user with mode 0700, it has mode {mode:04o}")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    listener.bind(os.fspath(path))
    path.chmod(0o600)
    listener.listen(128)
    return listener
