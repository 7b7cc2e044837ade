"""Ties a process to its parent: however the parent dies, the process dies too. Knows nothing of messages."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import threading
from collections.abc import Callable

from serving.errors import TransportError

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int | None = None) -> None:
    """Have the kernel send SIGKILL to this process when the thread that started it ends.

    With `parent_pid`, a parent that died before this call is noticed too. Raises `TransportError` then.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise TransportError(f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(code)}")
    if parent_pid is not None and os.getppid() != parent_pid:
        raise TransportError(f"parent process {parent_pid} is gone")


def on_hangup(sock: socket.socket, callback: Callable[[], None]) -> threading.Thread:
    """Run `callback` in a thread of its own once the other end of `sock` is closed. Reads nothing from it."""
    poller = select.poll()
    poller.register(sock, 0)

    def watch() -> None:
        poller.poll()
        callback()

    thread = threading.Thread(target=watch, name="hangup-watch", daemon=True)
    thread.start()
    return thread
