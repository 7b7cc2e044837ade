"""EngineHub against raw sockets: who may connect, and what a broken or rude front can do to the others."""

import logging
import pickle
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.errors import TransportError
from serving.ipc.channel import encode_frame
from serving.ipc.server import EngineHub, FrontClosed, FrontEvent, front_of
from serving.messages import (
    AbortRequest,
    AddRequest,
    EngineFailed,
    EngineReady,
    FromEngine,
    Hello,
    Ping,
    RequestAccepted,
)
from tests.unit.ipc.fakes import READY, RawFront, add_request


@pytest.fixture
def hub(socket_path: Path) -> Iterator[EngineHub]:
    hub = EngineHub(socket_path, READY, max_frame_bytes=1_000_000, max_buffered_bytes=1_000_000)
    yield hub
    hub.close()


@pytest.fixture
def connect(socket_path: Path) -> Iterator[Callable[..., RawFront]]:
    fronts: list[RawFront] = []

    def make(front_id: str | None = None) -> RawFront:
        fronts.append(RawFront(socket_path, front_id))
        return fronts[-1]

    yield make
    for front in fronts:
        front.sock.close()


def poll_until(hub: EngineHub, done: Callable[[list[FrontEvent]], bool]) -> list[FrontEvent]:
    events: list[FrontEvent] = []
    deadline = time.monotonic() + 5.0
    while not done(events):
        if time.monotonic() > deadline:
            raise AssertionError(f"only got {events}")
        events += hub.poll(0.05)
    return events


def test_socket_and_folder_are_private(hub: EngineHub, socket_path: Path) -> None:
    assert stat.S_IMODE(socket_path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600


def test_open_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(TransportError, match=r"mode 0700, it has mode 0755"):
        EngineHub(folder / "engine.sock", READY)


def test_long_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="too long for a socket"):
        EngineHub(tmp_path / ("x" * 120) / "engine.sock", READY)


def test_stale_socket_is_replaced(socket_path: Path, connect: Callable[..., RawFront]) -> None:
    socket_path.parent.mkdir(mode=0o700)
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(socket_path))
    stale.close()
    hub = EngineHub(socket_path, READY)
    front = connect("a")
    poll_until(hub, lambda _: hub.front_ids == ["a"])
    assert isinstance(front.receive(), EngineReady)
    hub.close()
    assert not socket_path.exists()


def test_ready_comes_first_and_messages_keep_their_order(
    hub: EngineHub, connect: Callable[..., RawFront]
) -> None:
    front = connect("a")
    sent = [add_request("a-1"), AbortRequest(request_id="a-1"), Ping(nonce=4)]
    front.sock.sendall(b"".join(encode_frame(message) for message in sent))
    events = poll_until(hub, lambda events: len(events) == 3)
    assert events == [("a", message) for message in sent]
    hub.send("a", RequestAccepted(request_id="a-1"))
    assert front.receive() == READY
    assert front.receive() == RequestAccepted(request_id="a-1")


