"""EngineClient against a scripted engine: routing, refusals, death of the engine, health."""

import gc
import socket
import threading
import time
from pathlib import Path

import msgspec
import pytest

from serving.errors import (
    GenerationFailed,
    InvalidRequest,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    TransportError,
    to_wire,
)
from serving.ipc.channel import encode_frame
from serving.ipc.client import EngineClient, OutputStream
from serving.messages import EngineFailed, RequestAccepted, SequenceOutput
from tests.unit.ipc.fakes import READY, STATS, FakeEngine, add_request, wait_for

ACCEPT_S = 5.0


def submit(client: EngineClient, *, n: int = 1) -> OutputStream:
    """A request that the engine has accepted."""
    stream = client.submit(add_request(client.next_request_id(), n=n))
    assert stream.get(ACCEPT_S) == RequestAccepted(request_id=stream.request_ids[0])
    return stream


def output(stream: OutputStream, token: int, *, index: int = 0, end: str | None = None) -> SequenceOutput:
    return SequenceOutput(
        request_id=stream.request_ids[0], index=index, token_ids=[token], logprobs=[-1.0], finish_reason=end
    )


def test_ids_carry_the_front_and_are_unique(client: EngineClient) -> None:
    assert [client.next_request_id() for _ in range(3)] == ["front-1", "front-2", "front-3"]


def test_facts_and_stats(client: EngineClient) -> None:
    assert client.ready == READY
    assert client.stats(5.0) == STATS
    assert client.healthy() == (True, "")


def test_outputs_arrive_in_order_until_the_end(engine: FakeEngine, client: EngineClient) -> None:
    stream = submit(client)
    sent = [output(stream, token) for token in range(5)] + [output(stream, 5, end="length")]
    engine.emit("front", *sent[:2])
    engine.emit("front", *sent[2:])
    assert [stream.get(5.0) for _ in sent] == sent
    engine.emit("front", output(stream, 6))  # late: nobody waits
    client.stats(5.0)
    with pytest.raises(TimeoutError):
        stream.get(0.0)


def test_silence_is_a_timeout_and_the_stream_goes_on(engine: FakeEngine, client: EngineClient) -> None:
    stream = submit(client)
    with pytest.raises(TimeoutError, match=r"front-1 within 0\.01 s"):
        stream.get(0.01)
    engine.emit("front", output(stream, 7))
    assert stream.get(5.0) == output(stream, 7)


def test_each_sequence_ends_on_its_own(engine: FakeEngine, client: EngineClient) -> None:
    stream = submit(client, n=2)
    engine.emit("front", output(stream, 1, index=1, end="eos_token"))
    engine.emit("front", output(stream, 2, index=0, end="length"))
    assert stream.get(5.0) == output(stream, 1, index=1, end="eos_token")
    assert stream.get(5.0) == output(stream, 2, index=0, end="length")


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("`inputs` too long", field="inputs"),
        Overloaded("full", retry_after_s=3.0),
        GenerationFailed("x"),
    ],
)
def test_a_refusal_is_raised_as_it_was(
    engine: FakeEngine,
    client: EngineClient,
    error: InvalidRequest | Overloaded | GenerationFailed,
) -> None:
    stream = submit(client, n=2)
    engine.emit(
        "front", SequenceOutput(request_id=stream.request_ids[0], finish_reason="error", error=to_wire(error))
    )
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            stream.get(5.0)
        assert to_wire(caught.value) == to_wire(error)


def test_the_failure_of_one_sequence_leaves_the_others_to_be_aborted(
    engine: FakeEngine, client: EngineClient
) -> None:
    stream = submit(client, n=2)
    error = to_wire(GenerationFailed("the grammar gave up"))
    engine.emit("front", SequenceOutput(request_id=stream.request_ids[0], finish_reason="error", error=error))
    with pytest.raises(GenerationFailed):
        stream.get(5.0)
    stream.close()
    wait_for(lambda: engine.aborted() == [stream.request_ids[0]])


def test_leaving_a_stream_early_aborts(engine: FakeEngine, client: EngineClient) -> None:
    with submit(client) as stream:
        pass
    wait_for(lambda: engine.aborted() == [stream.request_ids[0]])
    engine.emit("front", output(stream, 1, end="abort"))  # forgotten: dropped
    client.stats(5.0)
    stream.close()
    client.stats(5.0)
    assert engine.aborted() == [stream.request_ids[0]]


