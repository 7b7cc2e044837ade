"""One WebSocket connection (RFC 6455) under gevent: whole messages in, text frames out through a bounded queue that one
greenlet writes. Knows nothing of what the messages say.

wsproto keeps the protocol. simple-websocket, which flask-sock brings and which is wsproto with a reader of its own, would
not do: it drops what one `send` leaves over when a reader is slow, holds any number of unread messages, and closes the
socket on unread input, whose reset destroys the close frame that says why.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import gevent
from gevent.event import Event
from h11 import ProtocolError
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Request,
    TextMessage,
)
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import RemoteProtocolError

from serving.api import connection as connections
from serving.api.connection import ClientDisconnected
from serving.errors import InvalidRequest, Overloaded

QUEUE_BYTES = 256 * 1024
"""What may wait for a slow reader; whoever has more to say waits with it."""

_READ_BYTES = 64 * 1024
_JOINED_BYTES = 64 * 1024
_LINGER_S = 1.0
_LINGER_BYTES = 64 * 1024 * 1024
_FLUSH_S = 5.0
_MAX_REASON_BYTES = 120  # of the 125 that a control frame holds, two are the code


class Closing(Exception):
    """The connection has to end with this code and reason."""

    def __init__(self, code: CloseReason, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(slots=True, frozen=True)
class Incoming:
    """One whole message; `text` is None when it was binary."""

    text: bytes | None


@dataclass(slots=True, frozen=True)
class MessageLimits:
    max_bytes: int
    silence_s: float
    """How long a message that has begun may be silent."""
    hold: Callable[[int], None]
    """Told of bytes of unfinished messages as they come, and with a negative number when they are given back. Raises
    `Overloaded`."""


def wants_upgrade(environ: Mapping[str, object]) -> bool:
    return str(environ.get("HTTP_UPGRADE", "")).strip().lower() == "websocket"


class Handshake:
    """A client's wish to upgrade, checked. Raises `InvalidRequest` when it is not one (RFC 6455 section 4.2.1)."""

    def __init__(self, environ: Mapping[str, object]) -> None:
        self.protocol = WSConnection(ConnectionType.SERVER)
        headers = [
            (name[5:].replace("_", "-").encode(), str(value).encode("latin-1"))
            for name, value in environ.items()
            if name in ("HTTP_UPGRADE", "HTTP_CONNECTION") or name.startswith("HTTP_SEC_WEBSOCKET_")
        ]
        try:
            self.protocol.initiate_upgrade_connection([(b"host", b"localhost"), *headers], b"/")
            wished = any(isinstance(event, Request) for event in self.protocol.events())
        except (RemoteProtocolError, ProtocolError) as error:
            raise InvalidRequest(f"this is no WebSocket handshake: {error}", field="Upgrade") from None
        if not wished:
            raise InvalidRequest("this is no WebSocket handshake", field="Upgrade")


