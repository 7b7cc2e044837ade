"""The frame of every internal socket: a 4-byte big-endian length, then one msgpack message of a tagged union.

Knows bytes and message types; it opens no sockets. Whatever is not such a frame is a `TransportError`.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from serving.errors import TransportError
from serving.messages import FromEngine, FromRank, ToEngine, ToRank

MAX_FRAME_BYTES = 64 * 1024 * 1024
HEADER_BYTES = 4

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_to_engine_decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine_decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
_to_rank_decoder: msgspec.msgpack.Decoder[ToRank] = msgspec.msgpack.Decoder(ToRank)
_from_rank_decoder: msgspec.msgpack.Decoder[FromRank] = msgspec.msgpack.Decoder(FromRank)


def encode_frame(
    message: ToEngine | FromEngine | ToRank | FromRank, *, max_frame_bytes: int = MAX_FRAME_BYTES
) -> bytes:
    """Header and payload, ready to be sent. Raises `TransportError` for a payload over `max_frame_bytes`."""
    payload = _encoder.encode(message)
    if len(payload) > max_frame_bytes:
        raise TransportError(
            f"{type(message).__name__} takes {len(payload)} bytes, a frame holds {max_frame_bytes}"
        )
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


def decode_to_engine(payload: bytes) -> ToEngine:
    return _decode(_to_engine_decoder, payload)


def decode_from_engine(payload: bytes) -> FromEngine:
    return _decode(_from_engine_decoder, payload)


def decode_to_rank(payload: bytes) -> ToRank:
    return _decode(_to_rank_decoder, payload)


def decode_from_rank(payload: bytes) -> FromRank:
    return _decode(_from_rank_decoder, payload)


class FrameReader:
    """Turns a byte stream, cut anywhere, into the payloads of its frames. Keeps at most one partial frame."""

    __slots__ = ("_buffer", "_max_frame_bytes")

    def __init__(self, *, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self._max_frame_bytes = max_frame_bytes

    @property
    def num_pending_bytes(self) -> int:
        """Bytes of an incomplete frame; not 0 at the end of a stream means that the frame was cut off."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Add `data`, return what it completed. Raises `TransportError` for a length over the cap."""
        buffer = self._buffer
        buffer += data
        payloads: list[bytes] = []
        start = 0
        while len(buffer) - start >= HEADER_BYTES:
            body = start + HEADER_BYTES
            length = int.from_bytes(buffer[start:body], "big")
            if length > self._max_frame_bytes:
                raise TransportError(
                    f"frame of {length} bytes announced, at most {self._max_frame_bytes} may come"
                )
            if len(buffer) < body + length:
                break
            payloads.append(bytes(buffer[body : body + length]))
            start = body + length
        del buffer[:start]
        return payloads


def _decode(decoder: msgspec.msgpack.Decoder[T], payload: bytes) -> T:
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError, MemoryError) as error:
        raise TransportError(f"frame of {len(payload)} bytes holds no known message: {error}") from error