def test_end_of_a_front_is_an_event_after_its_messages(
    hub: EngineHub, connect: Callable[..., RawFront]
) -> None:
    front = connect("a")
    poll_until(hub, lambda _: hub.front_ids == ["a"])
    assert isinstance(front.receive(), EngineReady)
    front.sock.sendall(encode_frame(Ping(nonce=1)))
    front.sock.close()
    events = poll_until(hub, lambda events: len(events) == 2)
    assert events == [("a", Ping(nonce=1)), ("a", FrontClosed("a"))]
    assert hub.front_ids == []
    hub.send("a", RequestAccepted(request_id="a-1"))  # nobody is there: discarded


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x00",
        (1_000_001).to_bytes(4, "big"),
        b"\x00\x00\x00\x05hello",
        len(payload := pickle.dumps({"cmd": print})).to_bytes(4, "big") + payload,
        encode_frame(EngineFailed(reason="wrong direction")),
        encode_frame(Hello(front_id="bad")),
        encode_frame(add_request("good-1")),
        encode_frame(AbortRequest(request_id="good-1")),
        encode_frame(AbortRequest(request_id="nohyphen")),
    ],
)
def test_garbage_drops_its_sender_only(
    hub: EngineHub, connect: Callable[..., RawFront], garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = connect("good"), connect("bad")
    poll_until(hub, lambda _: sorted(hub.front_ids) == ["bad", "good"])
    bad.sock.sendall(garbage)
    with caplog.at_level(logging.WARNING):
        events = poll_until(hub, lambda events: len(events) == 1)
    assert events == [("bad", FrontClosed("bad"))]
    assert [record.getMessage() for record in caplog.records] == ["front dropped"]
    assert isinstance(bad.receive(), EngineReady) and bad.receive() is None
    good.sock.sendall(encode_frame(Ping(nonce=9)))
    assert poll_until(hub, lambda events: len(events) == 1) == [("good", Ping(nonce=9))]


@pytest.mark.parametrize("first", [encode_frame(Ping(nonce=1)), encode_frame(Hello(front_id=""))])
def test_a_stranger_is_dropped_without_an_event(
    hub: EngineHub, connect: Callable[..., RawFront], first: bytes
) -> None:
    stranger = connect()
    stranger.sock.sendall(first)
    marker = connect("marker")
    marker.sock.sendall(encode_frame(Ping(nonce=1)))
    assert poll_until(hub, lambda events: len(events) == 1) == [("marker", Ping(nonce=1))]
    assert isinstance(stranger.receive(), EngineReady) and stranger.receive() is None


def test_truncated_frame_is_logged(
    hub: EngineHub, connect: Callable[..., RawFront], caplog: pytest.LogCaptureFixture
) -> None:
    front = connect("a")
    poll_until(hub, lambda _: hub.front_ids == ["a"])
    assert isinstance(front.receive(), EngineReady)
    front.sock.sendall(encode_frame(add_request("a-1"))[:-2])
    front.sock.close()
    assert poll_until(hub, lambda events: len(events) == 1) == [("a", FrontClosed("a"))]
    assert "closed inside a frame" in caplog.records[-1].__dict__["reason"]


def test_a_front_that_comes_back_replaces_its_old_connection(
    hub: EngineHub, connect: Callable[..., RawFront]
) -> None:
    old = connect("a")
    poll_until(hub, lambda _: hub.front_ids == ["a"])
    new = connect("a")
    new.sock.sendall(encode_frame(Ping(nonce=2)))
    events = poll_until(hub, lambda events: len(events) == 2)
    assert events == [("a", FrontClosed("a")), ("a", Ping(nonce=2))]
    assert isinstance(old.receive(), EngineReady) and old.receive() is None
    hub.send("a", RequestAccepted(request_id="a-1"))
    assert isinstance(new.receive(), EngineReady)
    assert new.receive() == RequestAccepted(request_id="a-1")


def test_a_front_that_does_not_read_is_dropped_and_stalls_nobody(
    hub: EngineHub, connect: Callable[..., RawFront]
) -> None:
    _slow, good = connect("slow"), connect("good")
    poll_until(hub, lambda _: sorted(hub.front_ids) == ["good", "slow"])
    assert isinstance(good.receive(), EngineReady)
    message = EngineFailed(reason="x" * 100_000)
    slowest_s = 0.0
    num_sent = 0
    while "slow" in hub.front_ids:
        started_s = time.monotonic()
        hub.send("slow", message)
        slowest_s = max(slowest_s, time.monotonic() - started_s)
        hub.send("good", RequestAccepted(request_id=f"good-{num_sent}"))
        assert good.receive() == RequestAccepted(request_id=f"good-{num_sent}")
        num_sent += 1
        assert num_sent < 100
    assert slowest_s < 0.2
    assert poll_until(hub, lambda events: len(events) == 1) == [("slow", FrontClosed("slow"))]


def test_buffered_bytes_are_written_when_the_front_reads_again(
    hub: EngineHub, connect: Callable[..., RawFront]
) -> None:
    front = connect("a")
    poll_until(hub, lambda _: hub.front_ids == ["a"])
    messages = [EngineFailed(reason=str(i) + "x" * 90_000) for i in range(8)]
    for message in messages:
        hub.send("a", message)
    received: list[FromEngine | None] = []
    reader = threading.Thread(target=lambda: received.extend(front.receive() for _ in range(9)))
    reader.start()
    poll_until(hub, lambda _: not reader.is_alive())
    assert received[1:] == messages


def test_flush_waits_for_readers_and_gives_up_in_time(
    hub: EngineHub, connect: Callable[..., RawFront]
) -> None:
    front = connect("a")
    poll_until(hub, lambda _: hub.front_ids == ["a"])
    message = EngineFailed(reason="x" * 900_000)
    hub.send("a", message)
    started_s = time.monotonic()
    assert not hub.flush(0.05)
    assert time.monotonic() - started_s < 1.0
    received: list[FromEngine | None] = []
    reader = threading.Thread(target=lambda: received.extend(front.receive() for _ in range(2)))
    reader.start()
    assert hub.flush(5.0)
    reader.join(timeout=5.0)
    assert received == [READY, message]


def test_prompt_larger_than_the_socket_buffer(hub: EngineHub, connect: Callable[..., RawFront]) -> None:
    front = connect("a")
    request = add_request("a-1", prompt=[100_000] * 190_000)
    sender = threading.Thread(target=front.sock.sendall, args=(encode_frame(request),))
    sender.start()
    ((_, received),) = poll_until(hub, lambda events: len(events) == 1)
    sender.join()
    assert isinstance(received, AddRequest) and received == request


def test_wake_ends_a_wait_from_another_thread(hub: EngineHub) -> None:
    done = threading.Event()

    def wait() -> None:
        hub.poll(None)
        done.set()

    thread = threading.Thread(target=wait)
    thread.start()
    hub.wake()
    assert done.wait(5.0)
    thread.join()
    for _ in range(100_000):
        hub.wake()  # never blocks, however often
    hub.poll(0.0)


def test_broadcast_reaches_strangers_too(hub: EngineHub, connect: Callable[..., RawFront]) -> None:
    known, stranger = connect("a"), connect()
    poll_until(hub, lambda _: hub.front_ids == ["a"])
    assert isinstance(stranger.receive(), EngineReady) and isinstance(known.receive(), EngineReady)
    hub.broadcast(EngineFailed(reason="out of memory"))
    assert stranger.receive() == known.receive() == EngineFailed(reason="out of memory")


@pytest.mark.parametrize(
    ("request_id", "front"), [("a-1", "a"), ("api-2-17", "api-2"), ("x", ""), ("-1", "")]
)
def test_front_of(request_id: str, front: str) -> None:
    assert front_of(request_id) == front
