"""Child processes, signals, and the stage lines children write. Decides nothing: `entrypoint` does."""

from __future__ import annotations

import ctypes
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import msgspec

from container.line_pipe import LinePipe
from serving.config import Stage
from serving.errors import StartupError
from serving.logs import event

_log = logging.getLogger(__name__)
_PR_SET_CHILD_SUBREAPER = 36
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_STAGE_FD_MARK = "{stage_fd}"


@dataclass(slots=True, eq=False)
class Child:
    """One supervised process."""

    name: str
    process: subprocess.Popen[bytes]
    stages: list[Stage] = field(default_factory=list)
    pipes: list[LinePipe] = field(default_factory=list)

    @property
    def running(self) -> bool:
        return self.process.returncode is None

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        code = self.process.returncode
        if code is None:
            return "still running"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class Supervisor:
    """Owns every child. Used from the main thread only: PDEATHSIG follows the thread that started a child."""

    def __init__(self, on_stage: Callable[[Child, Stage], None]) -> None:
        self.stop_signal: str | None = None
        self.stop_time_s = 0.0
        self._on_stage = on_stage
        self._children: dict[int, Child] = {}
        self._selector = selectors.DefaultSelector()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        for end in (self._wake_receiver, self._wake_sender):
            end.setblocking(False)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ)
        self._old_wakeup_fd = signal.set_wakeup_fd(self._wake_sender.fileno(), warn_on_full_buffer=False)
        self._old_handlers = {number: signal.signal(number, self._stop) for number in _STOP_SIGNALS}
        self._old_handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _ignore)
        # Outside a PID namespace of our own, grandchildren whose parent died must still come to us.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environ: Mapping[str, str],
        pass_fds: tuple[int, ...] = (),
        on_output: Callable[[bytes], None] | None = None,
    ) -> Child:
        """Start `command`, in a session of its own (Ctrl-C is for PID 1 only); it dies with PID 1.

        An argument `{stage_fd}` becomes a descriptor on which the child writes one JSON `Stage` per line. With `on_output`
        it gets every line that the child prints, on either stream; otherwise they go where ours go.
        """
        stages = LinePipe(lambda line: self._take_stage(child, line)) if _STAGE_FD_MARK in command else None
        output = LinePipe(on_output) if on_output is not None else None
        if stages is not None:
            pass_fds = (*pass_fds, stages.writer)
            command = [str(stages.writer) if word == _STAGE_FD_MARK else word for word in command]
        printed = None if output is None else output.writer
        pipes = [pipe for pipe in (stages, output) if pipe is not None]
        shim = [sys.executable, "-I", "-S", str(Path(__file__).with_name("exec_child.py")), str(os.getpid())]
        try:
            process = subprocess.Popen(
                [*shim, *command],
                env=dict(environ),
                pass_fds=pass_fds,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                start_new_session=True,
            )
        except OSError as error:
            raise StartupError(f"cannot start the {name} process ({command[0]}): {error}") from error
        finally:
            for pipe in pipes:
                pipe.close_writer()
        child = Child(name, process, pipes=pipes)
        self._children[process.pid] = child
        for pipe in pipes:
            self._selector.register(pipe.reader, selectors.EVENT_READ, (child, pipe))
        event(_log, logging.DEBUG, "started", child=name, pid=process.pid)
        return child

    def wait_until(self, done: Callable[[], bool], deadline_s: float = float("inf")) -> bool:
        """Handle events until `done()` or the deadline (monotonic seconds); returns `done()`."""
        while not done():
            remaining_s = deadline_s - time.monotonic()
            if remaining_s <= 0:
                return False
            self._handle_events(min(remaining_s, 1.0))
        return True

    def send(self, child: Child | None, number: signal.Signals) -> None:
        """Signal `child` if it runs. Its pid cannot have been reused: only we reap."""
        if child is not None and child.running:
            os.kill(child.process.pid, number)

    def stop(self, child: Child | None, *, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after `grace_s`."""
        if child is None or not child.running:
            return
        self.send(child, signal.SIGTERM)
        if not self.wait_until(lambda: not child.running, time.monotonic() + grace_s):
            self.send(child, signal.SIGKILL)
            self.wait_until(lambda: not child.running)

    def close(self) -> None:
        """Kill whatever is left, adopted orphans included, and give signals back."""
        deadline_s = time.monotonic() + 3.0
        while (pids := _child_pids()) and time.monotonic() < deadline_s:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            self._handle_events(0.05)
        signal.set_wakeup_fd(self._old_wakeup_fd)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._selector.close()
        self._wake_receiver.close()
        self._wake_sender.close()

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if self.stop_signal is None:
            self.stop_signal = signal.Signals(number).name
            self.stop_time_s = time.monotonic()

    def _handle_events(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._wake_receiver:
                self._wake_receiver.recv(4096)
            else:
                child, pipe = key.data
                if not pipe.read():
                    self._close(child, pipe)
        self._reap()

    def _reap(self) -> None:
        """Collect every dead child. Foreign ones (orphans given to PID 1) are collected and mean nothing."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is None:
                event(_log, logging.DEBUG, "reaped a foreign process", pid=pid)
                continue
            child.process.returncode = os.waitstatus_to_exitcode(status)
            for pipe in tuple(child.pipes):
                self._close(child, pipe)  # its last words may still be in there

    def _take_stage(self, child: Child, line: bytes) -> None:
        try:
            stage = msgspec.json.decode(line, type=Stage)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            event(_log, logging.WARNING, "unreadable stage line", child=child.name, reason=str(error))
            return
        child.stages.append(stage)
        self._on_stage(child, stage)

    def _close(self, child: Child, pipe: LinePipe) -> None:
        self._selector.unregister(pipe.reader)
        child.pipes.remove(pipe)
        pipe.close()


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """SIGCHLD only has to interrupt the wait; the default action would not."""


def _child_pids() -> list[int]:
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []
