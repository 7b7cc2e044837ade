"""The front's end of the transport: one connection to the engine, one queue per request.

Built on stdlib sockets, threads and queues. Under gunicorn's gevent worker these are monkey-patched before
this module is imported, so that its two threads become greenlets, and the worker says how to receive there; in tests
and scripts they are threads. It must not be created before a fork. It knows messages, not HTTP and not text.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from serving import logs
from serving.errors import GenerationFailed, NotReady, PayloadTooLarge, TransportError, from_wire
from serving.ipc.arrivals import Receive, receive_in_thread
from serving.ipc.channel import FrameReader, decode_from_engine, encode_frame
from serving.ipc.output_stream import OutputStream as OutputStream
from serving.ipc.output_stream import TokenSink
from serving.messages import (
    AbortRequest,
    AddRequest,
    CloseSession,
    CommandReply,
    EngineReady,
    EngineStats,
    FromEngine,
    Hello,
    OpenSession,
    Ping,
    RequestAccepted,
    SequenceOutput,
    SessionOpened,
    StepOutputs,
)

PING_INTERVAL_S = 0.5
CONNECT_INTERVAL_S = 0.1
_NEVER_READY = "the engine is not ready yet"
_LOST = "the engine stopped unexpectedly"

logger = logging.getLogger(__name__)


class _Connection:
    """One socket and the frames that wait for it: no caller blocks in a write or is cut inside a frame."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.sending_since_s: float | None = None
        self.ping_sent_at_s: float | None = None
        self.ping_nonce: int | None = None

    def run_writer(self, nonces: Iterator[int]) -> None:
        """Write frames until `shut`; a `Ping` every `PING_INTERVAL_S` unless the last is unanswered."""
        next_ping_s = time.monotonic()
        while True:
            now_s = time.monotonic()
            if now_s < next_ping_s:
                try:
                    frame = self.outgoing.get(timeout=next_ping_s - now_s)
                except queue.Empty:
                    continue
            else:
                next_ping_s = now_s + PING_INTERVAL_S
                if self.ping_nonce is not None:
                    continue
                self.ping_sent_at_s = now_s
                self.ping_nonce = next(nonces)
                frame = encode_frame(Ping(nonce=self.ping_nonce))
            if frame is None:
                return
            self.sending_since_s = time.monotonic()
            try:
                self.sock.sendall(frame)
            except OSError:
                return  # the reader sees the same end and reports it
            self.sending_since_s = None

    def answered(self, nonce: int) -> bool:
        """True when `nonce` was the background ping."""
        if nonce != self.ping_nonce:
            return False
        self.ping_sent_at_s = None
        self.ping_nonce = None
        return True

    def silent_for_s(self) -> float:
        """How long the engine has owed us something: the answer to a ping, or room for our bytes."""
        waits = [since for since in (self.sending_since_s, self.ping_sent_at_s) if since is not None]
        return time.monotonic() - min(waits) if waits else 0.0

    def shut(self) -> None:
        self.outgoing.put(None)
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the engine was faster


