"""The engine's socket read by gevent's loop itself: what arrives is taken without a turn of any greenlet.

Knows gevent, nothing of frames. What it gives bytes to must not wait: in the loop there is nobody to wait.
"""

from __future__ import annotations

import os
import socket

from gevent import get_hub
from gevent.event import AsyncResult

from serving.errors import ServingError
from serving.ipc.arrivals import READ_BYTES, Take

_READABLE = 1


def receive_in_loop(sock: socket.socket, take: Take) -> None:
    """A `Receive`. One read per turn of the loop, so that a socket which always has more keeps nobody from running; and none
    to find that nothing is left."""
    fd = sock.fileno()
    ended: AsyncResult[None] = AsyncResult()
    watcher = get_hub().loop.io(fd, _READABLE)

    def arrived() -> None:
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            watcher.stop()
            ended.set_exception(error)
            return
        if not data:
            watcher.stop()
            ended.set(None)
            return
        try:
            take(data)
        except ServingError as error:
            watcher.stop()
            ended.set_exception(error)

    watcher.start(arrived)
    try:
        ended.get()
    finally:
        watcher.stop()
        watcher.close()
