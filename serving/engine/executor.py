"""Runs plans on one rank or on several: hands each plan to the worker in this process and to those of the other ranks.

Knows commands and workers. It must not know requests, and imports torch only through the worker it creates.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from serving.batch import ScheduledBatch, StepResult
from serving.config import EngineConfig
from serving.engine.rank_group import BLAME_S, RANK_COMMAND, RankGroup
from serving.messages import ExecuteBatch, InitializeCache, RunWarmup

if TYPE_CHECKING:
    from serving.contracts import KVGroupSpec
    from serving.grammar.store import GrammarStore
    from serving.worker.launched_step import LaunchedStep
    from serving.worker.worker import Worker

T = TypeVar("T")
Progress = Callable[[int, int], None]

_STOP_S = 5.0


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

    def launch(self, batch: ScheduledBatch) -> LaunchedStep:
        """Begin a step on all ranks. Raises `RankDied` when it cannot be done for that reason."""
        ...

    def collect(self, step: LaunchedStep) -> StepResult:
        """The result of a launched step, in the order of the launches; at most two are open. Raises `RankDied`."""
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

    def launch(self, batch: ScheduledBatch) -> LaunchedStep:
        return self._worker.launch(batch)

    def collect(self, step: LaunchedStep) -> StepResult:
        return _of_rank_0(self._worker.collect(step))

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

    def launch(self, batch: ScheduledBatch) -> LaunchedStep:
        self._ranks.send(ExecuteBatch(batch=batch))
        return self._run(lambda: self._worker.launch(batch))

    def collect(self, step: LaunchedStep) -> StepResult:
        return _of_rank_0(self._run(lambda: self._worker.collect(step)))

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
            death = self._ranks.death(within_s=BLAME_S)
            if death is None:
                raise
            raise death from error


def _of_rank_0(result: StepResult | None) -> StepResult:
    if result is None:
        raise RuntimeError("the worker of rank 0 returned no result")
    return result
