"""The engine's socket in gevent's loop: nobody is kept from running, and every end of the reading is told."""

from __future__ import annotations

import itertools
import socket
import struct

import gevent
import gevent.socket
import pytest

from serving.api.loop_reader import receive_in_loop
from serving.errors import TransportError
from serving.ipc.arrivals import READ_BYTES


def socketpair() -> tuple[socket.socket, socket.socket]:
    near, far = gevent.socket.socketpair()
    return near, far


def test_pieces_come_in_order_until_the_end() -> None:
    near, far = socketpair()
    taken: list[bytes] = []
    with near, far:
        reading = gevent.spawn(receive_in_loop, near, taken.append)
        for number in range(50):
            far.sendall(b"%d," % number)
            gevent.sleep(0)
        far.shutdown(socket.SHUT_WR)
        reading.get(timeout=5.0)
    assert b"".join(taken) == b"".join(b"%d," % number for number in range(50))


def test_a_socket_that_always_has_more_keeps_nobody_from_running() -> None:
    near, far = socketpair()
    turns = 0
    turns_at: list[int] = []

    def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            gevent.sleep(0)

    with near, far:
        for sock in (near, far):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * READ_BYTES)
        far.setblocking(False)
        sent = far.send(b"x" * (4 * READ_BYTES))
        assert sent > READ_BYTES
        running = gevent.spawn(others)
        reading = gevent.spawn(receive_in_loop, near, lambda data: turns_at.append(turns))
        far.close()
        reading.get(timeout=5.0)
        running.kill()
    assert len(turns_at) > 1
    assert all(later > before for before, later in itertools.pairwise(turns_at)), turns_at


def test_what_the_taker_raises_ends_the_reading() -> None:
    near, far = socketpair()

    def refuse(data: bytes) -> None:
        raise TransportError(f"{len(data)} bytes")

    with near, far:
        reading = gevent.spawn(receive_in_loop, near, refuse)
        far.sendall(b"abc")
        with pytest.raises(TransportError, match="3 bytes"):
            reading.get(timeout=5.0)
        far.sendall(b"nobody reads this")
        gevent.sleep(0)


def test_a_broken_connection_is_told() -> None:
    with gevent.socket.create_server(("127.0.0.1", 0)) as listener:
        far = gevent.socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    with near:
        reading = gevent.spawn(receive_in_loop, near, lambda data: None)
        gevent.sleep(0)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()  # a reset
        with pytest.raises(ConnectionResetError):
            reading.get(timeout=5.0)
