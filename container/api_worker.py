"""gunicorn's gevent worker with an honest drain, and its logger in our format. Knows no application.

gunicorn's own worker closes its listening socket on SIGTERM, so that `/ping` is refused by TCP instead of
answered 503, and waits for idle keep-alive connections.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import msgspec
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.glogging import Logger
from gunicorn.http.errors import (
    ExpectationFailed,
    InvalidResponseHeader,
    InvalidResponseHeaderName,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.workers.ggevent import GeventWorker

from serving import logs
from serving.config import RUN_CONFIG_FILE, ServerConfig

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.1  # a signal handler must not touch the hub, so the loops look at `alive` by themselves
_OUR_FAULT = (InvalidResponseHeader, InvalidResponseHeaderName)
_MALFORMED = ("400 Bad Request", "malformed_request", "Malformed HTTP request")
_REFUSALS: dict[type[Exception], tuple[str, str, str]] = {
    LimitRequestLine: ("414 URI Too Long", "uri_too_long", "The request line is too long"),
    LimitRequestHeaders: (
        "431 Request Header Fields Too Large", "headers_too_large", "The request headers are too large or too many"
    ),
    ExpectationFailed: ("417 Expectation Failed", "expectation_failed", "Only 100-continue can be expected"),
    UnsupportedTransferCoding: ("501 Not Implemented", "transfer_coding", "Only the chunked transfer coding is known"),
}  # fmt: skip


def die_with_parent(parent_pid: int) -> None:
    """SIGKILL this process when its parent dies; exit now if it already has."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(0)


class ClientSocket(gevent.socket.socket):  # type: ignore[misc]
    """A connection whose `sendall` is one system call when the kernel takes everything at once, as it nearly always does
    with an event of a stream; gevent's own asks for the size of the send buffer first, each time."""

    def sendall(self, data: bytes, flags: int = 0) -> None:
        sent = self.send(data, flags)
        if sent < len(data):
            super().sendall(memoryview(data)[sent:], flags)


class ApiWorker(GeventWorker):  # type: ignore[misc]
    """Between SIGTERM and the end of the requests that were running then, it goes on accepting and answering.

    The application refuses new work by itself, from the published stage.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._running: set[object] = set()

    def run(self) -> None:
        servers = [self._serve(listener) for listener in self.sockets]
        while self.alive:
            self.notify()
            gevent.sleep(_POLL_S)
        self._drain()
        for server in servers:
            server.stop(timeout=_POLL_S)  # idle connections end here

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        client = ClientSocket(client.family, client.type, client.proto, fileno=client.detach())
        super().handle(listener, client, addr)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
        request = object()
        self._running.add(request)
        try:
            return super().handle_request(listener_name, req, sock, addr)
        finally:
            self._running.discard(request)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """What never reaches the application is answered in its error shape, not in gunicorn's HTML."""
        request_id = uuid.uuid4().hex
        if isinstance(exc, ParseException) and not isinstance(exc, _OUR_FAULT):
            status, error_type, text = next(
                (answer for kind, answer in _REFUSALS.items() if isinstance(exc, kind)), _MALFORMED
            )
            # The text of the exception quotes what the client sent.
            self.log.warning("malformed request %s: %s", request_id, type(exc).__name__)
        else:
            status, error_type, text = "500 Internal Server Error", "internal", "Internal error"
            self.log.exception("request %s failed outside the application", request_id)
        body = msgspec.json.encode({"error": text, "error_type": error_type, "request_id": request_id})
        head = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        head += f"x-request-id: {request_id}\r\n"
        with contextlib.suppress(OSError):
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def _serve(self, listener: Any) -> StreamServer:
        listener.setblocking(1)
        server = StreamServer(
            listener, handle=partial(self.handle, listener), spawn=Pool(self.worker_connections)
        )
        if self.cfg.workers > 1:
            server.max_accept = 1
        server.start()
        return server

    def _drain(self) -> None:
        accepted = set(self._running)
        deadline_s = time.monotonic() + self.cfg.graceful_timeout
        while accepted & self._running:
            if time.monotonic() > deadline_s:
                self.log.warning(
                    "requests were cut at the end of the grace time: %d", len(accepted & self._running)
                )
                return
            self.notify()
            gevent.sleep(_POLL_S)


class ApiLogger(Logger):  # type: ignore[misc]
    """gunicorn's messages through `serving.logs`; level and format are those of the run directory."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        path = Path(cfg.worker_tmp_dir) / RUN_CONFIG_FILE
        runtime = msgspec.json.decode(path.read_bytes(), type=ServerConfig).runtime
        logs.configure(
            "api",
            level=runtime.log_level,
            json_output=runtime.json_logs,
            exception_text=runtime.log_prompts,
        )
        self.error_log.handlers[:] = []
        self.error_log.propagate = True
        # Every start, stop and worker of gunicorn is an info line; ours say the same once.
        self.error_log.setLevel(logging.DEBUG if runtime.log_level == "debug" else logging.WARNING)
