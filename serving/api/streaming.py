"""Server-sent events of a native stream: framing, keep-alive comments, the end. Knows a generation, not the
engine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec

from serving.api.generation import Generation
from serving.api.native_reply import last_stream_event, stream_event
from serving.errors import IncompleteGeneration

KEEP_ALIVE = b":\n\n"

STREAM_HEADERS = {
    "content-type": "text/event-stream",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}

_encode = msgspec.json.Encoder().encode


def frame(event: msgspec.Struct) -> bytes:
    return b"data: " + _encode(event) + b"\n\n"


def native_events(generation: Generation, *, heartbeat_s: float) -> Iterator[bytes]:
    """One event per token, several in one chunk when they arrive together. One chunk at a time is pending:
    while the client does not take it, nothing more is made.

    The first, empty chunk makes the server send the headers before there is a token.
    """
    yield b""
    index = 0
    last_sent = time.monotonic()
    for progress in generation.progress():
        if progress is None:
            if time.monotonic() - last_sent >= heartbeat_s:
                yield KEEP_ALIVE
                last_sent = time.monotonic()
            continue
        tokens = progress.tokens
        if progress.final and not tokens:
            raise IncompleteGeneration("Incomplete generation")
        chunk = b""
        for token in tokens[:-1] if progress.final else tokens:
            index += 1
            chunk += frame(stream_event(index, token))
        if progress.final:
            chunk += frame(last_stream_event(index + 1, tokens[-1], generation))
        yield chunk
        last_sent = time.monotonic()
