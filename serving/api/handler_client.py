"""The front's end of the handler's socket: one call of a hook, its wait for a turn, and what a dead process means. Knows no
requests.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gevent
import msgspec
from gevent.lock import BoundedSemaphore

from serving.api.connection import CHECK_INTERVAL_S, ClientConnection, ClientDisconnected, cooperative
from serving.config import HANDLER_FILE, HANDLER_SOCKET, HandlerHooks, ServerConfig
from serving.errors import DeadlineExceeded, HandlerFailed, HandlerRefused, Overloaded, TransportError
from serving.handler.wire import (
    SLACK_BYTES,
    HookCall,
    HookName,
    HookReply,
    Turn,
    decode_to_front,
    read_frame,
    send,
)

PATIENCE_S = 30.0
"""So long a call waits for its turn; a process that is started anew is back much sooner."""

_GRACE_S = 2.0
"""For the process to notice its own lateness, and for the frames."""


class HandlerFile:
    """The handler that PID 1 has announced in the run directory; None while there is none."""

    def __init__(self, run_dir: Path, config: ServerConfig) -> None:
        self._run_dir = run_dir
        self._config = config
        self._found: HandlerClient | None = None
        self._looked = False

    def __call__(self) -> HandlerClient | None:
        """To be called once the server is ready: what is not there by then never comes."""
        if not self._looked:
            path = self._run_dir / HANDLER_FILE
            if path.exists():
                names = msgspec.json.decode(path.read_bytes(), type=HandlerHooks).names
                self._found = HandlerClient(self._run_dir / HANDLER_SOCKET, names, self._config)
            self._looked = True
        return self._found


class HandlerClient:
    def __init__(self, socket_path: Path, hooks: tuple[str, ...], config: ServerConfig) -> None:
        self.reads = "input_fn" in hooks
        self.writes = "output_fn" in hooks
        self.timeout_s = config.http.handler_timeout_s
        self.places = BoundedSemaphore(config.limits.max_concurrent_requests)
        """For requests of this worker that have not begun and wait for `input_fn`."""
        self._socket_path = socket_path
        self._max_bytes = config.limits.payload_limit_bytes

    def call(self, message: HookCall, connection: ClientConnection, *, deadline_s: float | None) -> HookReply:
        """The hook's result. Its turn has to come by `deadline_s`, a reading of `time.monotonic`.

        Raises `HandlerFailed`, `HandlerRefused`, `Overloaded`, `DeadlineExceeded` or `ClientDisconnected`.
        """
        with self._connected() as sock:
            self._await_turn(sock, message.hook, connection, deadline_s)
            started_s = time.monotonic()
            try:
                sock.settimeout(self.timeout_s)
                send(sock, message)
                reply = self._next(sock, started_s + self.timeout_s + _GRACE_S, connection)
            except (OSError, TransportError):
                raise HandlerFailed(self._death(message.hook, time.monotonic() - started_s)) from None
        if not isinstance(reply, HookReply):
            raise HandlerFailed(f"{message.hook} of the custom handler gave no answer")
        if reply.error is None:
            return reply
        raise (HandlerRefused if reply.error.refused else HandlerFailed)(reply.error.message)

    @contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)  # where the queue is full it says so at once
            if sock.connect_ex(str(self._socket_path)) != 0:
                raise Overloaded("too many calls wait for the custom handler")
            yield sock

    def _await_turn(
        self, sock: socket.socket, hook: HookName, connection: ClientConnection, deadline_s: float | None
    ) -> None:
        last_s = time.monotonic() + PATIENCE_S
        try:
            turn = self._next(sock, last_s if deadline_s is None else min(last_s, deadline_s), connection)
        except TimeoutError:
            if deadline_s is not None and deadline_s < last_s:
                raise DeadlineExceeded(
                    f"{hook} of the custom handler had no turn within the time for this answer"
                ) from None
            raise Overloaded(f"{hook} of the custom handler had no turn for {PATIENCE_S:g} s") from None
        except (OSError, TransportError):
            raise HandlerFailed(f"the custom handler ended before it took a call of {hook}") from None
        if not isinstance(turn, Turn):
            raise HandlerFailed(f"the custom handler answered before it was asked for {hook}")

    def _next(self, sock: socket.socket, deadline_s: float, connection: ClientConnection) -> Turn | HookReply:
        payload = read_frame(
            sock,
            max_bytes=self._max_bytes + SLACK_BYTES,
            deadline_s=deadline_s,
            interval_s=CHECK_INTERVAL_S,
            on_interval=lambda: _require_client(connection),
            on_piece=_give_way,
        )
        return decode_to_front(payload)

    def _death(self, hook: HookName, lasted_s: float) -> str:
        if lasted_s >= self.timeout_s:
            return f"{hook} of the custom handler took longer than {self.timeout_s:g} s (HANDLER_TIMEOUT_S)"
        return f"the custom handler's process ended while {hook} ran"


def _require_client(connection: ClientConnection) -> None:
    if connection.is_gone():
        raise ClientDisconnected


def _give_way() -> None:
    if cooperative():
        gevent.sleep(0)
