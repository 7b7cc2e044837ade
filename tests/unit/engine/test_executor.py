"""Executors with real rank processes and a fake worker: commands reach every rank, and no death goes unseen."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from serving.batch import ScheduledBatch, ScheduledRow
from serving.config import EngineConfig
from serving.engine.executor import InlineExecutor, RankedExecutor
from serving.engine.rank_group import RankDied
from serving.errors import ModelError
from tests.unit.engine.fake_worker import FakeWorker

RANK_COMMAND = (sys.executable, "-m", "tests.unit.engine.fake_worker")
BATCH = ScheduledBatch(step=3, rows=[ScheduledRow(row=0, num_tokens=1, samples=True)])


def engine_config(script: str = "", *, num_ranks: int = 2) -> EngineConfig:
    return EngineConfig(
        model_dir="/models/demo",
        model_id=script,
        revision=None,
        device="cpu",
        dtype="float32",
        num_ranks=num_ranks,
        num_threads=1,
        block_size=16,
        max_batch_total_tokens=None,
        memory_fraction=0.9,
        prefix_caching=True,
        max_step_tokens=512,
        step_time_budget_s=0.25,
        max_num_seqs=16,
        max_queue_tokens=None,
        max_concurrent_requests=16,
        max_best_of=2,
        max_input_tokens=None,
        max_total_tokens=1024,
        deterministic=False,
    )


class Deaths:
    """What `on_rank_death` was told, and when."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.time_s = 0.0

    def __call__(self, reason: str) -> None:
        self.time_s = time.monotonic()
        self.reasons.append(reason)


@pytest.fixture
def executors() -> Iterator[list[RankedExecutor]]:
    started: list[RankedExecutor] = []
    yield started
    for executor in started:
        pids = executor.rank_pids
        executor.close()
        assert not any(psutil.pid_exists(pid) for pid in pids)


def start(
    executors: list[RankedExecutor], run_dir: Path, script: str = "", *, num_ranks: int = 2, **options: Any
) -> RankedExecutor:
    executor = RankedExecutor(
        engine_config(script, num_ranks=num_ranks),
        run_dir=run_dir,
        worker_factory=FakeWorker,  # type: ignore[arg-type]
        rank_command=RANK_COMMAND,
        **options,
    )
    executors.append(executor)
    return executor


def notes(run_dir: Path, rank: int) -> list[str]:
    (path,) = run_dir.glob(f"ranks-*/rendezvous.rank{rank}")
    return path.read_text().splitlines()