def test_leaving_a_finished_stream_aborts_nothing(engine: FakeEngine, client: EngineClient) -> None:
    with submit(client) as stream:
        engine.emit("front", output(stream, 1, end="length"))
        stream.get(5.0)
    client.stats(5.0)
    assert engine.aborted() == []


def test_abort_of_one_sequence_keeps_the_stream(engine: FakeEngine, client: EngineClient) -> None:
    stream = submit(client, n=2)
    client.abort(stream.request_ids[0], 1)
    wait_for(lambda: engine.aborted() == [stream.request_ids[0]])
    engine.emit("front", output(stream, 1, index=1, end="abort"), output(stream, 2))
    assert stream.get(5.0) == output(stream, 1, index=1, end="abort")
    assert stream.get(5.0) == output(stream, 2)


def test_64_interleaved_streams(engine: FakeEngine, client: EngineClient) -> None:
    num_streams, num_tokens = 64, 40
    streams = [submit(client) for _ in range(num_streams)]
    received: dict[str, list[int]] = {stream.request_ids[0]: [] for stream in streams}

    def consume(stream: OutputStream) -> None:
        while True:
            item = stream.get(10.0)
            assert isinstance(item, SequenceOutput) and item.request_id == stream.request_ids[0]
            received[stream.request_ids[0]] += item.token_ids
            if item.finish_reason is not None:
                return

    threads = [threading.Thread(target=consume, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    for step in range(num_tokens):
        end = "length" if step == num_tokens - 1 else None
        engine.emit("front", *(output(s, 1000 * i + step, end=end) for i, s in enumerate(streams)))
    for thread in threads:
        thread.join(timeout=20.0)
    expected = [[1000 * i + step for step in range(num_tokens)] for i in range(num_streams)]
    assert list(received.values()) == expected


def test_fronts_see_their_own_outputs_only(
    engine: FakeEngine, client: EngineClient, socket_path: Path
) -> None:
    other = EngineClient(socket_path, "other")
    other.start()
    other.wait_ready(5.0)
    mine, theirs = submit(client), submit(other)
    engine.emit("other", output(theirs, 2))
    engine.emit("front", output(mine, 1))
    assert mine.get(5.0) == output(mine, 1)
    assert theirs.get(5.0) == output(theirs, 2)
    other.close()
    wait_for(lambda: engine.closed() == ["other"])
    assert client.healthy() == (True, "")


def end_times(streams: list[OutputStream], reasons: list[str]) -> list[threading.Thread]:
    """Threads that wait for the terminal error of each stream."""

    def wait(stream: OutputStream) -> None:
        try:
            stream.get(10.0)
        except GenerationFailed as error:
            reasons.append(error.message)

    threads = [threading.Thread(target=wait, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    return threads


def test_engine_end_of_file_ends_every_stream_at_once(engine: FakeEngine, client: EngineClient) -> None:
    reasons: list[str] = []
    threads = end_times([submit(client) for _ in range(64)], reasons)
    started_s = time.monotonic()
    engine.stop()
    for thread in threads:
        thread.join(timeout=10.0)
    assert time.monotonic() - started_s < 0.5
    assert reasons == ["the engine stopped unexpectedly"] * 64
    assert client.healthy() == (False, "the engine stopped unexpectedly")
    assert client.ready is None
    with pytest.raises(NotReady, match="stopped unexpectedly"):
        client.submit(add_request(client.next_request_id()))
    with pytest.raises(NotReady):
        client.stats(1.0)


def test_engine_failure_carries_its_reason(engine: FakeEngine, client: EngineClient) -> None:
    reasons: list[str] = []
    threads = end_times([submit(client) for _ in range(3)], reasons)
    engine.hub.broadcast(EngineFailed(reason="rank 1 was ended by signal 9"))
    for thread in threads:
        thread.join(timeout=10.0)
    assert reasons == ["rank 1 was ended by signal 9"] * 3


def test_a_waiting_stats_call_ends_with_the_engine(engine: FakeEngine, client: EngineClient) -> None:
    engine.answers_pings = False
    failures: list[str] = []

    def ask() -> None:
        try:
            client.stats(10.0)
        except NotReady as error:
            failures.append(error.message)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: bool(client._waiters))
    engine.stop()
    thread.join(timeout=5.0)
    assert failures == ["the engine stopped unexpectedly"]


def test_connects_again_after_a_restart(engine: FakeEngine, client: EngineClient, socket_path: Path) -> None:
    stream = submit(client)
    engine.stop()
    with pytest.raises(GenerationFailed):
        stream.get(5.0)
    second = FakeEngine(socket_path, ready=msgspec.structs.replace(READY, num_blocks=99))
    try:
        assert client.wait_ready(5.0).num_blocks == 99
        assert submit(client).request_ids[0] == "front-2"
        assert client.healthy() == (True, "")
    finally:
        second.stop()


def test_before_the_engine_listens(socket_path: Path) -> None:
    client = EngineClient(socket_path, "front")
    client.start()
    assert client.healthy() == (False, "the engine is not ready yet")
    with pytest.raises(TimeoutError, match="not ready yet"):
        client.wait_ready(0.05)
    with pytest.raises(NotReady):
        client.submit(add_request("front-1"))
    client.close()


def test_silence_beyond_the_stall_limit_is_unhealthy_and_an_answer_heals(socket_path: Path) -> None:
    engine = FakeEngine(socket_path, ready=msgspec.structs.replace(READY, stall_limit_s=0.3))
    client = EngineClient(socket_path, "front")
    client.start()
    client.wait_ready(5.0)
    engine.poll_gate.clear()  # hangs inside a step
    wait_for(lambda: not client.healthy()[0])
    assert "silent for" in client.healthy()[1]
    engine.poll_gate.set()
    wait_for(lambda: client.healthy() == (True, ""))
    client.close()
    engine.stop()


def test_a_busy_engine_is_healthy(socket_path: Path) -> None:
    """Steps of 0.2 s against a limit of 0.5 s: answers are late, but they come."""
    engine = FakeEngine(socket_path, ready=msgspec.structs.replace(READY, stall_limit_s=0.5))
    client = EngineClient(socket_path, "front")
    client.start()
    client.wait_ready(5.0)
    deadline = time.monotonic() + 1.5
    verdicts = set()
    while time.monotonic() < deadline:
        engine.poll_gate.clear()
        step_end = time.monotonic() + 0.2
        wait_for(lambda end=step_end: time.monotonic() > end)  # type: ignore[misc]
        verdicts.add(client.healthy())
        engine.poll_gate.set()
        client.stats(5.0)
    assert verdicts == {(True, "")}
    client.close()
    engine.stop()


def test_garbage_from_the_engine_ends_streams(socket_path: Path) -> None:
    socket_path.parent.mkdir(mode=0o700)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(socket_path))
    listener.listen()
    client = EngineClient(socket_path, "front")
    client.start()
    sock, _ = listener.accept()
    listener.close()
    sock.sendall(encode_frame(READY))
    client.wait_ready(5.0)
    stream = client.submit(add_request(client.next_request_id()))
    sock.sendall(b"\x00\x00\x00\x03abc")
    with pytest.raises(GenerationFailed):
        stream.get(5.0)
    client.close()
    sock.close()


def test_submit_never_blocks_on_an_engine_that_does_not_read(
    engine: FakeEngine, client: EngineClient
) -> None:
    engine.poll_gate.clear()
    engine.hub.wake()
    started_s = time.monotonic()
    streams = [
        client.submit(add_request(client.next_request_id(), prompt=[70_000] * 100_000)) for _ in range(8)
    ]
    assert time.monotonic() - started_s < 2.0
    with pytest.raises(TimeoutError):
        streams[-1].get(0.01)
    engine.poll_gate.set()
    for stream in streams:
        assert isinstance(stream.get(10.0), RequestAccepted)


def test_a_request_over_the_frame_limit_is_refused(client: EngineClient) -> None:
    with pytest.raises(PayloadTooLarge, match="14000000 prompt tokens"):
        client.submit(add_request(client.next_request_id(), prompt=[2**31] * 14_000_000))
    gc.collect()


def test_a_request_id_is_used_once(engine: FakeEngine, client: EngineClient) -> None:
    stream = submit(client)
    with pytest.raises(TransportError, match="next_request_id"):
        client.submit(add_request(stream.request_ids[0]))
