"""Bytes of a streamed answer to events, for any cut of the bytes. Knows the two framings (server-sent events and JSON
lines) and the shapes of events; knows no AWS SDK.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sagemaker_sdk_ext.errors import GenerationError, TruncatedStream

SSE = "text/event-stream"
JSON_LINES = "application/jsonlines"
_LINE_END = re.compile(rb"[\r\n]")
_LINES = frozenset({JSON_LINES, "application/jsonl", "application/x-ndjson"})


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the native stream. The text of a special token is no part of the answer."""

    id: int
    text: str
    logprob: float | None
    special: bool


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """What one event of a stream adds. `raw` is the event as the server sent it.

    `finish_reason` is set in the last event of a choice; `generated_text` in the last one of a native stream; `usage` where
    the request asked for it.
    """

    raw: dict[str, Any]
    text: str = ""
    reasoning: str = ""
    choice: int = 0
    token: Token | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    finish_reason: str | None = None
    generated_text: str | None = None
    usage: dict[str, Any] | None = None


class LineSplitter:
    """Cuts a byte stream into lines that end with LF, CR or CRLF. A line is given out once, when its end has arrived.

    It works on bytes, so that a cut within a UTF-8 character does no harm.
    """

    def __init__(self) -> None:
        self._pending = bytearray()
        self._skip_lf = False

    def push(self, data: bytes) -> Iterator[bytes]:
        start = 0
        if data and self._skip_lf:
            self._skip_lf = False
            start = int(data.startswith(b"\n"))
        while start < len(data):
            found = _LINE_END.search(data, start)
            end = found.start() if found is not None else len(data)
            self._pending += data[start:end]
            if end == len(data):
                return
            line = bytes(self._pending)
            self._pending.clear()
            start = end + 1
            if data[end : end + 1] == b"\r":
                if start == len(data):
                    self._skip_lf = True
                elif data[start : start + 1] == b"\n":
                    start += 1
            yield line

    @property
    def unfinished(self) -> bytes:
        """What came after the last line end."""
        return bytes(self._pending)


@dataclass(slots=True)
class StreamDecoder:
    """Bytes in, events out. After the last byte `close` raises `TruncatedStream` unless the answer was whole.

    A native stream is whole after the event with `generated_text`, OpenAI's after `[DONE]`, or, in JSON lines, after the
    finish reason of every choice. An event counts when its closing blank line, or line end, has arrived. An answer
    in one piece (`application/json`) is one event.
    """

    content_type: str = SSE
    num_choices: int = 1
    """What the request asked for with `n`; JSON lines have no other sign that every choice has ended."""
    done: bool = False
    text: str = ""
    """The answer so far: the text of choice 0."""
    _lines: LineSplitter = field(default_factory=LineSplitter)
    _data: list[bytes] = field(default_factory=list)
    _whole: bytearray = field(default_factory=bytearray)
    _finished_choices: set[int] = field(default_factory=set)

    def push(self, data: bytes) -> Iterator[StreamEvent]:
        """Events that `data` completes. Raises `GenerationError` for an error event."""
        kind = self.content_type.partition(";")[0].strip().lower()
        if kind == "application/json":
            self._whole += data
            return
        take = self._take_json_line if kind in _LINES else self._take_sse_line
        for line in self._lines.push(data):
            yield from take(line)

    def close(self) -> Iterator[StreamEvent]:
        """The end of the bytes. Raises `TruncatedStream` when the last event is missing."""
        if self._whole:
            yield from self._whole_answer(bytes(self._whole))
        choices_ended = len(self._finished_choices) >= self.num_choices
        lines = self.content_type.partition(";")[0].strip().lower() in _LINES
        if self.done or (lines and choices_ended and not self._lines.unfinished.strip()):
            return
        raise TruncatedStream(
            f"the stream ended after {len(self.text)} characters without its last event; the answer is incomplete, "
            f"send the request again",
            text=self.text,
        )

    def _take_sse_line(self, line: bytes) -> Iterator[StreamEvent]:
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":  # an empty name is a comment, the server's heartbeat
                self._data.append(value.removeprefix(b" "))
            return
        data = b"\n".join(self._data)
        self._data.clear()
        if data.strip() == b"[DONE]":
            self.done = True
        elif data:
            yield self._event(self._parse(data))

    def _take_json_line(self, line: bytes) -> Iterator[StreamEvent]:
        if line.strip():
            yield self._event(self._parse(line))

    def _whole_answer(self, data: bytes) -> Iterator[StreamEvent]:
        try:
            value = json.loads(data)
        except ValueError as error:
            raise TruncatedStream(
                f"the answer of {len(data)} bytes is not whole: {error}; send the request again"
            ) from error
        answers = value if isinstance(value, list) else [value]
        for answer in answers:
            yield self._event(answer)
        self.done = True

    def _parse(self, data: bytes) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except ValueError as error:
            raise GenerationError(
                f"the stream has an event that is not JSON: {data[:80]!r}",
                error_type="bad_event",
                text=self.text,
            ) from error
        if not isinstance(value, dict):
            raise GenerationError(
                f"the stream has an event that is no object: {data[:80]!r}",
                error_type="bad_event",
                text=self.text,
            )
        return value

    def _event(self, raw: dict[str, Any]) -> StreamEvent:
        if raw.get("error") is not None:
            raise error_of(raw, text=self.text)
        event = _openai_event(raw) if "choices" in raw else _native_event(raw)
        if event.generated_text is not None:
            self.done = True
        if raw.get("choices") and event.finish_reason is not None:
            self._finished_choices.add(event.choice)
        if event.choice == 0:
            self.text += event.text
        return event