def wait_for_death(deaths: Deaths, timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not deaths.reasons:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_inline(tmp_path: Path) -> None:
    class NotedWorker(FakeWorker):
        def __init__(self, config: EngineConfig, *, rank: int, rendezvous: Path) -> None:
            super().__init__(config, rank=rank, rendezvous=tmp_path / "notes")

    executor = InlineExecutor(engine_config(num_ranks=1), worker_factory=NotedWorker)  # type: ignore[arg-type]
    progress: list[tuple[int, int]] = []
    executor.load(lambda done, total: progress.append((done, total)))
    assert executor.warm_up(512) == 0.25
    assert executor.free_bytes() == 1000
    executor.initialize_cache([8])
    assert executor.collect(executor.launch(BATCH)).sampled[0].token_id == 7
    executor.close()
    assert progress == [(1, 1)]
    lines = (tmp_path / "notes.rank0").read_text().splitlines()
    assert lines[1:] == ["load", "warm_up 512", "cache [8]", "step 3", "close"]


def test_every_rank_does_everything_in_order(tmp_path: Path, executors: list[RankedExecutor]) -> None:
    executor = start(executors, tmp_path, num_ranks=3)
    progress: list[tuple[int, int]] = []
    executor.load(lambda done, total: progress.append((done, total)))
    assert executor.warm_up(512) == 0.25
    assert executor.free_bytes() == 800, "the least of the three ranks"
    executor.initialize_cache([8, 4])
    assert executor.collect(executor.launch(BATCH)).step == 3
    assert executor.warm_up(1) == 0.25  # answered after the step before it
    expected = ["load", "warm_up 512", "cache [8, 4]", "step 3", "warm_up 1"]
    all_notes = [notes(tmp_path, rank) for rank in range(3)]
    assert [lines[1:] for lines in all_notes] == [expected] * 3
    assert [lines[0] for lines in all_notes[1:]] == [f"begin {pid}" for pid in executor.rank_pids]
    titles = [" ".join(psutil.Process(pid).cmdline()).strip() for pid in executor.rank_pids]
    assert titles == ["worker-tp1", "worker-tp2"]
    assert progress == [(1, 1)]


def test_close_ends_ranks_with_status_0_and_leaves_no_files(tmp_path: Path) -> None:
    deaths = Deaths()
    executor = start([], tmp_path, on_rank_death=deaths)
    executor.load()
    executor.close()
    assert [rank.process.returncode for rank in executor._ranks._ranks.values()] == [0]
    assert list(tmp_path.iterdir()) == []
    assert deaths.reasons == []


def test_killed_rank_is_reported_within_half_a_second(
    tmp_path: Path, executors: list[RankedExecutor]
) -> None:
    deaths = Deaths()
    executor = start(executors, tmp_path, num_ranks=3, on_rank_death=deaths)
    executor.load()
    started_s = time.monotonic()
    os.kill(executor.rank_pids[1], signal.SIGKILL)
    wait_for_death(deaths)
    assert deaths.time_s - started_s < 0.5
    assert deaths.reasons == ["rank 2 was ended by SIGKILL"]
    with pytest.raises(RankDied, match="rank 2 was ended by SIGKILL"):
        executor.collect(executor.launch(BATCH))
    with pytest.raises(RankDied, match="rank 2 was ended by SIGKILL"):
        executor.warm_up(1)


def test_rank_killed_with_unread_commands(tmp_path: Path, executors: list[RankedExecutor]) -> None:
    deaths = Deaths()
    executor = start(executors, tmp_path, on_rank_death=deaths)
    executor.load()
    (pid,) = executor.rank_pids
    os.kill(pid, signal.SIGSTOP)
    executor.collect(executor.launch(BATCH))
    os.kill(pid, signal.SIGKILL)
    wait_for_death(deaths)
    assert deaths.reasons == ["rank 1 was ended by SIGKILL"]


def test_broken_collective_is_blamed_on_the_dead_rank(
    tmp_path: Path, executors: list[RankedExecutor]
) -> None:
    executor = start(executors, tmp_path, "breaks")
    executor.load()
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        executor.collect(executor.launch(BATCH))  # the rank lives: the error is what it says
    os.kill(executor.rank_pids[0], signal.SIGKILL)
    with pytest.raises(RankDied, match="rank 1 was ended by SIGKILL"):
        executor.collect(executor.launch(BATCH))


def test_failing_step_of_a_rank_tells_why(tmp_path: Path, executors: list[RankedExecutor]) -> None:
    deaths = Deaths()
    executor = start(executors, tmp_path, "step-fails", on_rank_death=deaths)
    executor.load()
    executor.collect(executor.launch(BATCH))
    wait_for_death(deaths)
    assert deaths.reasons == ["rank 1 failed: RuntimeError: out of memory"]
    (rank,) = executor._ranks._ranks.values()
    assert rank.process.wait(5.0) == 1


def test_failing_load_of_a_rank_tells_why(tmp_path: Path, executors: list[RankedExecutor]) -> None:
    executor = start(executors, tmp_path, "load-fails")
    with pytest.raises(RankDied, match="rank 1 failed: tensor `lm_head.weight` is missing"):
        executor.load()


def test_rank_that_cannot_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        RankedExecutor(
            engine_config(),
            run_dir=tmp_path,
            worker_factory=FakeWorker,  # type: ignore[arg-type]
            rank_command=("/no/such/program",),
        )
    assert list(tmp_path.iterdir()) == []


def test_failing_worker_of_rank_0_ends_the_others(tmp_path: Path) -> None:
    def broken_worker(config: EngineConfig, *, rank: int, rendezvous: Path) -> FakeWorker:
        raise ModelError("no config.json")

    children = set(psutil.Process().children())
    with pytest.raises(ModelError):
        RankedExecutor(
            engine_config(),
            run_dir=tmp_path,
            worker_factory=broken_worker,  # type: ignore[arg-type]
            rank_command=RANK_COMMAND,
        )
    assert set(psutil.Process().children()) == children
    assert list(tmp_path.iterdir()) == []


def test_stopped_rank_is_killed_on_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.engine.executor._STOP_S", 0.1)
    executor = start([], tmp_path)
    executor.load()
    (pid,) = executor.rank_pids
    os.kill(pid, signal.SIGSTOP)
    executor.close()
    assert not psutil.pid_exists(pid)


PARENT = """
import sys, threading
from pathlib import Path
from serving.engine.executor import RankedExecutor
from tests.unit.engine.fake_worker import FakeWorker
from tests.unit.engine.test_executor import BATCH, RANK_COMMAND, engine_config

executor = RankedExecutor(
    engine_config(sys.argv[2]), run_dir=Path(sys.argv[1]), worker_factory=FakeWorker, rank_command=RANK_COMMAND
)
executor.load()
print(*executor.rank_pids, flush=True)
executor.collect(executor.launch(BATCH))
threading.Event().wait()
"""


@pytest.mark.parametrize("script", ["", "hangs"])
def test_ranks_do_not_outlive_the_engine(tmp_path: Path, script: str) -> None:
    root = Path(__file__).parents[3]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), script], stdout=subprocess.PIPE, text=True, cwd=root
    )
    with parent:
        assert parent.stdout is not None
        rank = psutil.Process(int(parent.stdout.readline()))
        started_s = time.monotonic()
        parent.kill()
        while rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() - started_s < 2.0
            time.sleep(0.005)


def test_a_rank_ignores_signals_meant_for_the_engine(tmp_path: Path, executors: list[RankedExecutor]) -> None:
    executor = start(executors, tmp_path)
    executor.load()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(executor.rank_pids[0], number)
    assert executor.warm_up(1) == 0.25
