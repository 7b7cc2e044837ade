"""A sink gets outputs while the stream's reader waits, and only then; order and ends are those of the queue."""

from __future__ import annotations

import threading

import pytest

from serving.ipc.client import EngineClient
from serving.ipc.output_stream import OutputStream
from serving.messages import RequestAccepted, SequenceOutput
from tests.unit.ipc.fakes import FakeEngine, add_request, wait_for

WAIT_S = 5.0


class Recorder:
    """Takes tokens below `limit`; from `blocked_at` taken tokens on, a flush cannot write."""

    def __init__(self, *, limit: int = 100, blocked_at: int = 100) -> None:
        self.taken: list[int] = []
        self.flushed: list[int] = []
        self._limit = limit
        self._blocked_at = blocked_at

    def take(self, output: SequenceOutput, now_s: float) -> bool:
        if output.finish_reason is not None or output.token_ids[0] >= self._limit:
            return False
        self.taken += output.token_ids
        return True

    def flush(self) -> bool:
        self.flushed.append(len(self.taken))
        return len(self.taken) < self._blocked_at


def token(stream: OutputStream, token_id: int, end: str | None = None) -> SequenceOutput:
    return SequenceOutput(
        request_id=stream.request_ids[0], token_ids=[token_id], logprobs=[-1.0], finish_reason=end
    )


def emit_once_waiting(engine: FakeEngine, stream: OutputStream, *outputs: SequenceOutput) -> threading.Thread:
    def run() -> None:
        wait_for(lambda: stream.sink is not None)
        engine.emit("front", *outputs)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.fixture
def stream(client: EngineClient) -> OutputStream:
    opened = client.submit(add_request(client.next_request_id()))
    assert isinstance(opened.get(WAIT_S), RequestAccepted)
    return opened


def test_what_comes_together_is_flushed_once_and_the_end_is_read(
    engine: FakeEngine, stream: OutputStream
) -> None:
    sink = Recorder()
    end = token(stream, 9, "length")
    emitting = emit_once_waiting(engine, stream, token(stream, 1), token(stream, 2), end)
    assert stream.get(WAIT_S, sink) == end
    emitting.join()
    assert (sink.taken, sink.flushed) == ([1, 2], [2])


def test_after_something_refused_everything_waits_behind_it(engine: FakeEngine, stream: OutputStream) -> None:
    sink = Recorder(limit=5)
    sent = [token(stream, 1), token(stream, 7), token(stream, 2)]
    emitting = emit_once_waiting(engine, stream, *sent)
    assert stream.get(WAIT_S, sink) == sent[1]
    assert stream.get(WAIT_S, sink) == sent[2]
    emitting.join()
    assert sink.taken == [1]


def test_nobody_takes_what_comes_before_the_wait(
    engine: FakeEngine, client: EngineClient, stream: OutputStream
) -> None:
    sink = Recorder()
    engine.emit("front", token(stream, 1))
    client.stats(WAIT_S)  # answered behind the token
    assert stream.get(WAIT_S, sink) == token(stream, 1)
    assert not sink.taken


def test_a_sink_that_cannot_write_ends_the_wait(engine: FakeEngine, stream: OutputStream) -> None:
    sink = Recorder(blocked_at=1)
    emitting = emit_once_waiting(engine, stream, token(stream, 1))
    with pytest.raises(TimeoutError, match="was ended"):
        stream.get(WAIT_S, sink)
    emitting.join()
    engine.emit("front", token(stream, 2, "length"))
    assert stream.get(WAIT_S, sink) == token(stream, 2, "length")
    assert sink.taken == [1]
