"""How events lie in a streamed body: server-sent events or JSON lines, with keep-alive and end; and the native events.
Knows a generation, not the engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from serving.api.connection import ClientConnection
from serving.api.generation import Generation
from serving.api.native_reply import last_stream_event, stream_event
from serving.errors import IncompleteGeneration, ServingError

# A `StreamEvent` of a token that is neither special nor the last one, as msgspec writes it in three times as long.
_PLAIN_EVENT = b'{"index":%d,"token":{"id":%d,"text":%b,"logprob":%b,"special":false},"generated_text":null,"details":null}'
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
    chunks: Iterator[bytes],
    *,
    framing: Framing,
    heartbeat_s: float,
    more: Callable[[], bool],
    connection: ClientConnection,
) -> Iterator[bytes]:
    """`chunks`, an empty one standing for "nothing to send yet", with keep-alive bytes into longer silences.

    One chunk is pending at a time: while the client does not take it, nothing more is made. While `more` says that the
    next one can be made without waiting they are joined: a front that falls behind sends fewer, longer pieces instead of
    falling further behind. The first, empty chunk makes the server send the headers before there is a token. What the
    outlet of `connection` writes meanwhile counts as sent; after an empty chunk it may write the rest of that.
    """
    yield b""
    last_sent = time.monotonic()
    joined = b""
    outlet = connection.outlet
    try:
        for chunk in chunks:
            joined += chunk
            if joined:
                holds = len(joined) < _MAX_JOINED_BYTES and more()
                if outlet is not None:
                    outlet.holds = holds
                if holds:
                    continue
                yield joined
                joined = b""
            elif outlet is not None and outlet.blocked:
                yield b""
            elif time.monotonic() - max(last_sent, outlet.last_sent_s if outlet else 0.0) >= heartbeat_s:
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


@dataclass(slots=True)
class NativeEvents:
    """Events of plain tokens (`PlainEvents`); counts all of a stream."""

    framing: Framing
    index: int = 0

    def expects(self) -> bool:
        return True

    def event(self, token_id: int, text: str, logprob: float) -> bytes:
        self.index += 1
        event = _PLAIN_EVENT % (self.index, token_id, _encode(text), _encode(logprob))
        return self.framing.before + event + self.framing.after


def native_events(generation: Generation, framing: Framing) -> Iterator[bytes]:
    """One event per token, several in one chunk when they arrive together; empty chunks while nothing happens."""
    events = NativeEvents(framing)
    for progress in generation.progress(events):
        if progress is None:
            yield b""
            continue
        tokens = progress.tokens
        if progress.final and not tokens:
            raise IncompleteGeneration("Incomplete generation")
        chunk = b""
        for token in tokens[:-1] if progress.final else tokens:
            events.index += 1
            chunk += framing.frame(stream_event(events.index, token))
        if progress.final:
            chunk += framing.frame(last_stream_event(events.index + 1, tokens[-1], generation))
        yield chunk
