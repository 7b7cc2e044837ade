"""The processes of the other tensor-parallel ranks: starts and feeds them, and notices when one dies.

Knows commands and processes, neither requests nor tensors.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from serving import logs
from serving.config import EngineConfig
from serving.errors import ServingError, TransportError
from serving.ipc.channel import FrameReader, decode_from_rank, encode_frame
from serving.messages import RankFailed, RankReady, Shutdown, ToRank

RANK_COMMAND = (sys.executable, "-m", "serving.worker.rank")
BLAME_S = 0.5
"""A broken collective and the news of the death that broke it are this close."""
_READ_BYTES = 65536

logger = logging.getLogger(__name__)


class RankDied(ServingError):
    """A rank ended on its own. The engine cannot go on: the other ranks hold only their shards."""

    error_type = "generation"


@dataclass(slots=True, eq=False)
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    sock: socket.socket
    reader: FrameReader = field(default_factory=FrameReader)
    free_bytes: int = 0


class RankGroup:
    """The processes of ranks 1 to N-1, each behind a socket pair. A thread reads what they report."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        rendezvous: Path,
        on_death: Callable[[str], None] | None,
        rank_command: Sequence[str] = RANK_COMMAND,
    ) -> None:
        self._on_death = on_death
        self._replies: queue.SimpleQueue[RankReady | None] = queue.SimpleQueue()
        self._died = threading.Event()
        self._death_reason = ""
        self._stopping = False
        self._ranks: dict[int, _Rank] = {}
        with contextlib.ExitStack() as undo:
            undo.callback(self._kill)
            for number in range(1, config.num_ranks):
                self._ranks[number] = _spawn(config, number, rendezvous, rank_command)
            undo.pop_all()
        self._watcher = threading.Thread(target=self._watch, name="rank-watch", daemon=True)
        self._watcher.start()

    @property
    def pids(self) -> list[int]:
        return [rank.process.pid for rank in self._ranks.values()]

    def free_bytes(self) -> int:
        return min(rank.free_bytes for rank in self._ranks.values())

    def send(self, command: ToRank) -> None:
        """Raises `RankDied` when a rank is gone."""
        frame = encode_frame(command)
        try:
            for rank in self._ranks.values():
                rank.sock.sendall(frame)
        except OSError as error:
            raise self.death(within_s=BLAME_S) or RankDied(f"a rank does not listen: {error}") from error

    def collect_ready(self) -> None:
        """Wait until every rank has finished its command. Raises `RankDied`."""
        for _ in self._ranks:
            if self._replies.get() is None:
                raise RankDied(self._death_reason)

    def death(self, *, within_s: float) -> RankDied | None:
        """The first death, waiting up to `within_s` for its news."""
        return RankDied(self._death_reason) if self._died.wait(within_s) else None

    def shut_down(self) -> None:
        """Ask the ranks to end; from here on their end is no death."""
        self._stopping = True
        frame = encode_frame(Shutdown())
        for rank in self._ranks.values():
            with contextlib.suppress(OSError):  # it is gone already
                rank.sock.sendall(frame)

    def stop(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` for all ranks to end, then kill those that are left."""
        self._stopping = True
        deadline = time.monotonic() + timeout_s
        for rank in self._ranks.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                rank.process.wait(max(0.0, deadline - time.monotonic()))
        self._kill()
        self._watcher.join()
        for rank in self._ranks.values():
            rank.sock.close()

    def _kill(self) -> None:
        for rank in self._ranks.values():
            rank.process.kill()
            rank.process.wait()

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank in self._ranks.values():
                selector.register(rank.sock, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    rank = key.data
                    if not self._read(rank):
                        selector.unregister(rank.sock)

    def _read(self, rank: _Rank) -> bool:
        """Take what `rank` reports. False when it is gone."""
        try:
            data = rank.sock.recv(_READ_BYTES)
        except ConnectionResetError:  # the end of a process that had not read everything
            data = b""
        try:
            for payload in rank.reader.feed(data):
                report = decode_from_rank(payload)
                if isinstance(report, RankFailed):
                    self._report_death(f"rank {rank.number} failed: {report.reason}")
                else:
                    rank.free_bytes = report.free_bytes
                    self._replies.put(report)
        except TransportError as error:
            self._report_death(f"rank {rank.number} broke its channel: {error}")
            return False
        if not data:
            self._report_death(f"rank {rank.number} {_ending(rank.process)}")
        return bool(data)

    def _report_death(self, reason: str) -> None:
        if self._stopping or self._died.is_set():
            return
        self._death_reason = reason
        self._died.set()
        self._replies.put(None)
        logs.event(logger, logging.ERROR, "rank died", reason=reason)
        if self._on_death is not None:
            # Not here: the callback may wait, and the other ranks must still be watched.
            threading.Thread(target=self._on_death, args=(reason,), name="rank-death", daemon=True).start()


def _spawn(config: EngineConfig, number: int, rendezvous: Path, rank_command: Sequence[str]) -> _Rank:
    ours, theirs = socket.socketpair()
    with theirs, contextlib.ExitStack() as undo:
        undo.callback(ours.close)
        process = subprocess.Popen(
            [
                *rank_command,
                f"--rank={number}",
                f"--socket-fd={theirs.fileno()}",
                f"--parent-pid={os.getpid()}",
                f"--rendezvous={rendezvous}",
                f"--config={msgspec.json.encode(config).decode()}",
            ],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
        )
        undo.pop_all()
    return _Rank(number, process, ours)


def _ending(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return "closed its channel"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
