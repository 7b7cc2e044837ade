"""Frames: cut anywhere, oversized, truncated, garbage, and payloads that try to be more than data."""

import pickle
import random
from pathlib import Path

import msgspec
import pytest

from serving.errors import TransportError, WireError
from serving.ipc.channel import (
    HEADER_BYTES,
    FrameReader,
    decode_from_engine,
    decode_from_rank,
    decode_to_engine,
    decode_to_rank,
    encode_frame,
)
from serving.messages import (
    AbortRequest,
    AddRequest,
    EngineFailed,
    InitializeCache,
    Ping,
    RankReady,
    SequenceOutput,
    Shutdown,
    StepOutputs,
    TopToken,
)
from serving.sampling_params import MAX_SEED, SamplingParams

ADD = AddRequest(
    request_id="front-7",
    prompt_token_ids=[0, 127, 128, 65_536, 2**31 - 1],
    params=SamplingParams(seed=MAX_SEED, n=2, stop=("a\udfff".encode("utf-8", "replace").decode(),)),
)
STEP = StepOutputs(
    outputs=[
        SequenceOutput(
            request_id="front-7",
            index=1,
            token_ids=[3, 4],
            logprobs=[-0.5, float("-inf")],
            top_tokens=[[TopToken(id=1, logprob=-0.1)], []],
            finish_reason="error",
            error=WireError(error_type="generation", message="no"),
            prompt_logprobs=[None, -1.0],
        )
    ]
)


def payload_of(frame: bytes) -> bytes:
    (payload,) = FrameReader().feed(frame)
    return payload


def test_messages_survive_the_way() -> None:
    assert decode_to_engine(payload_of(encode_frame(ADD))) == ADD
    assert decode_from_engine(payload_of(encode_frame(STEP))) == STEP
    command = InitializeCache(num_blocks=[4, 9])
    assert decode_to_rank(payload_of(encode_frame(command))) == command
    assert decode_from_rank(payload_of(encode_frame(RankReady(rank=1, free_bytes=2**40)))).free_bytes == 2**40


def test_frames_cut_at_every_byte() -> None:
    messages = [ADD, Ping(nonce=1), AbortRequest(request_id="front-7", index=0)]
    stream = b"".join(encode_frame(message) for message in messages)
    for cut in range(len(stream) + 1):
        reader = FrameReader()
        payloads = reader.feed(stream[:cut]) + reader.feed(stream[cut:])
        assert [decode_to_engine(payload) for payload in payloads] == messages
        assert reader.num_pending_bytes == 0


def test_frames_byte_by_byte() -> None:
    stream = encode_frame(ADD) + encode_frame(Ping(nonce=2))
    reader = FrameReader()
    payloads = [payload for i in range(len(stream)) for payload in reader.feed(stream[i : i + 1])]
    assert [type(decode_to_engine(payload)) for payload in payloads] == [AddRequest, Ping]


def test_truncated_frame_stays_pending() -> None:
    frame = encode_frame(ADD)
    reader = FrameReader()
    assert reader.feed(frame[:-1]) == []
    assert reader.num_pending_bytes == len(frame) - 1


def test_oversized_length_is_refused_before_its_bytes_come() -> None:
    reader = FrameReader(max_frame_bytes=100)
    with pytest.raises(TransportError, match=r"101 bytes announced, at most 100"):
        reader.feed((101).to_bytes(HEADER_BYTES, "big"))
    with pytest.raises(TransportError, match=r"4294967295 bytes"):
        FrameReader().feed(b"\xff\xff\xff\xff")


def test_oversized_message_is_not_encoded() -> None:
    with pytest.raises(TransportError, match=r"EngineFailed takes \d+ bytes, a frame holds 50"):
        encode_frame(EngineFailed(reason="x" * 100), max_frame_bytes=50)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\xff" * 40,
        b"\x80",
        msgspec.msgpack.encode({"type": "unknown"}),
        msgspec.msgpack.encode({"type": "step", "outputs": []}),
        msgspec.msgpack.encode({"type": "add", "request_id": 1}),
        msgspec.msgpack.encode({"type": "ping", "nonce": "1"}),
        msgspec.msgpack.encode([1, 2]),
        b"\x82\xa4type\xa5hello\xa8front_id\xa2\xff\xfe",
        b"\x82\xa4type\xa5hello\xa1x" + b"\x91" * 100_000,
        b"\x82\xa4type\xa3add\xb0prompt_token_ids\xdd\xff\xff\xff\xff",
    ],
)
def test_what_is_no_message_is_a_transport_error(payload: bytes) -> None:
    with pytest.raises(TransportError, match="holds no known message"):
        decode_to_engine(payload)


class Canary:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_is_never_loaded(tmp_path: Path, protocol: int) -> None:
    canary = tmp_path / "canary"
    payload = pickle.dumps(Canary(canary), protocol=protocol)
    for decode in (decode_to_engine, decode_from_engine, decode_to_rank, decode_from_rank):
        with pytest.raises(TransportError):
            decode(payload)
    assert not canary.exists()


def test_random_damage_is_a_message_or_a_transport_error() -> None:
    rng = random.Random(1)
    whole = payload_of(encode_frame(ADD))
    num_refused = 0
    for _ in range(5_000):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            decode_to_engine(bytes(damaged[: rng.randint(1, len(damaged))]))
        except TransportError:
            num_refused += 1
    assert num_refused > 4_000


def test_unknown_fields_of_a_newer_peer_are_ignored() -> None:
    assert isinstance(decode_to_rank(msgspec.msgpack.encode({"type": "shutdown", "why": "new"})), Shutdown)
