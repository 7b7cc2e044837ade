"""The events of a connection, in the shapes of OpenAI's Responses API over WebSocket: what a client's event asks for, and
how the server's events name the request they belong to. Knows no sockets and no routes' meaning.
"""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from serving.api import strict_json
from serving.api.error_styles import OPENAI, Problem, printable
from serving.api.json_body import convert, unknown_fields
from serving.api.strict_json import JsonValue
from serving.errors import InvalidRequest, Overloaded, RequestError

MAX_EVENT_ID_CHARS = 128

_DATA = b"data: "
_ERROR = b'{"error":'
_STATUSES = {"invalid_request_error": 400, "rate_limit_error": 429}
"""What an error in a stream stands for, by its type."""
_RESPONSE_FAILED = b'{"type":"response.failed"'

EventId = Annotated[
    str, Meta(min_length=1, max_length=MAX_EVENT_ID_CHARS, description="Names the request; absent: made here")
]


@dataclass(slots=True, frozen=True)
class Api:
    """Where a request goes, by the key that its body has."""

    path: str
    event_type: str | None
    """The `type` of its events, where they have none of their own."""


APIS: dict[str, Api] = {
    "input": Api("/v1/responses", None),
    "messages": Api("/v1/chat/completions", "chat.completion.chunk"),
    "prompt": Api("/v1/completions", "text_completion"),
}
"""The first key that a body has decides."""


@dataclass(slots=True, frozen=True)
class CreateResponse:
    event_id: str
    api: Api
    body: dict[str, JsonValue]


class CancelResponse(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["response.cancel"]
    event_id: EventId | None = None
    """The request to cancel; absent: all of them."""


class ErrorEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error that belongs to no stream: `event_id` is that of the client's event, where it had a usable one."""

    type: Literal["error"]
    event_id: str | None
    status: int
    error: msgspec.Raw
    retry_after_s: int | None = None


class _ErrorType(msgspec.Struct):
    type: str


class ResponseDone(msgspec.Struct, frozen=True, kw_only=True):
    """The last event of every request."""

    type: Literal["response.done"]
    event_id: str
    status: Literal["completed", "failed", "cancelled"]


class EventRefused(Exception):
    """A client's event that asks for nothing we can do; `event_id` as the client gave it."""

    def __init__(self, error: RequestError, event_id: str | None) -> None:
        super().__init__(error.message)
        self.error = error
        self.event_id = event_id


def read_event(text: bytes) -> CreateResponse | CancelResponse:
    """Raises `EventRefused`."""
    event_id = None
    try:
        event = strict_json.parse(text)
        if not isinstance(event, dict):
            raise InvalidRequest("an event must be a JSON object", field="event")
        event_id = _event_id(event)
        kind = event.get("type")
        if kind == "response.create":
            return _create(event, event_id)
        if kind == "response.cancel":
            return _cancel(event)
        shown = printable(kind) if isinstance(kind, str) else "missing"
        raise InvalidRequest(f"`type` must be response.create or response.cancel, is {shown}", field="type")
    except RequestError as error:
        raise EventRefused(error, event_id) from None


def events_of(chunk: bytes) -> list[bytes]:
    """The JSON of the server-sent events in a piece of a stream; pieces hold whole events."""
    lines = [line[len(_DATA) :] for line in chunk.split(b"\n") if line.startswith(_DATA)]
    return [line for line in lines if line.startswith(b"{")]


def named(event: bytes, request: CreateResponse) -> bytes:
    """A stream's `event` with the id of its request; errors become events of their own."""
    if event.startswith(_ERROR):
        return error_event(event, event_id=request.event_id)
    head = b'"event_id":' + msgspec.json.encode(request.event_id)
    if request.api.event_type is not None:
        head = b'"type":' + msgspec.json.encode(request.api.event_type) + b"," + head
    return b"{" + head + b"," + event[1:]


def tells_failure(event: bytes) -> bool:
    return event.startswith((_ERROR, _RESPONSE_FAILED))


def error_event(
    body: bytes, *, event_id: str | None, status: int | None = None, retry_after_s: int | None = None
) -> bytes:
    """`body` is an error as an answer or a stream of OpenAI's API has it; `status` that of the answer, None in a stream."""
    error = msgspec.json.decode(body, type=dict[str, msgspec.Raw])["error"]
    if status is None:
        status = _STATUSES.get(msgspec.json.decode(error, type=_ErrorType).type, 500)
    event = ErrorEvent(
        type="error", event_id=event_id, status=status, error=error, retry_after_s=retry_after_s
    )
    return msgspec.json.encode(event)


def refusal(error: RequestError, *, event_id: str | None, request_id: str) -> bytes:
    problem: Problem = OPENAI.problem(error)
    body = msgspec.json.encode(OPENAI.body(problem, request_id))
    retry_after_s = max(1, math.ceil(error.retry_after_s)) if isinstance(error, Overloaded) else None
    return error_event(body, event_id=event_id, status=problem.status, retry_after_s=retry_after_s)


def _event_id(event: dict[str, JsonValue]) -> str | None:
    given = event.get("event_id")
    if given is None:
        return None
    if not isinstance(given, str) or not 1 <= len(given) <= MAX_EVENT_ID_CHARS:
        raise InvalidRequest(
            f"`event_id` must be a string of 1 to {MAX_EVENT_ID_CHARS} characters", field="event_id"
        )
    return given


def _cancel(event: dict[str, JsonValue]) -> CancelResponse:
    if unknown := unknown_fields(event, CancelResponse):
        raise InvalidRequest(f"`{printable(unknown[0])}` is not part of a response.cancel", field=unknown[0])
    return convert(event, CancelResponse)


def _create(event: dict[str, JsonValue], event_id: str | None) -> CreateResponse:
    body = {name: value for name, value in event.items() if name not in ("type", "event_id")}
    if body.get("stream") is False:
        raise InvalidRequest("`stream`: a response on a connection is always streamed", field="stream")
    body["stream"] = True
    for key, api in APIS.items():
        if key in body:
            return CreateResponse(event_id or f"event_{uuid.uuid4().hex}", api, body)
    raise InvalidRequest(
        "`input` is missing: a response.create has the body of a response (`input`), of a chat (`messages`) or of a "
        "completion (`prompt`)",
        field="input",
    )
