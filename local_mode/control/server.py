"""An ASGI application on one socket until a signal ends it. Knows uvicorn, not what it serves."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

# The SDKs keep connections open between calls; one that is closed just when it is used again is an error to them.
_KEEP_ALIVE_S = 75
_DRAIN_S = 5


class StartFailed(Exception):
    """The application did not start; its log says why."""


class _Server(uvicorn.Server):
    """Tells when it accepts connections."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._ready()


def bind(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def serve(app: Any, bound: socket.socket, *, ready: Callable[[], None]) -> None:
    """Until SIGTERM or SIGINT; requests that are running get a few seconds to end. Raises `StartFailed`."""
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        lifespan="on",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_DRAIN_S,
    )
    server = _Server(config, ready)
    # uvicorn raises the signal again once it has shut down; the end it asks for has then come already.
    before = {number: signal.signal(number, _ignore) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[bound])
    except SystemExit as error:
        raise StartFailed("the emulator did not start") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not server.started:
        raise StartFailed("the emulator did not start")


def _ignore(number: int, frame: FrameType | None) -> None:
    return
