"""A scripted engine around the real hub, and the small constants the transport tests share."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from serving.ipc.channel import FrameReader, decode_from_engine, encode_frame
from serving.ipc.server import EngineHub, FrontClosed, FrontEvent
from serving.messages import (
    AbortRequest,
    AddRequest,
    CommandReply,
    EngineReady,
    EngineStats,
    FromEngine,
    Hello,
    Ping,
    RequestAccepted,
    SequenceOutput,
    StepOutputs,
)
from serving.sampling_params import SamplingParams

READY = EngineReady(
    model_id="demo",
    model_dir="/models/demo",
    revision=None,
    device="cpu",
    dtype="float32",
    num_ranks=1,
    vocab_size=512,
    eos_token_ids=[0],
    max_input_tokens=1000,
    max_total_tokens=1024,
    max_step_tokens=512,
    max_num_seqs=16,
    num_blocks=64,
    block_size=16,
    stall_limit_s=20.0,
)
STATS = EngineStats(
    num_steps=3,
    num_waiting=0,
    num_running=0,
    num_waiting_tokens=0,
    num_free_blocks=64,
    num_blocks=64,
    num_sequences=0,
    num_finished=0,
    num_failed=0,
    num_aborted=0,
    num_preemptions=0,
    num_prompt_tokens=0,
    num_generated_tokens=0,
    num_cached_tokens=0,
    forward_s=0.5,
)


def add_request(request_id: str, *, n: int = 1, prompt: list[int] | None = None) -> AddRequest:
    return AddRequest(request_id=request_id, prompt_token_ids=prompt or [1, 2, 3], params=SamplingParams(n=n))


def wait_for(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("condition did not come true in time")
        time.sleep(0.002)


class RawFront:
    """A connection without the client's manners."""

    def __init__(self, path: Path, front_id: str | None = None) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(path))
        self.sock.settimeout(5.0)
        self._reader = FrameReader()
        self._payloads: list[bytes] = []
        if front_id is not None:
            self.sock.sendall(encode_frame(Hello(front_id=front_id)))

    def receive(self) -> FromEngine | None:
        """The next message, None at the end of the stream."""
        while not self._payloads:
            data = self.sock.recv(65536)
            if not data:
                return None
            self._payloads = self._reader.feed(data)
        return decode_from_engine(self._payloads.pop(0))


class FakeEngine:
    """Answers pings and accepts requests in a thread of its own; the test says what is generated."""

    def __init__(self, path: Path, *, ready: EngineReady = READY, answers_pings: bool = True) -> None:
        self.hub = EngineHub(path, ready)
        self.answers_pings = answers_pings
        self.events: list[FrontEvent] = []
        self.poll_gate = threading.Event()
        self.poll_gate.set()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping:
            self.poll_gate.wait()
            for front_id, message in self.hub.poll(None):
                if isinstance(message, Ping):
                    if self.answers_pings:
                        self.hub.send(front_id, CommandReply(nonce=message.nonce, stats=STATS))
                    continue
                if isinstance(message, AddRequest):
                    self.hub.send(front_id, RequestAccepted(request_id=message.request_id))
                self.events.append((front_id, message))

    def emit(self, front_id: str, *outputs: SequenceOutput) -> None:
        self.hub.send(front_id, StepOutputs(outputs=list(outputs)))

    def added(self) -> list[str]:
        return [message.request_id for _, message in list(self.events) if isinstance(message, AddRequest)]

    def aborted(self) -> list[str]:
        return [message.request_id for _, message in list(self.events) if isinstance(message, AbortRequest)]

    def closed(self) -> list[str]:
        return [front_id for front_id, message in list(self.events) if isinstance(message, FrontClosed)]

    def stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        self.poll_gate.set()
        self.hub.wake()
        self._thread.join(timeout=5.0)
        self.hub.close()
