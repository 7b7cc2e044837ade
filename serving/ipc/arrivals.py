"""How bytes come from a socket to whoever takes them, one piece after the other. Knows neither frames nor messages."""

from __future__ import annotations

import socket
from collections.abc import Callable

READ_BYTES = 64 * 1024
"""A front that falls behind takes a few thousand tokens at once, and writes them with one call per stream."""

Take = Callable[[bytes], None]

Receive = Callable[[socket.socket, Take], None]
"""Give every piece to the second argument, until the other side ends. Raises `OSError`, and what the taker raises."""


def receive_in_thread(sock: socket.socket, take: Take) -> None:
    """A `Receive` that waits in `recv`, as threads do."""
    while data := sock.recv(READ_BYTES):
        take(data)
