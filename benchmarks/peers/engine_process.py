"""A child process with a log file: start it, see its end, sum the CPU time of its tree, hold it still, end all of it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

from benchmarks.peers.contracts import EngineFailed

_LAST_WORDS_LIMIT_S = 5.0
_STOP_LIMIT_S = 15.0
# What a process checks of its children once it goes on must find them going on already.
_HEAD_START_S = 0.1
_LOG_TAIL_CHARS = 3000
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class EngineProcess:
    """Its standard input and output are pipes if `has_pipes`; everything else it prints goes to the log.

    It stays in the caller's process group, so that an interrupt or a time limit ends both.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        has_pipes: bool = False,
    ) -> None:
        self.log = log
        self.started_s = time.perf_counter()
        self._is_paused = False
        log.write_bytes(b"")
        # Appending: another comparison beside this one may have the same log open.
        with log.open("ab") as log_file:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | dict(environment or {}),
                stdin=subprocess.PIPE if has_pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if has_pipes else log_file,
                stderr=log_file,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def age_s(self) -> float:
        return time.perf_counter() - self.started_s

    @property
    def pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        """Its standard input and output. Raises EngineFailed when it was started without."""
        if self._process.stdin is None or self._process.stdout is None:
            raise EngineFailed("this process was started without pipes")
        return self._process.stdin, self._process.stdout

    def check_alive(self) -> None:
        """Raises EngineFailed with the end of the log."""
        if (status := self._process.poll()) is not None:
            raise self.failure(f"the engine ended with status {status}")

    def failure(self, what: str) -> EngineFailed:
        tail = self.log.read_text(errors="replace")[-_LOG_TAIL_CHARS:]
        return EngineFailed(f"{what}; the end of its log ({self.log}):\n{tail}")

    def wait_for_last_words(self) -> None:
        """Its pipe is closed, so it ends; what it says of its end may come after that."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_WORDS_LIMIT_S)

    def cpu_s(self) -> float:
        """User and system seconds of the process and its living descendants, and of children that they waited for."""
        return sum(_cpu_s(pid) for pid in [self.pid, *descendants(self.pid)])

    def pause(self) -> None:
        """Hold the whole tree still: it takes no processor time until `resume`, and keeps its memory."""
        if not self._is_paused:
            self._is_paused = True
            for generation in generations(self.pid):
                _signal(generation, signal.SIGSTOP)

    def resume(self) -> None:
        """Let the tree go on, youngest first: a parent would take a child for hung that was still for so long."""
        if not self._is_paused:
            return
        self._is_paused = False
        for generation in reversed(generations(self.pid)):
            _signal(generation, signal.SIGCONT)
            time.sleep(_HEAD_START_S)

    def close(self) -> None:
        """SIGTERM, then SIGKILL to whatever of the tree is left after 15 s. Harmless when it has ended."""
        self.resume()
        tree = descendants(self.pid)
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pid in tree:
            _kill_if_ours(pid)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def descendants(pid: int) -> list[int]:
    """Children of `pid`, their children, and so on; empty once it has ended."""
    return [one for generation in generations(pid)[1:] for one in generation]


def generations(pid: int) -> list[list[int]]:
    """`pid`, then all its children, then all theirs, and so on."""
    found = [[pid]]
    while born := [child for parent in found[-1] for child in _children(parent)]:
        found.append(born)
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread ended in between
            found += [int(child) for child in task.read_text().split()]
    return found


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(ticks) for ticks in fields[11:15]) / _TICKS_PER_S


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _kill_if_ours(pid: int) -> None:
    """A descendant that outlived its parent is in our process group still; a pid that was given anew is elsewhere."""
    try:
        if os.getpgid(pid) == os.getpgid(0):
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
