"""A streamed answer's way past its greenlet: events that need nothing but to be written are written where they are made,
while the greenlet that runs the request waits.

Knows the socket, gunicorn's response and chunks of HTTP/1.1, nothing of events. Whatever is in the way (a full socket, a
client that left) is the greenlet's business: it goes on, and sees what it would have seen.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from typing import Protocol


class Head(Protocol):
    """What is asked of gunicorn's response."""

    headers_sent: bool
    chunked: bool
    response_length: int | None


class Outlet:
    """Between `ready` and the end of the wait in which it was asked, the socket belongs to the outlet."""

    __slots__ = ("_error", "_fd", "_head", "_parts", "_rest", "_socket", "holds", "last_sent_s")

    def __init__(self, sock: socket.socket, head: Head) -> None:
        self._socket = sock
        self._head = head
        self._fd = -1
        self._parts: list[bytes] = []
        self._rest = b""
        self._error: OSError | None = None
        self.holds = False
        """True while the greenlet has bytes that must leave before those of the outlet."""
        self.last_sent_s = 0.0
        """When the outlet last wrote, by `time.monotonic`."""

    def ready(self) -> bool:
        """Whether what is added now follows directly on what was sent."""
        if (
            self.holds
            or self.blocked
            or not self._head.headers_sent
            or self._head.response_length is not None
        ):
            return False
        self._fd = self._socket.fileno()
        return self._fd >= 0

    @property
    def blocked(self) -> bool:
        """True when the greenlet has to call `drain` before it does anything else."""
        return bool(self._rest) or self._error is not None

    def add(self, data: bytes) -> None:
        """`data` leaves with the next `flush`."""
        self._parts.append(data)

    def flush(self) -> bool:
        """Write what was added with one system call that never waits. False when not all of it could be written."""
        parts = self._parts
        if not parts:
            return True
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if self._head.chunked:
            data = b"%X\r\n%b\r\n" % (len(data), data)
        try:
            num_sent = os.write(self._fd, data)
        except BlockingIOError:
            num_sent = 0
        except OSError as error:
            self._error = error
            return False
        self.last_sent_s = time.monotonic()
        if num_sent < len(data):
            self._rest = data[num_sent:]
            return False
        return True

    def drain(self) -> None:
        """Write the rest, as patiently as any answer is written. Raises the `OSError` of a client that left."""
        if self._error is not None:
            raise self._error
        rest, self._rest = self._rest, b""
        self._socket.sendall(rest)


class DrainedBody:
    """The pieces of a body; each comes after what the outlet could not write."""

    def __init__(self, body: Iterator[bytes], outlet: Outlet) -> None:
        self._body = body
        self._outlet = outlet

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece = next(self._body, None)
        if self._outlet.blocked:
            self._outlet.drain()
        if piece is None:
            raise StopIteration
        return piece

    def close(self) -> None:
        """As WSGI asks of a body."""
        if callable(close := getattr(self._body, "close", None)):
            close()