def error_of(raw: dict[str, Any], *, text: str = "") -> GenerationError:
    """The error of a body or event in either API's shape."""
    error = raw["error"]
    if isinstance(error, dict):
        return GenerationError(
            str(error.get("message", error)),
            error_type=str(error.get("code") or error.get("type") or "generation"),
            request_id=_text_or_none(error.get("request_id")),
            text=text,
        )
    return GenerationError(
        str(error),
        error_type=str(raw.get("error_type", "generation")),
        request_id=_text_or_none(raw.get("request_id")),
        text=text,
    )


def decode(parts: Iterable[bytes], content_type: str = SSE) -> Iterator[StreamEvent]:
    """Events of a whole stream. Raises as `StreamDecoder` does."""
    decoder = StreamDecoder(content_type or SSE)
    for part in parts:
        yield from decoder.push(part)
    yield from decoder.close()


def _native_event(raw: dict[str, Any]) -> StreamEvent:
    details = raw.get("details")
    finish = details.get("finish_reason") if isinstance(details, dict) else None
    whole = raw.get("generated_text")
    found = raw.get("token")
    if not isinstance(found, dict):  # an answer in one piece
        return StreamEvent(raw, text=whole or "", finish_reason=finish, generated_text=whole)
    token = Token(
        int(found.get("id", -1)),
        str(found.get("text", "")),
        found.get("logprob"),
        bool(found.get("special", False)),
    )
    return StreamEvent(
        raw,
        text="" if token.special else token.text,
        token=token,
        finish_reason=finish,
        generated_text=whole,
    )


def _openai_event(raw: dict[str, Any]) -> StreamEvent:
    """A chunk, or a whole answer, of chat completions or completions. The server sends one choice per chunk."""
    choices, usage = raw["choices"], raw.get("usage")
    if not choices:
        return StreamEvent(raw, usage=usage)
    choice = choices[0]
    said = choice.get("delta") or choice.get("message") or {}
    return StreamEvent(
        raw,
        text=choice.get("text") or said.get("content") or "",
        reasoning=said.get("reasoning_content") or "",
        choice=int(choice.get("index", 0)),
        tool_calls=tuple(said.get("tool_calls") or ()),
        finish_reason=choice.get("finish_reason"),
        usage=usage,
    )


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)
