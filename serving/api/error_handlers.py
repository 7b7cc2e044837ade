"""Errors to answers: the only place that knows status codes and the texts clients see. The outermost loops of
the front, one for answers and one for streams, are here.

Bodies are TGI's `{"error", "error_type"}` and the request's id. What was not raised on purpose becomes one
fixed text; the details are in the log under that id.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator

import msgspec
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from serving.api.connection import ClientDisconnected, connection_of
from serving.api.request_id import current_request_id
from serving.errors import (
    BodyTimeout,
    Draining,
    GenerationFailed,
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
    TemplateError,
    ToolError,
    Unauthorized,
    UnsupportedMediaType,
)

logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""For the log only: the client left before its answer."""

_MAX_MESSAGE_CHARS = 800  # SageMaker shows clients only short error bodies
_STATUSES: dict[type[ServingError], int] = {
    InvalidRequest: 422,
    TemplateError: 422,
    ToolError: 422,
    Unauthorized: 401,
    MalformedBody: 400,
    PayloadTooLarge: 413,
    UnsupportedMediaType: 415,
    BodyTimeout: 408,
    NotFound: 404,
    MethodNotAllowed: 405,
    Overloaded: 429,
    Draining: 503,
    NotReady: 503,
    GenerationFailed: 424,
    IncompleteGeneration: 500,
    RequestError: 424,
}
_PREFIXES: dict[type[ServingError], str] = {
    InvalidRequest: "Input validation error: ",
    ToolError: "Tool error: ",
    GenerationFailed: "Request failed during generation: ",
}


class ErrorBody(msgspec.Struct, frozen=True):
    error: str
    error_type: str
    request_id: str


def status_of(error: BaseException) -> int:
    if isinstance(error, ClientDisconnected):
        return CLIENT_CLOSED_REQUEST
    for cls in type(error).__mro__:
        status = _STATUSES.get(cls)
        if status is not None:
            return status
    return 500


def body_of(error: ServingError) -> ErrorBody:
    prefix = _PREFIXES.get(type(error), "")
    message = prefix + error.message
    if len(message) > _MAX_MESSAGE_CHARS:
        message = message[: _MAX_MESSAGE_CHARS - 1] + "…"
    return _body(message, error.error_type)


def json_response(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status=status, content_type="application/json")


def register(app: Flask) -> None:
    app.register_error_handler(ServingError, _answer_serving_error)
    app.register_error_handler(HTTPException, _answer_http_exception)
    app.register_error_handler(ClientDisconnected, _answer_nobody)
    app.register_error_handler(Exception, _answer_unexpected)


def with_error_event(
    events: Iterator[bytes], *, on_error: Callable[[BaseException], None], on_end: Callable[[], None]
) -> Iterator[bytes]:
    """Run a stream; an error becomes its last event, and the body ends normally."""
    try:
        yield from events
        on_end()
    except ClientDisconnected as error:
        on_error(error)
    except IncompleteGeneration as error:
        on_error(error)
        yield _event(_body("Incomplete generation stream", "incomplete_generation_stream"))
    except RequestError as error:
        on_error(error)
        yield _event(body_of(error))
    except Exception as error:
        on_error(error)
        yield _event(_unexpected(error))


def _answer_serving_error(error: ServingError) -> Response:
    if not isinstance(error, RequestError):
        return json_response(_unexpected(error), 500)
    response = json_response(body_of(error), status_of(error))
    if isinstance(error, Overloaded):
        response.headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, Draining):
        connection_of(request.environ).close_after_response(unread_body=True)
        response.headers["connection"] = "close"
    return response


def _answer_http_exception(error: HTTPException) -> Response:
    """Flask's own refusals: unknown path, wrong method, unusable request line."""
    if error.code == 404:
        return _answer_serving_error(NotFound(f"there is no route {_printable(request.path)}"))
    if error.code == 405:
        response = _answer_serving_error(
            MethodNotAllowed(f"{_printable(request.method)} is not allowed on {_printable(request.path)}")
        )
        response.headers["allow"] = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        return response
    if error.code is not None and 400 <= error.code < 500:
        return json_response(_body(error.name, "bad_request"), error.code)
    return json_response(_unexpected(error), 500)


def _answer_nobody(_: ClientDisconnected) -> Response:
    connection_of(request.environ).close_after_response()
    return Response(status=CLIENT_CLOSED_REQUEST)


def _answer_unexpected(error: Exception) -> Response:
    return json_response(_unexpected(error), 500)


def _unexpected(error: BaseException) -> ErrorBody:
    request_id = current_request_id()
    logger.error("unexpected error", exc_info=error, extra={"request_id": request_id})
    return _body(f"internal error, reported in the server's log as {request_id}", "internal")


def _body(message: str, error_type: str) -> ErrorBody:
    return ErrorBody(error=message, error_type=error_type, request_id=current_request_id())


def _event(body: ErrorBody) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def _printable(text: str) -> str:
    """Client text in an error: short and plain."""
    shown = text if len(text) <= 80 else text[:79] + "…"
    return "".join(c if c.isprintable() else "?" for c in shown)
