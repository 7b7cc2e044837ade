"""The responses of one connection: each is a request of its own to the app, in a greenlet of its own, and is checked,
limited, counted, logged and traced like one that came by itself. Knows no WebSocket.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any, Literal

import gevent
import msgspec
from flask import Flask, Response
from gevent import Greenlet
from gevent.pool import Group

from serving.api.connection import ClientDisconnected
from serving.api.realtime.event_request import ENVIRON_KEY, EventRequest
from serving.api.realtime.events import (
    CreateResponse,
    ResponseDone,
    error_event,
    events_of,
    named,
    tells_failure,
)
from serving.api.request_id import HEADER
from serving.errors import InvalidRequest, NotFound, Overloaded

MAX_OPEN = 16
"""Responses of one connection at once."""

_HANDSHAKE_ONLY = ("HTTP_UPGRADE", "HTTP_CONNECTION", "HTTP_TRANSFER_ENCODING", "HTTP_CONTENT_ENCODING")
_MAX_ID_CHARS = 56
"""Of the connection's id in those of its responses, which end in their numbers and have at most 64."""

Send = Callable[[bytes], None]


class Responses:
    def __init__(self, app: Flask, environ: dict[str, Any], request_id: str, send: Send) -> None:
        """`environ` is that of the handshake, `request_id` its id. `send` takes one event and may wait."""
        self._app = app
        self._environ = {name: value for name, value in environ.items() if name not in _HANDSHAKE_ONLY} | {
            "REQUEST_METHOD": "POST",
            "QUERY_STRING": "",
            "CONTENT_TYPE": "application/json",
        }
        self._request_id = request_id[:_MAX_ID_CHARS]
        self._send = send
        self._open: dict[str, Greenlet] = {}
        self._begun: set[str] = set()
        self._cancelled: set[str] = set()
        self._group = Group()
        self._num_made = 0

    @property
    def num_open(self) -> int:
        return len(self._open)

    def create(self, request: CreateResponse) -> None:
        """Begin a response. Raises `InvalidRequest` or `Overloaded` when it cannot begin."""
        if request.event_id in self._open:
            raise InvalidRequest("`event_id` is that of a response that still runs", field="event_id")
        if len(self._open) >= MAX_OPEN:
            raise Overloaded(f"at most {MAX_OPEN} responses of one connection run at once", retry_after_s=1.0)
        self._num_made += 1
        greenlet = Greenlet(self._run, request, f"{self._request_id}/{self._num_made}")
        self._open[request.event_id] = greenlet
        self._group.start(greenlet)

    def cancel(self, event_id: str | None) -> None:
        """End one response, or all of them; each says that it was cancelled. Raises `NotFound`."""
        if event_id is not None and event_id not in self._open:
            raise NotFound("no response with this `event_id` runs", field="event_id")
        chosen = list(self._open) if event_id is None else [event_id]
        self._cancelled.update(chosen)
        for each in chosen:
            if each in self._begun:  # what is killed before it began would never say that it ended
                self._open[each].kill(ClientDisconnected, block=False)

    def abandon(self) -> None:
        """Nobody listens any more: free at once what the engine still holds."""
        self._group.kill(ClientDisconnected)

    def end(self) -> None:
        """The server stops: what runs ends with an error."""
        self._group.kill()

    def _run(self, request: CreateResponse, request_id: str) -> None:
        status: Literal["completed", "failed", "cancelled"] = "cancelled"
        self._begun.add(request.event_id)
        try:
            if request.event_id not in self._cancelled:
                status = "completed" if self._answer(request, request_id) else "failed"
        except ClientDisconnected:
            self._cancelled.add(request.event_id)
        finally:
            self._begun.discard(request.event_id)
            del self._open[request.event_id]
        if request.event_id in self._cancelled:  # a stream whose reader leaves ends like any other
            self._cancelled.discard(request.event_id)
            status = "cancelled"
        done = ResponseDone(type="response.done", event_id=request.event_id, status=status)
        try:
            self._send(msgspec.json.encode(done))
        except ClientDisconnected:
            return

    def _answer(self, request: CreateResponse, request_id: str) -> bool:
        """False when it failed."""
        response = self._dispatch(request, request_id)
        try:
            if response.status_code >= 400:
                self._refuse(request, response)
                return False
            return self._stream(request, response)
        finally:
            response.close()

    def _stream(self, request: CreateResponse, response: Response) -> bool:
        succeeded = True
        for chunk in response.response:
            for event in events_of(bytes(chunk)) if chunk else ():  # type: ignore[arg-type]
                succeeded = succeeded and not tells_failure(event)
                self._send(named(event, request))
            gevent.sleep(0)
        return succeeded

    def _refuse(self, request: CreateResponse, response: Response) -> None:
        body = response.get_data()
        if not body:  # cancelled before it began
            raise ClientDisconnected
        event = error_event(
            body,
            event_id=request.event_id,
            status=response.status_code,
            retry_after_s=response.headers.get("retry-after", type=int),
        )
        self._send(event)

    def _dispatch(self, request: CreateResponse, request_id: str) -> Response:
        environ = self._environ | {
            "PATH_INFO": request.api.path,
            "wsgi.input": BytesIO(),
            ENVIRON_KEY: EventRequest(request.body),
            f"HTTP_{HEADER.upper().replace('-', '_')}": request_id,
        }
        # A context of the app of its own, too: greenlets begin with those of their makers.
        with self._app.app_context(), self._app.request_context(environ):
            return self._app.full_dispatch_request()
