"""Runs plans on one rank or on several: starts the other ranks, feeds them, and notices when one dies.

Knows commands and processes. It must not know requests, and imports torch only through the worker it creates.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from serving import logs
from serving.batch import ScheduledBatch, StepResult
from serving.config import EngineConfig
from serving.errors import ServingError, TransportError
from serving.ipc.channel import FrameReader, decode_from_rank, encode_frame
from serving.messages import ExecuteBatch, InitializeCache, RankFailed, RankReady, RunWarmup, Shutdown, ToRank

if TYPE_CHECKING:
    from serving.contracts import KVGroupSpec
    from serving.grammar.store import GrammarStore
    from serving.worker.worker import Worker

T = TypeVar("T")
Progress = Callable[[int, int], None]

RANK_COMMAND = (sys.executable, "-m", "serving.worker.rank")
_READ_BYTES = 65536
_BLAME_S = 0.5  # a broken collective and the news of the death that broke it are this close
_STOP_S = 5.0

logger = logging.getLogger(__name__)


class RankDied(ServingError):
    """A rank ended on its own. The engine cannot go on: the other ranks hold only their shards."""

    error_type = "generation"


class Executor(Protocol):
    """What the engine core needs of the workers. One thread calls it."""

    def load(self, progress: Progress | None = None) -> None:
        """Read the weights on every rank. Raises `ModelError`, or `RankDied`."""
        ...

    @property
    def kv_groups(self) -> list[KVGroupSpec]: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_ids(self) -> list[int]: ...

    def warm_up(self, num_tokens: int) -> float:
        """Seconds of the largest step."""
        ...

    def free_bytes(self) -> int:
        """What a rank may spend on its KV cache: the least of all ranks."""
        ...

    def initialize_cache(self, num_blocks: list[int]) -> None:
        """`num_blocks` per KV group, on every rank."""
        ...

    def use_grammars(self, grammars: GrammarStore) -> None:
        """Where rank 0, which samples, finds the compiled grammars of its requests."""

    def execute(self, batch: ScheduledBatch) -> StepResult:
        """One step on all ranks. Raises `RankDied` when it cannot be finished for that reason."""
        ...

    def close(self) -> None: ...


class WorkerFactory(Protocol):
    def __call__(self, config: EngineConfig, *, rank: int, rendezvous: Path) -> Worker: ...


def make_executor(
    config: EngineConfig, *, run_dir: Path | None = None, on_rank_death: Callable[[str], None] | None = None
) -> Executor:
    """The executor for `config.num_ranks`. `run_dir` is a private folder for the file where ranks meet.

    `on_rank_death(reason)` is called once, in a thread of its own, when a rank dies; whoever calls `execute`
    may then be inside a collective that nothing can interrupt. Ranks end with the thread that called this.
    """
    if config.num_ranks == 1:
        return InlineExecutor(config)
    return RankedExecutor(config, run_dir=run_dir, on_rank_death=on_rank_death)


def create_worker(config: EngineConfig, *, rank: int, rendezvous: Path) -> Worker:
    """The worker of this process. Imports torch."""
    from serving.worker.worker import Worker

    return Worker(config, rank=rank, rendezvous=rendezvous)


class InlineExecutor:
    """One rank, in this process."""

    def __init__(self, config: EngineConfig, *, worker_factory: WorkerFactory = create_worker) -> None:
        self._worker = worker_factory(config, rank=0, rendezvous=Path(os.devnull))

    def load(self, progress: Progress | None = None) -> None:
        self._worker.load(progress)

    @property
    def kv_groups(self) -> list[KVGroupSpec]:
        return self._worker.kv_groups

    @property
    def vocab_size(self) -> int:
        return self._worker.vocab_size

    @property
    def eos_token_ids(self) -> list[int]:
        return self._worker.eos_token_ids

    def warm_up(self, num_tokens: int) -> float:
        return self._worker.warm_up(num_tokens)

    def free_bytes(self) -> int:
        return self._worker.free_bytes()

    def initialize_cache(self, num_blocks: list[int]) -> None:
        self._worker.initialize_cache(num_blocks)

    def use_grammars(self, grammars: GrammarStore) -> None:
        self._worker.use_grammars(grammars)

    def execute(self, batch: ScheduledBatch) -> StepResult:
        return _of_rank_0(self._worker.execute(batch))

    def close(self) -> None:
        self._worker.close()


class RankedExecutor:
    """Rank 0 in this process, every other rank in one of its own."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        run_dir: Path | None = None,
        on_rank_death: Callable[[str], None] | None = None,
        worker_factory: WorkerFactory = create_worker,
        rank_command: Sequence[str] = RANK_COMMAND,
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ranks-", dir=run_dir))
        rendezvous = self._folder / "rendezvous"
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self._ranks = RankGroup(
                config, rendezvous=rendezvous, on_death=on_rank_death, rank_command=rank_command
            )
            undo.callback(self._ranks.stop, 0.0)
            self._worker = self._run(lambda: worker_factory(config, rank=0, rendezvous=rendezvous))
            undo.pop_all()

    @property
    def rank_pids(self) -> list[int]:
        """Process ids of the ranks 1, 2, ..."""
        return self._ranks.pids

    def load(self, progress: Progress | None = None) -> None:
        self._run(lambda: self._worker.load(progress))
        self._ranks.collect_ready()

    @property
    def kv_groups(self) -> list[KVGroupSpec]:
        return self._worker.kv_groups

    @property
    def vocab_size(self) -> int:
        return self._worker.vocab_size

    @property
    def eos_token_ids(self) -> list[int]:
        return self._worker.eos_token_ids

    def warm_up(self, num_tokens: int) -> float:
        self._ranks.send(RunWarmup(num_tokens=num_tokens))
        seconds = self._run(lambda: self._worker.warm_up(num_tokens))
        self._ranks.collect_ready()
        return seconds

    def free_bytes(self) -> int:
        return min(self._worker.free_bytes(), self._ranks.free_bytes())

    def initialize_cache(self, num_blocks: list[int]) -> None:
        self._ranks.send(InitializeCache(num_blocks=num_blocks))
        self._run(lambda: self._worker.initialize_cache(num_blocks))
        self._ranks.collect_ready()

    def use_grammars(self, grammars: GrammarStore) -> None:
        self._worker.use_grammars(grammars)

    def execute(self, batch: ScheduledBatch) -> StepResult:
        self._ranks.send(ExecuteBatch(batch=batch))
        return _of_rank_0(self._run(lambda: self._worker.execute(batch)))

    def close(self) -> None:
        self._ranks.shut_down()
        self._worker.close()
        self._ranks.stop(_STOP_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, call: Callable[[], T]) -> T:
        """Rank 0's part. A collective breaks with RuntimeError when its peer dies: then that is the error."""
        try:
            return call()
        except RuntimeError as error:
            death = self._ranks.death(within_s=_BLAME_S)
            if death is None:
                raise
            raise death from error


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
            raise self.death(within_s=_BLAME_S) or RankDied(f"a rank does not listen: {error}") from error

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


def _of_rank_0(result: StepResult | None) -> StepResult:
    if result is None:
        raise RuntimeError("the worker of rank 0 returned no result")
    return result
