"""How events lie in a streamed body: server-sent events or JSON lines, with keep-alive and end; and the native events.
Knows a generation, not the engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from serving.api.generation import Generation
from serving.api.native_reply import last_stream_event, stream_event
from serving.errors import IncompleteGeneration, ServingError

_MAX_JOINED_BYTES = 32 * 1024
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True, frozen=True)
class Framing:
    """One way to write events. `keep_alive` means nothing to a reader; `end` is what OpenAI's streams close with."""

    content_type: str
    before: bytes
    after: bytes
    keep_alive: bytes
    end: bytes

    @property
    def headers(self) -> dict[str, str]:
        return {
            "content-type": self.content_type,
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
        }

    def frame(self, event: msgspec.Struct) -> bytes:
        return self.before + _encode(event) + self.after


SSE = Framing(
    content_type="text/event-stream",
    before=b"data: ",
    after=b"\n\n",
    keep_alive=b":\n\n",
    end=b"data: [DONE]\n\n",
)
# A space in front of the next object leaves every line one JSON value.
JSON_LINES = Framing(content_type="application/jsonlines", before=b"", after=b"\n", keep_alive=b" ", end=b"")


def framing_for(accept: str, default: str = "") -> Framing:
    """What the Accept header of `/invocations` asks for: JSON lines by name, server-sent events otherwise. `default` is
    taken where it says nothing, or that anything will do."""
    types = _media_types(accept)
    if set(types) <= {"*/*"}:
        types = _media_types(default)
    return JSON_LINES if JSON_LINES.content_type in types else SSE


def _media_types(accept: str) -> list[str]:
    types = (part.partition(";")[0].strip().lower() for part in accept.split(","))
    return [name for name in types if name]


def paced(
    chunks: Iterator[bytes], *, framing: Framing, heartbeat_s: float, more: Callable[[], bool]
) -> Iterator[bytes]:
    """`chunks`, an empty one standing for "nothing to send yet", with keep-alive bytes into longer silences.

    One chunk is pending at a time: while the client does not take it, nothing more is made. While `more` says that the
    next one can be made without waiting they are joined: a front that falls behind sends fewer, longer pieces instead of
    falling further behind. The first, empty chunk makes the server send the headers before there is a token.
    """
    yield b""
    last_sent = time.monotonic()
    joined = b""
    try:
        for chunk in chunks:
            joined += chunk
            if joined:
                if len(joined) < _MAX_JOINED_BYTES and more():
                    continue
                yield joined
                joined = b""
            elif time.monotonic() - last_sent >= heartbeat_s:
                yield framing.keep_alive
            else:
                continue
            last_sent = time.monotonic()
    except ServingError:
        if joined:
            yield joined  # what was made before the error is the client's
        raise
    if joined:
        yield joined


def native_events(generation: Generation, framing: Framing) -> Iterator[bytes]:
    """One event per token, several in one chunk when they arrive together; empty chunks while nothing happens."""
    index = 0
    for progress in generation.progress():
        if progress is None:
            yield b""
            continue
        tokens = progress.tokens
        if progress.final and not tokens:
            raise IncompleteGeneration("Incomplete generation")
        chunk = b""
        for token in tokens[:-1] if progress.final else tokens:
            index += 1
            chunk += framing.frame(stream_event(index, token))
        if progress.final:
            chunk += framing.frame(last_stream_event(index + 1, tokens[-1], generation))
        yield chunk
