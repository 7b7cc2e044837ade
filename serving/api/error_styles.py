"""The two shapes of an error body, TGI's and OpenAI's, each with its status codes. Knows nothing of Flask."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from serving.errors import (
    BodyTimeout,
    ContextTooLong,
    DeadlineExceeded,
    Draining,
    GenerationFailed,
    HandlerFailed,
    HandlerRefused,
    IncompleteGeneration,
    InvalidRequest,
    MalformedBody,
    MethodNotAllowed,
    NotFound,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    RequestError,
    ServingError,
    SessionMissing,
    SessionRefused,
    TemplateError,
    ToolError,
    Unauthorized,
    UnsupportedMediaType,
)

_MAX_MESSAGE_BYTES = 640  # SageMaker shows clients only short error bodies
_MAX_FIELD_BYTES = 128
_MAX_NAME_CHARS = 80

_NATIVE_STATUSES: dict[type[ServingError], int] = {
    InvalidRequest: 422,
    TemplateError: 422,
    ToolError: 422,
    Unauthorized: 401,
    MalformedBody: 400,
    PayloadTooLarge: 413,
    UnsupportedMediaType: 415,
    BodyTimeout: 408,
    NotFound: 404,
    SessionRefused: 400,
    SessionMissing: 424,
    MethodNotAllowed: 405,
    Overloaded: 429,
    Draining: 503,
    NotReady: 503,
    HandlerFailed: 500,
    HandlerRefused: 400,
    GenerationFailed: 424,
    DeadlineExceeded: 424,
    IncompleteGeneration: 500,
    RequestError: 424,
}
# A passed deadline stays 424 here: what clients of OpenAI see as 408, 429 or 5xx they send again, twice.
_OPENAI_STATUSES = _NATIVE_STATUSES | {
    InvalidRequest: 400,
    TemplateError: 400,
    ToolError: 400,
    GenerationFailed: 500,
    RequestError: 500,
}
_PREFIXES: dict[type[ServingError], str] = {
    InvalidRequest: "Input validation error: ",
    ToolError: "Tool error: ",
    GenerationFailed: "Request failed during generation: ",
}
_OPENAI_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
_OPENAI_CODES: dict[type[ServingError], str | None] = {
    ContextTooLong: "context_length_exceeded",
    InvalidRequest: None,
    Unauthorized: "invalid_api_key",
    Overloaded: "rate_limit_exceeded",
    NotReady: "not_ready",
}


@dataclass(slots=True, frozen=True)
class Problem:
    """What an error body says. `error_type` is our wire name, `field` the request field at fault, `code` OpenAI's name."""

    message: str
    error_type: str
    status: int
    field: str | None = None
    code: str | None = None
    retry_after_s: int | None = None


RetryAfter = Annotated[
    int | None,
    Meta(description="When to come back, seconds, as in `retry-after`: SageMaker passes on the body alone"),
]


class NativeError(msgspec.Struct, frozen=True, omit_defaults=True):
    error: Annotated[str, Meta(description="What is wrong, for people")]
    error_type: Annotated[str, Meta(description="What is wrong, for programs")]
    request_id: Annotated[str, Meta(description="The request's id, under which the log has the details")]
    retry_after_s: RetryAfter = None


class OpenAIErrorDetail(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    message: Annotated[str, Meta(description="What is wrong, for people")]
    type: Annotated[
        str,
        Meta(
            description="`invalid_request_error`, `authentication_error`, `rate_limit_error` or `server_error`"
        ),
    ]
    param: Annotated[str | None, Meta(description="The request field at fault")]
    code: Annotated[str | None, Meta(description="What is wrong, for programs")]
    request_id: Annotated[str, Meta(description="The request's id, under which the log has the details")]
    retry_after_s: RetryAfter = None


class OpenAIError(msgspec.Struct, frozen=True):
    error: OpenAIErrorDetail


@dataclass(slots=True, frozen=True)
class ErrorStyle:
    """How one API shows errors."""

    statuses: Mapping[type[ServingError], int]
    prefixes: Mapping[type[ServingError], str]
    body: Callable[[Problem, str], msgspec.Struct]
    """The body of a problem in the request with this id; below 1 KB."""
    ends_streams: bool
    """True when the framing's end follows an error in a stream."""

    def status_of(self, error: BaseException) -> int:
        for cls in type(error).__mro__:
            status = self.statuses.get(cls)
            if status is not None:
                return status
        return 500

    def problem(self, error: RequestError) -> Problem:
        field = error.field if isinstance(error, InvalidRequest | NotFound) else None
        message = self.prefixes.get(type(error), "") + error.message
        code = _OPENAI_CODES.get(type(error), error.error_type)
        if isinstance(error, NotFound) and field == "model":
            code = "model_not_found"
        retry_after_s = max(1, math.ceil(error.retry_after_s)) if isinstance(error, Overloaded) else None
        return Problem(message, error.error_type, self.status_of(error), field, code, retry_after_s)


def printable(text: str) -> str:
    """Client text in an error: short and plain."""
    shown = text if len(text) <= _MAX_NAME_CHARS else text[: _MAX_NAME_CHARS - 1] + "…"
    return "".join(c if c.isprintable() else "?" for c in shown)


def _native_body(problem: Problem, request_id: str) -> NativeError:
    return NativeError(short_text(problem.message), problem.error_type, request_id, problem.retry_after_s)


def _openai_body(problem: Problem, request_id: str) -> OpenAIError:
    kind = "server_error" if problem.status >= 500 else "invalid_request_error"
    return OpenAIError(
        OpenAIErrorDetail(
            message=short_text(problem.message),
            type=_OPENAI_TYPES.get(problem.status, kind),
            param=None if problem.field is None else short_text(printable(problem.field), _MAX_FIELD_BYTES),
            code=problem.code,
            request_id=request_id,
            retry_after_s=problem.retry_after_s,
        )
    )


def short_text(text: str, max_bytes: int = _MAX_MESSAGE_BYTES) -> str:
    """`text`, cut by the bytes that the text takes in JSON, where escapes and other alphabets are longer."""
    kept = text[:max_bytes]
    while (size := len(msgspec.json.encode(kept))) > max_bytes:
        kept = kept[: len(kept) * max_bytes // size - 1]
    return kept if len(kept) == len(text) else kept + "…"


NATIVE = ErrorStyle(statuses=_NATIVE_STATUSES, prefixes=_PREFIXES, body=_native_body, ends_streams=False)
OPENAI = ErrorStyle(
    statuses=_OPENAI_STATUSES,
    prefixes={GenerationFailed: _PREFIXES[GenerationFailed]},
    body=_openai_body,
    ends_streams=True,
)
