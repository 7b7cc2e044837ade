"""Errors to answers: the only place that knows status codes and the texts clients see. The outermost loops of the front,
one for answers and one for streams, are here.

Native bodies are TGI's `{"error", "error_type"}` and the request's id; `/v1` and OpenAI bodies on `/invocations` get
OpenAI's `{"error": {…}}` (`serving.api.error_styles`). What was not raised on purpose becomes one fixed text; the
details are in the log under that id.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import msgspec
from flask import Flask, Response, g, has_request_context, request
from werkzeug.exceptions import HTTPException

from serving.api.connection import ClientDisconnected, connection_of
from serving.api.error_styles import NATIVE, OPENAI, ErrorStyle, Problem, printable
from serving.api.realtime.event_request import current_event
from serving.api.request_id import current_request_id
from serving.api.streaming import Framing
from serving.errors import (
    Draining,
    IncompleteGeneration,
    MethodNotAllowed,
    NotFound,
    RequestError,
    ServingError,
)

logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""For the log only: the client left before its answer."""

_V1 = "/v1/"
_CUT_OFF = "Incomplete generation stream"


def current_style() -> ErrorStyle:
    """How the running request shows its errors; the native way outside of a request."""
    if not has_request_context():
        return NATIVE
    chosen: ErrorStyle | None = g.get("error_style")
    if chosen is not None:
        return chosen
    return OPENAI if request.path.startswith(_V1) or current_event() is not None else NATIVE


def use_style(style: ErrorStyle) -> None:
    """For routes that learn from the body which API they speak."""
    g.error_style = style


def status_of(error: BaseException, style: ErrorStyle | None = None) -> int:
    if isinstance(error, ClientDisconnected):
        return CLIENT_CLOSED_REQUEST
    return (style or current_style()).status_of(error)


def json_response(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status=status, content_type="application/json")


def register(app: Flask) -> None:
    app.register_error_handler(ServingError, _answer_serving_error)
    app.register_error_handler(HTTPException, _answer_http_exception)
    app.register_error_handler(ClientDisconnected, _answer_nobody)
    app.register_error_handler(Exception, _answer_unexpected)


def with_error_event(
    events: Iterator[bytes],
    *,
    framing: Framing,
    on_error: Callable[[BaseException], None],
    on_end: Callable[[], None],
    last_event: Callable[[Problem], bytes] | None = None,
) -> Iterator[bytes]:
    """Run a stream; an error becomes its last event, and the body ends normally.

    `last_event` is for APIs whose streams do not end with an error's body. Call it while the request's context exists:
    the stream itself runs without one.
    """
    style, request_id = current_style(), current_request_id()

    def error_body(problem: Problem) -> bytes:
        return framing.frame(style.body(problem, request_id)) + (framing.end if style.ends_streams else b"")

    return _run_stream(events, last_event or error_body, style, request_id, on_error, on_end)


def _run_stream(
    events: Iterator[bytes],
    last_event: Callable[[Problem], bytes],
    style: ErrorStyle,
    request_id: str,
    on_error: Callable[[BaseException], None],
    on_end: Callable[[], None],
) -> Iterator[bytes]:
    try:
        yield from events
        on_end()
    except ClientDisconnected as error:
        on_error(error)
    except IncompleteGeneration as error:
        on_error(error)
        yield last_event(Problem(_CUT_OFF, "incomplete_generation_stream", 500, code="incomplete_generation"))
    except RequestError as error:
        on_error(error)
        yield last_event(style.problem(error))
    except Exception as error:
        on_error(error)
        yield last_event(_unexpected(error, request_id))


def _answer_serving_error(error: ServingError) -> Response:
    if not isinstance(error, RequestError):
        return _answer_unexpected(error)
    problem = current_style().problem(error)
    response = _answer(problem)
    if problem.retry_after_s is not None:
        response.headers["retry-after"] = str(problem.retry_after_s)
    if isinstance(error, Draining):
        connection_of(request.environ).close_after_response(unread_body=True)
        response.headers["connection"] = "close"
    return response


def _answer_http_exception(error: HTTPException) -> Response:
    """Flask's own refusals: unknown path, wrong method, unusable request line."""
    if error.code == 404:
        return _answer_serving_error(NotFound(f"there is no route {printable(request.path)}"))
    if error.code == 405:
        response = _answer_serving_error(
            MethodNotAllowed(f"{printable(request.method)} is not allowed on {printable(request.path)}")
        )
        response.headers["allow"] = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        return response
    if error.code is not None and 400 <= error.code < 500:
        return _answer(Problem(error.name, "bad_request", error.code, code="bad_request"))
    return _answer_unexpected(error)


def _answer_nobody(_: ClientDisconnected) -> Response:
    connection_of(request.environ).close_after_response()
    return Response(status=CLIENT_CLOSED_REQUEST)


def _answer_unexpected(error: Exception) -> Response:
    return _answer(_unexpected(error, current_request_id()))


def _answer(problem: Problem) -> Response:
    g.problem = problem  # for the request's log line
    return json_response(current_style().body(problem, current_request_id()), problem.status)


def _unexpected(error: BaseException, request_id: str) -> Problem:
    logger.error("unexpected error", exc_info=error, extra={"request_id": request_id})
    return Problem(
        f"internal error, reported in the server's log as {request_id}", "internal", 500, code="internal"
    )
