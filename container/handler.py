"""The custom handler's process from its first start to its last, and what outlives it: its socket, so that calls that wait
are answered by its successor, and the count of its ends. What the process does is not known here.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from container.processes import handler_command, handler_environment
from container.run_dir import RunDirectory
from container.supervisor import Child, Supervisor
from serving.config import HANDLER_SOCKET, HandlerHooks, ServerConfig
from serving.errors import StartupError
from serving.logs import event

_log = logging.getLogger(__name__)

HANDLER = "handler"
"""The child's name."""

MOST_RESTARTS = 10
WINDOW_S = 300.0
"""A handler that ends more often than that within that time takes the server down with it."""

_STDOUT_FD = 1  # the log
_BACKLOG = 4096
_FIRST_DELAY_S = 0.25
_LONGEST_DELAY_S = 5.0
_GRACE_S = 1.0
_LINES_PER_S = 500
"""What a handler may print; a loop that prints must not keep PID 1 from its other children."""


class CustomHandler:
    """`script`, run by one process at a time. Used from PID 1's main thread."""

    def __init__(
        self,
        supervisor: Supervisor,
        run_dir: RunDirectory,
        config: ServerConfig,
        *,
        script: Path,
        model_dir: Path,
        environ: Mapping[str, str],
    ) -> None:
        self._supervisor = supervisor
        self._run_dir = run_dir
        self._script = script
        self._child: Child | None = None
        self._announced = False
        self._ends_s: list[float] = []
        self._next_start_s: float | None = None
        self._failure: str | None = None
        self._printed = _Printed()
        self._home = tempfile.mkdtemp(prefix="textgen-handler-")
        self._environ = handler_environment(environ, home=self._home)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._log_fd = os.dup(_STDOUT_FD)
        self._command = handler_command(
            config, script=script, model_dir=model_dir, socket_fd=self._listener.fileno(), log_fd=self._log_fd
        )

    def start(self) -> None:
        """Open the socket and start the process. Raises `StartupError`."""
        try:
            self._listener.bind(str(self._run_dir.path / HANDLER_SOCKET))
            self._listener.listen(_BACKLOG)
        except OSError as error:
            raise StartupError(
                f"no socket for the custom handler: {error}; set TMPDIR to a folder we may write to"
            ) from error
        self._launch()

    @property
    def ready(self) -> bool:
        """It has been ready once; a new start of its process does not change that."""
        return self._announced

    @property
    def failure(self) -> str | None:
        """Why the server cannot go on without it."""
        return self._failure

    def tend(self) -> None:
        """Take in what happened to the process: announce it, count its end, start it anew when it is time."""
        child = self._child
        if child is None or self._failure is not None:
            return
        if not self._announced and child.stages and child.stages[-1].stage == "ready":
            self._announced = True
            self._run_dir.write_handler(HandlerHooks(names=tuple(child.stages[-1].detail.split(","))))
            event(_log, logging.INFO, "custom handler", script=self._script, hooks=child.stages[-1].detail)
        if child.running:
            return
        if self._next_start_s is None:
            self._ended(child)
        elif time.monotonic() >= self._next_start_s:
            self._launch()

    def stop(self) -> None:
        """End the process and what it started, and remove its folder."""
        self._supervisor.stop(self._child, grace_s=_GRACE_S)
        if self._child is not None:
            _kill_group(self._child)
        self._listener.close()
        os.close(self._log_fd)
        shutil.rmtree(self._home, ignore_errors=True)

    def _launch(self) -> None:
        self._next_start_s = None
        self._child = self._supervisor.start(
            HANDLER,
            self._command,
            environ=self._environ,
            pass_fds=(self._listener.fileno(), self._log_fd),
            on_output=self._printed.take,
        )

    def _ended(self, child: Child) -> None:
        _kill_group(child)
        now_s = time.monotonic()
        self._ends_s = [at_s for at_s in self._ends_s if now_s - at_s < WINDOW_S] + [now_s]
        if not self._announced:
            self._failure = _last_words(child) or (
                f"{self._script}: the custom handler ended while it was imported ({child.ending}); correct or remove it"
            )
            return
        reason = _last_words(child) or child.ending
        if len(self._ends_s) > MOST_RESTARTS:
            self._failure = (
                f"the custom handler {self._script} ended {len(self._ends_s)} times within {WINDOW_S:g} s, at last with: "
                f"{reason}; its log lines above hold the causes"
            )
            return
        # The first end costs nobody a wait; a handler that ends again and again must not keep a core busy.
        delay_s = 0.0
        if len(self._ends_s) > 1:
            delay_s = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2.0 ** (len(self._ends_s) - 2))
        self._next_start_s = now_s + delay_s
        event(
            _log,
            logging.WARNING,
            "the custom handler ended and is started again",
            ending=reason,
            after_s=delay_s,
            times=len(self._ends_s),
        )


class _Printed:
    """What a handler prints, as lines of the log; not all of it where it prints without end."""

    def __init__(self) -> None:
        self._second = 0
        self._num_lines = 0

    def take(self, line: bytes) -> None:
        second = int(time.monotonic())
        if second != self._second:
            dropped = self._num_lines - _LINES_PER_S
            if dropped > 0:
                event(_log, logging.WARNING, "output of the custom handler was dropped", lines=dropped)
            self._second, self._num_lines = second, 0
        self._num_lines += 1
        if self._num_lines <= _LINES_PER_S:
            event(_log, logging.INFO, "output of the custom handler", text=line.decode(errors="replace"))


def _last_words(child: Child) -> str | None:
    return child.stages[-1].detail if child.stages and child.stages[-1].stage == "failed" else None


def _kill_group(child: Child) -> None:
    """What it started and left behind, in the session that it led."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.process.pid, signal.SIGKILL)
