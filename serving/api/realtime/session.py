"""One connection from its handshake to its close, and the connections of a worker, which leave when the server stops."""

from __future__ import annotations

from collections.abc import Callable

import gevent
from gevent import Greenlet, GreenletExit
from wsproto.frame_protocol import CloseReason

from serving.api.realtime.events import CancelResponse, EventRefused, read_event, refusal
from serving.api.realtime.responses import Responses
from serving.api.realtime.websocket import Closing, WebSocket
from serving.errors import InvalidRequest, Overloaded, RequestError

MAX_CONNECTIONS = 2048
"""Of one worker; the rest of its places is for requests and `/ping`."""

_POLL_S = 0.1


class ServerStops(Exception):
    """Ends a connection that has nothing to do."""


class Session:
    def __init__(self, websocket: WebSocket, responses: Responses, request_id: str) -> None:
        self.responses = responses
        self._websocket = websocket
        self._request_id = request_id

    def run(self) -> None:
        """Returns when the connection is closed. Whatever ends it, no response of it goes on."""
        code, reason = CloseReason.INTERNAL_ERROR, "internal error"
        try:
            for message in self._websocket.messages():
                self._take(message.text)
            code, reason = CloseReason.NORMAL_CLOSURE, ""
        except Closing as closing:
            code, reason = closing.code, closing.reason
        except (ServerStops, GreenletExit):
            code, reason = CloseReason.GOING_AWAY, "the server is stopping"
            self.responses.end()
        finally:
            self.responses.abandon()
            self._websocket.close(code, reason)

    def _take(self, text: bytes | None) -> None:
        event_id = None
        try:
            if text is None:
                raise InvalidRequest("binary frames say nothing here: send events as text", field="event")
            event = read_event(text)
            event_id = event.event_id
            if isinstance(event, CancelResponse):
                self.responses.cancel(event.event_id)
            else:
                self.responses.create(event)
        except EventRefused as refused:
            self._refuse(refused.error, refused.event_id)
        except RequestError as error:
            self._refuse(error, event_id)

    def _refuse(self, error: RequestError, event_id: str | None) -> None:
        self._websocket.send(refusal(error, event_id=event_id, request_id=self._request_id))


class Sessions:
    """The open connections of one worker. `is_draining` is asked while there are some."""

    def __init__(self, is_draining: Callable[[], bool]) -> None:
        self._is_draining = is_draining
        self._open: dict[Session, Greenlet] = {}
        self._watch: Greenlet | None = None

    def require_place(self) -> None:
        """Raises `Overloaded`."""
        if len(self._open) >= MAX_CONNECTIONS:
            raise Overloaded(f"at most {MAX_CONNECTIONS} connections are open at once", retry_after_s=5.0)

    def run(self, session: Session) -> None:
        self._open[session] = gevent.getcurrent()
        if self._watch is None or self._watch.dead:
            self._watch = gevent.spawn(self._send_away)
        try:
            session.run()
        finally:
            self._open.pop(session, None)

    def _send_away(self) -> None:
        """Once the server stops, end the connections without a response, and the others after their last one."""
        while self._open:
            gevent.sleep(_POLL_S)
            if not self._is_draining():
                continue
            for session, greenlet in list(self._open.items()):
                if session.responses.num_open == 0:
                    del self._open[session]
                    greenlet.kill(ServerStops, block=False)
