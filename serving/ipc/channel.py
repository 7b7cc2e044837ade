"""The frame of every internal socket: a 4-byte big-endian length, then one msgpack message of a tagged union.

Knows bytes and message types; it opens no sockets. Whatever is not such a frame is a `TransportError`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from serving.errors import TransportError
from serving.messages import FromEngine, FromRank, ToEngine, ToRank

MAX_FRAME_BYTES = 64 * 1024 * 1024
HEADER_BYTES = 4

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


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


def _decoding(decoder: msgspec.msgpack.Decoder[T]) -> Callable[[bytes], T]:
    decoded = decoder.decode

    def decode(payload: bytes) -> T:
        try:
            return decoded(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError, MemoryError) as error:
            raise TransportError(f"frame of {len(payload)} bytes holds no known message: {error}") from error

    return decode


_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
_to_rank: msgspec.msgpack.Decoder[ToRank] = msgspec.msgpack.Decoder(ToRank)
_from_rank: msgspec.msgpack.Decoder[FromRank] = msgspec.msgpack.Decoder(FromRank)

decode_to_engine = _decoding(_to_engine)
decode_from_engine = _decoding(_from_engine)
decode_to_rank = _decoding(_to_rank)
decode_from_rank = _decoding(_from_rank)


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
        if not buffer and HEADER_BYTES + int.from_bytes(data[:HEADER_BYTES], "big") == len(data):
            payload = data[HEADER_BYTES:]
            if len(payload) <= self._max_frame_bytes:
                return [payload]  # nothing to keep, as nearly always
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
