"""Answers a body of JSON lines: every line is dispatched as a request of its own to the same path, many at a time, and
its answer becomes the line at the same place. Knows no API's shapes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from io import BytesIO
from typing import Any, cast

import gevent
import msgspec
from flask import Flask, Response, current_app, request
from gevent import GreenletExit
from gevent.lock import BoundedSemaphore
from gevent.pool import Group

from serving.api.body_line import ENVIRON_KEY, BodyLine
from serving.api.call import CUSTOM_ATTRIBUTES, DEADLINE_REACHED
from serving.api.connection import CHECK_INTERVAL_S, ClientDisconnected, connection_of
from serving.api.context import ApiContext, context
from serving.api.error_styles import NATIVE
from serving.api.request_id import HEADER, current_request_id
from serving.api.sessions import SESSION_HEADER
from serving.api.streaming import JSON_LINES
from serving.config import ServerConfig
from serving.errors import Draining, InvalidRequest, Overloaded, RequestError

_OVERLOADED = 429
_RETRY_S = 0.5
_GIVE_UP_S = 300.0
"""So long the server may be too busy for a line, as other lines and other callers come and go."""
_MAX_ID_CHARS = 56
"""Of the body's id in those of its lines, which end in their numbers and have at most 64."""


def places(config: ServerConfig) -> BoundedSemaphore:
    """How many lines one worker has in hand at once, of all bodies: everything the engine takes in a batch transform job,
    half of it where others want their answers, too."""
    most = config.limits.max_concurrent_requests
    return BoundedSemaphore(most if config.http.batch_transform else max(1, most // 2))


def answer(deadline: float | None) -> Response:
    """Answer the current request. Its lines have until `deadline`, a reading of `time.monotonic`, together.

    Raises the `RequestError` that refuses the whole body.
    """
    shared = context()
    shared.readiness.require()
    connection = connection_of(request.environ)
    lines = shared.bodies.read_lines(request.environ, connection)
    if request.headers.get(SESSION_HEADER):
        raise InvalidRequest(
            f"a body of JSON lines cannot belong to a session: send its requests one by one, or without {SESSION_HEADER}",
            field="SessionId",
        )
    batch = _Batch(lines, shared, deadline)
    batch.run()
    if connection.is_gone():
        raise ClientDisconnected
    response = Response(batch.body(), content_type=JSON_LINES.content_type)
    if batch.deadline_reached:
        response.headers[CUSTOM_ATTRIBUTES] = DEADLINE_REACHED
    return response


class _Batch:
    """The lines of one body on their way to their answers."""

    def __init__(self, lines: Sequence[bytes], shared: ApiContext, deadline: float | None) -> None:
        self.deadline_reached = False
        self._lines = lines
        self._answers: list[bytes | None] = [None] * len(lines)
        self._shared = shared
        self._deadline = deadline
        self._request_id = current_request_id()
        self._connection = connection_of(request.environ)
        self._app = cast("Any", current_app)._get_current_object()
        self._environ = {
            **request.environ,
            "CONTENT_TYPE": "application/json",
            ENVIRON_KEY: BodyLine(deadline),
        }
        self._environ.pop("HTTP_TRANSFER_ENCODING", None)
        self._end: RequestError | None = None

    def run(self) -> None:
        """Returns when every line that was begun has ended. Raises `ClientDisconnected`."""
        group = Group()
        try:
            for number in range(len(self._lines)):
                if not self._has_place():
                    break
                line = gevent.Greenlet(self._run_line, number)
                line.link(
                    self._give_back
                )  # not in the greenlet: one that is killed before it begins runs nothing
                group.start(line)
            group.join()
        except GreenletExit:
            # gunicorn ends what still runs when its graceful timeout is over
            self._end = Draining("the server stopped before this line was answered")
        finally:
            group.kill()

    def body(self) -> bytes:
        """One line per line. Those that were not answered have the reason why the others ended."""
        rest = b""
        if self._end is not None:
            rest = _error_line(self._end, self._request_id)
        return b"".join(rest if line is None else line for line in self._answers)

    def _has_place(self) -> bool:
        """Wait for a place. False when no further line is to begin."""
        while True:
            if self._connection.is_gone():
                raise ClientDisconnected
            try:
                self._shared.readiness.require()
            except RequestError as error:
                self._end = error
                return False
            if self._is_late():
                self.deadline_reached = True
                self._end = Overloaded("the deadline of this body (UNARY_DEADLINE_S) came before this line")
                return False
            if self._shared.line_places.acquire(timeout=CHECK_INTERVAL_S):
                return True

    def _run_line(self, number: int) -> None:
        self._answers[number] = self._answer(number)

    def _give_back(self, _: gevent.Greenlet) -> None:
        self._shared.line_places.release()

    def _answer(self, number: int) -> bytes:
        give_up_s = time.monotonic() + _GIVE_UP_S
        while True:
            response = self._dispatch(number)
            patient = not self._is_late() and time.monotonic() < give_up_s and not self._connection.is_gone()
            if response.status_code != _OVERLOADED or not patient:
                break
            gevent.sleep(_RETRY_S)
        if CUSTOM_ATTRIBUTES in response.headers or self._is_late():
            self.deadline_reached = True
        data = response.get_data()
        return (_with_status(data, response.status_code) if response.status_code >= 400 else data) + b"\n"

    def _dispatch(self, number: int) -> Response:
        line = self._lines[number]
        environ = {
            **self._environ,
            "wsgi.input": BytesIO(line),
            "CONTENT_LENGTH": str(len(line)),
            f"HTTP_{HEADER.upper().replace('-', '_')}": f"{self._request_id[:_MAX_ID_CHARS]}/{number + 1}",
        }
        app: Flask = self._app
        # A context of the app of its own, too: greenlets begin with those of their makers.
        with app.app_context(), app.request_context(environ):
            return app.full_dispatch_request()

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline


def _error_line(error: RequestError, request_id: str) -> bytes:
    problem = NATIVE.problem(error)
    return _with_status(msgspec.json.encode(NATIVE.body(problem, request_id)), problem.status) + b"\n"


def _with_status(body: bytes, status: int) -> bytes:
    """An error's body with the status that it would have had as an answer of its own."""
    return body.removesuffix(b"}") + b',"status":%d}' % status if body else b'{"status":%d}' % status
