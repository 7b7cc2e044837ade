"""Frames between the front and the handler: cuts, caps, ends, silence and bytes that are none."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from serving.errors import TransportError
from serving.handler.wire import HookCall, HookReply, Turn, decode_to_front, read_call, read_frame, send

CALL = HookCall(
    hook="input_fn", data=bytes(range(256)) * 4, media_type="a/b", headers={"x": "ü"}, request_id="r"
)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def soon() -> float:
    return time.monotonic() + 10.0


def test_messages_come_as_they_were_sent(ends: tuple[socket.socket, socket.socket]) -> None:
    left, right = ends
    send(left, CALL)
    assert read_call(right, max_bytes=2000, deadline_s=soon()) == CALL
    for message in (Turn(), HookReply(body=b"x", content_type="a/b")):
        send(right, message)
        assert decode_to_front(read_frame(left, max_bytes=2000, deadline_s=soon())) == message


def test_cuts_do_not_matter_and_nothing_is_read_ahead(ends: tuple[socket.socket, socket.socket]) -> None:
    left, right = ends

    def drip() -> None:
        for byte in b"\0\0\0\3abc\0\0\0\1d":
            left.sendall(bytes([byte]))

    thread = threading.Thread(target=drip)
    thread.start()
    assert read_frame(right, max_bytes=3, deadline_s=soon()) == b"abc"
    assert read_frame(right, max_bytes=3, deadline_s=soon()) == b"d"
    thread.join()


@pytest.mark.parametrize("sent", [b"", b"\0\0", b"\0\0\0\3ab"])
def test_an_end_within_a_frame(ends: tuple[socket.socket, socket.socket], sent: bytes) -> None:
    left, right = ends
    left.sendall(sent)
    left.close()
    with pytest.raises(TransportError, match="too early"):
        read_frame(right, max_bytes=10, deadline_s=soon())


def test_a_frame_over_the_cap_is_not_read(ends: tuple[socket.socket, socket.socket]) -> None:
    left, right = ends
    left.sendall((11).to_bytes(4, "big"))
    with pytest.raises(TransportError, match="11 bytes is announced, at most 10"):
        read_frame(right, max_bytes=10, deadline_s=soon())


def test_silence_ends_at_the_deadline_and_is_told_of(ends: tuple[socket.socket, socket.socket]) -> None:
    left, right = ends
    left.sendall(b"\0\0\0\3a")
    silences = []
    started_s = time.monotonic()
    with pytest.raises(TimeoutError):
        read_frame(
            right,
            max_bytes=9,
            deadline_s=started_s + 0.1,
            interval_s=0.02,
            on_interval=lambda: silences.append(1),
        )
    assert time.monotonic() - started_s >= 0.1 and silences


@pytest.mark.parametrize("payload", [b"", b"\xff", b"\x80", b"\x81\xa4type\xa4Nope", b"\xc1" * 50])
def test_what_is_no_message(payload: bytes) -> None:
    with pytest.raises(TransportError, match="no known message"):
        decode_to_front(payload)