class EngineClient:
    """Speaks with the engine for one front. Every method may be called from any thread (or greenlet).

    `front_id` must be unique among the fronts alive at one time. Create and `start` it after a fork.
    """

    def __init__(self, socket_path: Path, front_id: str, *, receive: Receive = receive_in_thread) -> None:
        self.front_id = front_id
        self._path = socket_path
        self._receive = receive
        self._ready: EngineReady | None = None
        self._connection: _Connection | None = None
        self._streams: dict[str, OutputStream] = {}
        self._touched: dict[OutputStream, TokenSink] = {}
        self._waiters: dict[int, queue.SimpleQueue[CommandReply | NotReady]] = {}
        self._down_reason = _NEVER_READY
        self._request_numbers = itertools.count(1)
        self._nonces = itertools.count(1)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._stopped = threading.Event()
        self._reader = threading.Thread(target=self._run_reader, name="engine-reader", daemon=True)

    def start(self) -> None:
        """Connect in the background: retry until the engine listens, and again after it was restarted."""
        self._reader.start()

    def close(self) -> None:
        """Leave: the engine aborts what this front has running."""
        self._stopped.set()
        with self._lock:
            connection = self._connection
        if connection is not None:
            connection.shut()
        self._reader.join(timeout=5.0)

    @property
    def ready(self) -> EngineReady | None:
        """The engine's facts, or None while it cannot be reached."""
        return self._ready

    def wait_ready(self, timeout_s: float) -> EngineReady:
        """Raises `TimeoutError` when the engine has not become ready within `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready is not None, timeout=timeout_s)
            if self._ready is None:
                raise TimeoutError(f"{self._down_reason}, waited {timeout_s} s")
            return self._ready

    def healthy(self) -> tuple[bool, str]:
        """Whether the engine is there and makes progress, and if not, why. Never False because it is busy."""
        connection, ready = self._connection, self._ready
        if connection is None or ready is None:
            return False, self._down_reason
        silent_s = connection.silent_for_s()
        if silent_s > ready.stall_limit_s:
            return (
                False,
                f"the engine has been silent for {silent_s:.0f} s (limit {ready.stall_limit_s:.0f} s)",
            )
        return True, ""

    def next_request_id(self) -> str:
        return f"{self.front_id}-{next(self._request_numbers)}"

    def submit(self, *requests: AddRequest) -> OutputStream:
        """Send requests that belong together; each id comes from `next_request_id`. Raises `NotReady` without an
        engine."""
        frames = [_request_frame(request) for request in requests]
        stream = OutputStream(requests, self.forget)
        with self._lock:
            if self._connection is None:
                raise NotReady(self._down_reason)
            for request_id in stream.request_ids:
                if request_id in self._streams:
                    raise TransportError(f"request id {request_id!r} is in use: call next_request_id()")
            for request_id, frame in zip(stream.request_ids, frames, strict=True):
                self._streams[request_id] = stream
                self._connection.outgoing.put(frame)
        return stream

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Ask the engine to stop a request, or one of its sequences. Its stream still gets the end."""
        with self._lock:
            if self._connection is not None and request_id in self._streams:
                self._connection.outgoing.put(encode_frame(AbortRequest(request_id=request_id, index=index)))

    def forget(self, stream: OutputStream) -> None:
        """Drop a stream and whatever still comes for it; aborts its requests that still run."""
        for request_id in stream.request_ids:
            self.abort(request_id)
        with self._lock:
            for request_id in stream.request_ids:
                self._streams.pop(request_id, None)

    def stats(self, timeout_s: float) -> EngineStats:
        """The engine's counters after its current step. Raises `NotReady` or `TimeoutError`."""
        stats = self._command(Ping(nonce=next(self._nonces)), timeout_s).stats
        if stats is None:
            raise TransportError("the engine answered a ping without its stats")
        return stats

    def open_session(self, timeout_s: float) -> SessionOpened:
        """Open a session in the engine. Raises `Overloaded`, `NotReady` or `TimeoutError`."""
        session = self._command(OpenSession(nonce=next(self._nonces)), timeout_s).session
        if session is None:
            raise TransportError("the engine opened a session and did not name it")
        return session

    def close_session(self, session_id: str, timeout_s: float) -> None:
        """End a session of the engine. Raises `SessionRefused` for an unknown one, `NotReady` or `TimeoutError`."""
        self._command(CloseSession(nonce=next(self._nonces), session_id=session_id), timeout_s)

    def _command(self, message: Ping | OpenSession | CloseSession, timeout_s: float) -> CommandReply:
        """Send, and wait for the reply. Raises the error that it carries, `NotReady` or `TimeoutError`."""
        waiter: queue.SimpleQueue[CommandReply | NotReady] = queue.SimpleQueue()
        with self._lock:
            if self._connection is None:
                raise NotReady(self._down_reason)
            self._waiters[message.nonce] = waiter
            self._connection.outgoing.put(encode_frame(message))
        try:
            answer = waiter.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"the engine did not answer within {timeout_s} s") from None
        finally:
            self._waiters.pop(message.nonce, None)
        if isinstance(answer, NotReady):
            raise answer
        if answer.error is not None:
            raise from_wire(answer.error)
        return answer

    def _run_reader(self) -> None:
        while not self._stopped.is_set():
            sock = self._connect()
            if sock is not None:
                self._converse(_Connection(sock))
            self._stopped.wait(CONNECT_INTERVAL_S)

    def _connect(self) -> socket.socket | None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(os.fspath(self._path))
            sock.sendall(encode_frame(Hello(front_id=self.front_id)))
        except OSError:
            sock.close()  # no engine yet, or not any more
            return None
        return sock

    def _converse(self, connection: _Connection) -> None:
        """Read until the engine goes away, then end every open stream with the reason."""
        reason = _LOST
        reader = FrameReader()

        def take(data: bytes) -> None:
            try:
                for payload in reader.feed(data):
                    self._take(connection, decode_from_engine(payload))
            finally:
                self._flush()

        writer = threading.Thread(
            target=connection.run_writer, args=(self._nonces,), name="engine-writer", daemon=True
        )
        writer.start()
        try:
            self._receive(connection.sock, take)
        except OSError as error:
            logs.event(logger, logging.WARNING, "engine connection broke", reason=str(error))
        except TransportError as error:
            logs.event(logger, logging.ERROR, "engine sent what is not a message", reason=error.message)
        except GenerationFailed as error:
            reason = error.message
        self._disconnect(connection, reason)

    def _disconnect(self, connection: _Connection, reason: str) -> None:
        with self._changed:
            was_connected = self._connection is connection
            self._connection = None
            self._ready = None
            if was_connected:
                self._down_reason = reason
            streams, self._streams = self._streams, {}
            waiters, self._waiters = self._waiters, {}
        for stream in dict.fromkeys(streams.values()):
            stream.deliver(GenerationFailed(reason))
        for waiter in waiters.values():
            waiter.put(NotReady(reason))
        connection.shut()
        connection.sock.close()
        if was_connected and not self._stopped.is_set():
            logs.event(logger, logging.ERROR, "engine lost", reason=reason, streams=len(streams))

    def _take(self, connection: _Connection, message: FromEngine) -> None:
        if isinstance(message, StepOutputs):
            self._take_outputs(message.outputs)
        elif isinstance(message, RequestAccepted):
            self._deliver(message)
        elif isinstance(message, CommandReply):
            waiter = None if connection.answered(message.nonce) else self._waiters.get(message.nonce)
            if waiter is not None:
                waiter.put(message)
        elif isinstance(message, EngineReady):
            self._begin(connection, message)
        else:
            raise GenerationFailed(message.reason)

    def _begin(self, connection: _Connection, ready: EngineReady) -> None:
        with self._changed:
            self._connection = connection
            self._ready = ready
            self._changed.notify_all()
        if self._stopped.is_set():
            connection.shut()  # `close` came while we connected

    def _take_outputs(self, outputs: Sequence[SequenceOutput]) -> None:
        """Where nobody is in the way, a token needs no queue and nobody's turn."""
        now_s = time.monotonic()
        for output in outputs:
            stream = self._streams.get(output.request_id)
            sink = None if stream is None else stream.sink
            if stream is not None and sink is not None and sink.take(output, now_s):
                self._touched[stream] = sink
            else:
                self._deliver(output)

    def _flush(self) -> None:
        """Let the sinks write, once for all that came together."""
        for stream, sink in self._touched.items():
            if not sink.flush():
                stream.wake()
        self._touched.clear()

    def _deliver(self, item: RequestAccepted | SequenceOutput) -> None:
        stream = self._streams.get(item.request_id)
        if stream is not None and stream.deliver(item):
            with self._lock:
                self._streams.pop(item.request_id, None)


def _request_frame(request: AddRequest) -> bytes:
    try:
        return encode_frame(request)
    except TransportError as error:
        raise PayloadTooLarge(f"{len(request.prompt_token_ids)} prompt tokens are too many") from error
