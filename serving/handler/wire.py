"""What the front and the handler's process say to each other: one connection per call of a hook.

The process takes one connection at a time and greets it with `Turn`; then the front sends its `HookCall` and gets a
`HookReply`. Who waits for the turn has sent nothing yet, so a process that dies takes one call with it, not the queue.
Frames are a 4-byte big-endian length and a msgpack message.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Literal, TypeVar

import msgspec

from serving.errors import TransportError

HookName = Literal["input_fn", "output_fn"]
SLACK_BYTES = 256 * 1024
"""What a frame may take beyond the body in it: media type, headers, names."""

_HEADER_BYTES = 4
_READ_BYTES = 64 * 1024


class Turn(msgspec.Struct, frozen=True, tag=True):
    """The time of the call runs from here."""


class HookCall(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`media_type` is the Content-Type header for `input_fn`, the Accept header for `output_fn`."""

    hook: HookName
    data: bytes
    media_type: str
    headers: dict[str, str]
    request_id: str


class HookError(msgspec.Struct, frozen=True, kw_only=True):
    """`refused`: the hook says, on purpose, that the client is at fault. `message` is for the client."""

    message: str
    refused: bool = False


class HookReply(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`content_type` is None where the hook named none."""

    body: bytes = b""
    content_type: str | None = None
    error: HookError | None = None


ToFront = Turn | HookReply
_Message = TypeVar("_Message")
_call_decoder: msgspec.msgpack.Decoder[HookCall] = msgspec.msgpack.Decoder(HookCall)
_front_decoder: msgspec.msgpack.Decoder[ToFront] = msgspec.msgpack.Decoder(ToFront)


def send(sock: socket.socket, message: Turn | HookCall | HookReply) -> None:
    """Raises `OSError`; waits as long as the socket's timeout says."""
    payload = msgspec.msgpack.encode(message)
    sock.sendall(len(payload).to_bytes(_HEADER_BYTES, "big") + payload)


def read_call(sock: socket.socket, *, max_bytes: int, deadline_s: float) -> HookCall:
    return _decode(_call_decoder, read_frame(sock, max_bytes=max_bytes, deadline_s=deadline_s))


def decode_to_front(payload: bytes) -> ToFront:
    """Raises `TransportError`."""
    return _decode(_front_decoder, payload)


def read_frame(
    sock: socket.socket,
    *,
    max_bytes: int,
    deadline_s: float,
    interval_s: float = 1.0,
    on_interval: Callable[[], None] = lambda: None,
    on_piece: Callable[[], None] = lambda: None,
) -> bytes:
    """The payload of the next frame. `deadline_s` is a reading of `time.monotonic`; `on_interval` is called in silences,
    `on_piece` after every read, and what they raise ends the call.

    Raises `TransportError` at the end of the stream and for a frame over `max_bytes`, `TimeoutError` at the deadline,
    `OSError`.
    """
    buffer = bytearray()
    wanted = _HEADER_BYTES
    while len(buffer) < wanted:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        sock.settimeout(min(left_s, interval_s))
        try:
            piece = sock.recv(min(wanted - len(buffer), _READ_BYTES))
        except TimeoutError:
            on_interval()
            continue
        if not piece:
            raise TransportError(f"the stream ended {wanted - len(buffer)} bytes too early")
        buffer += piece
        on_piece()
        if wanted == _HEADER_BYTES == len(buffer):
            size = int.from_bytes(buffer, "big")
            if size > max_bytes:
                raise TransportError(f"a frame of {size} bytes is announced, at most {max_bytes} may come")
            wanted += size
    return bytes(buffer[_HEADER_BYTES:])


def _decode(decoder: msgspec.msgpack.Decoder[_Message], payload: bytes) -> _Message:
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError, MemoryError) as error:
        raise TransportError(f"frame of {len(payload)} bytes holds no known message: {error}") from error
