"""Main of the handler's process: import the script, then one call after the other until the end.

A hook that takes too long ends the process: a native thread counts its time, which no lock and no loop of the hook can
stop. PID 1 starts the next one; the calls that wait are on a socket that it holds.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import msgspec
from setproctitle import setproctitle

from serving import logs
from serving.config import Stage
from serving.errors import ModelError, TransportError
from serving.handler.hooks import call_hook
from serving.handler.script import Hook, load
from serving.handler.wire import SLACK_BYTES, HookName, HookReply, Turn, read_call, send

_FRONT_PATIENCE_S = 10.0
"""The front sends and takes a frame at once, or is gone."""
_MEMORY_SHARE = 4
_LEAST_MEMORY_BYTES = 1 << 30

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    setproctitle("handler")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for descriptor in (options.socket_fd, options.stage_fd, options.log_fd):
        os.set_inheritable(descriptor, False)
    _configure_logs(options)
    _limit_memory()
    stderr = os.fdopen(os.dup(2), "w")  # the script may do what it likes with its own
    faulthandler.enable(stderr)
    try:
        hooks = load(options.script)
    except ModelError as error:
        _report(options.stage_fd, Stage(stage="failed", detail=error.message))
        return 1
    _report(options.stage_fd, Stage(stage="ready", detail=",".join(hooks)))
    process = HandlerProcess(
        hooks,
        model_dir=options.model_dir,
        timeout_s=options.timeout_s,
        max_bytes=options.max_bytes,
        stderr=stderr,
    )
    with socket.socket(fileno=options.socket_fd) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                process.answer(connection)


class HandlerProcess:
    """Answers one connection at a time, so a script need not know of threads."""

    def __init__(
        self,
        hooks: Mapping[HookName, Hook],
        *,
        model_dir: Path,
        timeout_s: float,
        max_bytes: int,
        stderr: TextIO,
    ) -> None:
        self._hooks = hooks
        self._model_dir = model_dir
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._stderr = stderr
        self._pid = os.getpid()

    def answer(self, connection: socket.socket) -> None:
        """Greet, read, run the hook, reply. A front that is gone, or slow, is left alone."""
        connection.settimeout(_FRONT_PATIENCE_S)
        try:
            send(connection, Turn())
            reply = self._run(connection)
            connection.settimeout(_FRONT_PATIENCE_S)
            send(connection, reply)
        except (OSError, TransportError) as error:
            logger.debug("a caller is gone: %s", error)

    def _run(self, connection: socket.socket) -> HookReply:
        call = read_call(
            connection,
            max_bytes=self._max_bytes + SLACK_BYTES,
            deadline_s=time.monotonic() + _FRONT_PATIENCE_S,
        )
        faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=self._stderr)
        try:
            return call_hook(
                self._hooks[call.hook], call, model_dir=self._model_dir, max_bytes=self._max_bytes
            )
        finally:
            if os.getpid() != self._pid:
                os._exit(
                    0
                )  # a fork of the hook's came back with it; this call, and the watch over it, are its parent's
            faulthandler.cancel_dump_traceback_later()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("--script", "--model-dir"):
        parser.add_argument(name, type=Path, required=True)
    for name in ("--socket-fd", "--stage-fd", "--log-fd", "--max-bytes"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--timeout-s", type=float, required=True)
    parser.add_argument("--log-level", default="info")
    for name in ("--json-logs", "--exception-text"):
        parser.add_argument(name, action="store_true")
    return parser.parse_args(arguments)


def _configure_logs(options: argparse.Namespace) -> None:
    """Our lines and those of `logging` go straight to the log; what is printed goes through PID 1, which frames it."""
    printed, sys.stdout = sys.stdout, os.fdopen(options.log_fd, "w", buffering=1)
    logs.configure(
        "handler",
        level=options.log_level,
        json_output=options.json_logs,
        exception_text=options.exception_text,
    )
    sys.stdout = printed


def _limit_memory() -> None:
    """A script that takes ever more gets a `MemoryError`; if the machine runs out first, the kernel ends this process and
    not the engine."""
    limit_bytes = max(_LEAST_MEMORY_BYTES, _memory_bytes() // _MEMORY_SHARE)
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _memory_bytes() -> int:
    """The machine's, or what the container may have of it."""
    machine_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return machine_bytes
    return min(machine_bytes, int(limit)) if limit.isdecimal() else machine_bytes


def _report(stage_fd: int, stage: Stage) -> None:
    os.write(stage_fd, msgspec.json.encode(stage) + b"\n")


if __name__ == "__main__":
    sys.exit(main())