class WebSocket:
    """`messages` is for one greenlet, `send` for any. After `close` the socket itself is the caller's to close."""

    def __init__(self, sock: socket.socket, handshake: Handshake, limits: MessageLimits) -> None:
        self._sock = sock
        self._protocol = handshake.protocol
        self._limits = limits
        self._queue: deque[bytes] = deque()
        self._num_queued_bytes = 0
        self._news, self._room = Event(), Event()
        self._ending = self._broken = False
        self._parts: list[bytes] = []
        self._num_part_bytes = self._num_held_bytes = 0
        self._in_message = False
        self._enqueue(self._protocol.send(AcceptConnection()))
        self._writer = gevent.spawn(self._write)

    def messages(self) -> Iterator[Incoming]:
        """Messages until the client closes or is gone. Pings are answered on the way.

        Raises `Closing` when a message is too large or stops in its middle, or when the server holds too many.
        """
        while True:
            data = self._receive()
            if not data:
                return
            self._protocol.receive_data(data)
            for event in self._protocol.events():
                if isinstance(event, Ping):
                    self._wait_for_room()
                    self._enqueue(self._protocol.send(event.response()))
                elif isinstance(event, CloseConnection):
                    self._answer_close(event)
                    return
                elif isinstance(event, TextMessage | BytesMessage):
                    message = self._take(event)
                    if message is not None:
                        yield message

    def send(self, text: bytes) -> None:
        """Queue `text` as one text frame; waits while the queue is full. Raises `ClientDisconnected` when nobody reads."""
        self._wait_for_room()
        if self._broken or self._ending or self._protocol.state is not ConnectionState.OPEN:
            raise ClientDisconnected
        self._enqueue(self._protocol.send(TextMessage(data=text.decode())))

    def close(self, code: CloseReason, reason: str = "") -> None:
        """Write what is queued and a close frame, and wait a little for the client's."""
        self._let_go()
        if self._protocol.state is ConnectionState.OPEN and not self._broken:
            short = reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
            self._enqueue(self._protocol.send(CloseConnection(code=code, reason=short)))
        self._ending = True
        self._news.set()
        self._writer.join(_FLUSH_S)
        if self._writer.dead and not self._broken:
            self._linger()
        self._writer.kill()

    def _receive(self) -> bytes:
        """Nothing at the end of the connection."""
        late = Closing(
            CloseReason.POLICY_VIOLATION,
            f"a message was silent for {self._limits.silence_s:g} s before its end",
        )
        with gevent.Timeout(self._limits.silence_s if self._in_message else None, late):
            try:
                return self._sock.recv(_READ_BYTES)
            except OSError:
                return b""

    def _take(self, event: TextMessage | BytesMessage) -> Incoming | None:
        """The message that `event` completes. What is binary is not kept."""
        binary = isinstance(event, BytesMessage)
        data = event.data.encode() if isinstance(event, TextMessage) else b""
        size = len(event.data) if binary else len(data)
        self._num_part_bytes += size
        if self._num_part_bytes > self._limits.max_bytes:
            raise Closing(
                CloseReason.MESSAGE_TOO_BIG, f"a message may have at most {self._limits.max_bytes} bytes"
            )
        self._in_message = not event.message_finished
        self._parts.append(data)
        if event.message_finished:
            text = None if binary else b"".join(self._parts)
            self._let_go()
            return Incoming(text)
        self._num_held_bytes += len(data)
        try:
            self._limits.hold(len(data))
        except Overloaded as error:
            raise Closing(CloseReason.TRY_AGAIN_LATER, error.message) from None
        return None

    def _let_go(self) -> None:
        self._limits.hold(-self._num_held_bytes)
        self._num_part_bytes = self._num_held_bytes = 0
        self._parts.clear()

    def _answer_close(self, event: CloseConnection) -> None:
        """`event` is the client's close frame, or what is wrong with its frames."""
        with suppress(ClientDisconnected):
            self._enqueue(self._protocol.send(event.response()))

    def _wait_for_room(self) -> None:
        while self._num_queued_bytes >= QUEUE_BYTES and not self._broken:
            self._room.clear()
            self._room.wait()

    def _enqueue(self, data: bytes) -> None:
        self._queue.append(data)
        self._num_queued_bytes += len(data)
        self._news.set()

    def _write(self) -> None:
        try:
            while self._queue or not self._ending:
                self._news.clear()
                while self._queue:
                    data = self._next_bytes()
                    with gevent.Timeout(connections.STALLED_READER_S, TimeoutError("the reader has stalled")):
                        self._sock.sendall(data)
                    self._num_queued_bytes -= len(data)
                    self._room.set()
                if not self._ending:
                    self._news.wait()
        except OSError:  # a `TimeoutError` is one
            self._broken = True
            self._room.set()
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)  # wakes whoever reads

    def _next_bytes(self) -> bytes:
        """Frames that lie ready, written together: a front that falls behind makes fewer system calls."""
        frames, size = [], 0
        while self._queue and size < _JOINED_BYTES:
            frames.append(self._queue.popleft())
            size += len(frames[-1])
        return b"".join(frames)

    def _linger(self) -> None:
        """Read what the client still sends, so that the reset for unread input does not destroy our close frame."""
        until_s, left = time.monotonic() + _LINGER_S, _LINGER_BYTES
        with gevent.Timeout(_LINGER_S, False), suppress(OSError):
            self._sock.shutdown(
                socket.SHUT_WR
            )  # a client that has read the close frame ends the connection now
            while left > 0 and time.monotonic() < until_s and (data := self._sock.recv(_READ_BYTES)):
                left -= len(data)
                gevent.sleep(0)
