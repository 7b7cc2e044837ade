"""The client's socket under a request: is the client still there, close after this answer, do not wait for
ever.

Knows gunicorn's WSGI environment, nothing of requests. Without a socket in the environment (Flask's test
client) every question is answered "the client is there".

A client that shuts down only its sending side is taken for gone: TCP shows the same FIN for both. Bytes that
a client sends ahead (pipelining) do not hide a close from `poll`, and are not read here.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast

import gevent
from gevent import monkey
from werkzeug.wsgi import ClosingIterator

from serving.api.outlet import DrainedBody, Head, Outlet
from serving.errors import InvalidRequest

ENVIRON_KEY = "serving.connection"

CHECK_INTERVAL_S = 0.25
"""How often a waiting request looks whether its client left."""

STALLED_READER_S = 60.0
"""A client that takes nothing of one pending chunk for this long is cut off."""

_KEEPALIVE_IDLE_S = 60
_LINGER_S = 1.0
_LINGER_BYTES = 64 * 1024 * 1024
_GONE = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR | select.POLLNVAL

# gevent replaces select.poll with one that goes through its loop; a poll that never waits needs no loop.
_poll_class = cast("Callable[[], select.poll]", monkey.get_original("select", "poll"))

StartResponse = Callable[..., Any]
WsgiApp = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


class ClientDisconnected(Exception):
    """The client left; nobody will read an answer."""


class _ForceClose(Protocol):
    def force_close(self) -> None: ...


def cooperative() -> bool:
    """True under gunicorn's gevent worker, where a socket that waits lets other greenlets run."""
    return bool(monkey.is_module_patched("socket"))


class ClientConnection:
    def __init__(self, environ: dict[str, Any], start_response: StartResponse) -> None:
        sock = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
        self._socket: socket.socket | None = sock
        self._response = getattr(start_response, "__self__", None)
        self.body_settled = False
        """True once the body was read, or whoever gave up reading it decided about the connection."""
        self.upgraded = False
        """True once the connection speaks another protocol than HTTP: no answer may be written."""
        self.outlet: Outlet | None = None
        """Set while the body of the answer is written, where the server in front lets somebody else write."""
        self._linger = False
        self._poll: select.poll | None = None

    def is_gone(self) -> bool:
        """One system call that never waits."""
        if self._socket is None:
            return False
        if self._poll is None:
            self._poll = _poll_class()
            self._poll.register(self._socket.fileno(), _GONE)
        return any(events & _GONE for _, events in self._poll.poll(0))

    def close_after_response(self, *, unread_body: bool = False) -> None:
        """End the connection with this answer. Must be called before the headers are sent.

        gunicorn ignores an application's `Connection` header, but its `start_response` is a method of the
        response object, which can be told. With `unread_body`, what the client still sends is read and thrown
        away for a short time, so that the reset a closed socket answers with does not destroy our answer.
        """
        if hasattr(self._response, "force_close"):
            cast("_ForceClose", self._response).force_close()
        self._linger = self._linger or unread_body

    def upgrade(self) -> socket.socket:
        """The socket, for another protocol; it is closed when the request has been handled.

        Raises `InvalidRequest` where the server in front has none to give.
        """
        if self._socket is None or not cooperative():
            raise InvalidRequest("this server cannot upgrade connections", field="Upgrade")
        self.upgraded = True
        self.body_settled = True
        # A peer whose host vanished sends nothing more: without these the connection would stay for ever.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self._socket.family in (socket.AF_INET, socket.AF_INET6):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_IDLE_S // 4)
        return self._socket

    def begin_response(self) -> None:
        if self._socket is not None and cooperative():
            self._socket.settimeout(STALLED_READER_S)
            if all(hasattr(self._response, name) for name in Head.__annotations__):
                self.outlet = Outlet(self._socket, cast("Head", self._response))

    def finish(self) -> None:
        """Called once the answer was written, or could not be."""
        if self._socket is None or self._socket.fileno() < 0:
            return
        if self._linger:
            self._discard_input(self._socket)
        if cooperative():
            self._socket.settimeout(None)
            # A client whose next request is there already would keep everybody else waiting.
            gevent.sleep(0)

    def _discard_input(self, sock: socket.socket) -> None:
        if not cooperative():
            return
        left = _LINGER_BYTES
        with gevent.Timeout(_LINGER_S, False):
            try:
                sock.shutdown(socket.SHUT_WR)
                while left > 0 and (data := sock.recv(64 * 1024)):
                    left -= len(data)
                    gevent.sleep(0)
            except OSError:
                return  # the client is gone, which is what we waited for


class ConnectionMiddleware:
    """Puts a `ClientConnection` into the environment of every request."""

    def __init__(self, app: WsgiApp) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        connection = ClientConnection(environ, start_response)
        environ[ENVIRON_KEY] = connection
        body = self._app(environ, start_response)
        if connection.upgraded:
            # What gunicorn's workers take for "this connection is over": nothing is written, the socket is closed.
            raise StopIteration
        if _has_body(environ) and not connection.body_settled:
            # gunicorn would read all of it, however long, to find the next request behind it.
            connection.close_after_response(unread_body=True)
        connection.begin_response()
        if connection.outlet is not None:
            body = DrainedBody(iter(body), connection.outlet)
        return ClosingIterator(body, [connection.finish])


def _has_body(environ: dict[str, Any]) -> bool:
    return environ.get("CONTENT_LENGTH") not in (None, "", "0") or "HTTP_TRANSFER_ENCODING" in environ


def connection_of(environ: dict[str, Any]) -> ClientConnection:
    connection: ClientConnection = environ[ENVIRON_KEY]
    return connection
