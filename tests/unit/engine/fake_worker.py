"""A worker without a model. Run as a program it is a rank with that worker: `python -m … --rank=1 …`.

`config.model_id` scripts it: `load-fails`, `step-fails` (every rank above 0), `hangs` (rank 0 waits for ever in a
step, as in a collective whose peer is dead), `breaks` (rank 0 raises RuntimeError once a peer is gone).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from serving.batch import SampledToken, ScheduledBatch, StepResult
from serving.config import EngineConfig
from serving.errors import ModelError


class FakeWorker:
    """Notes what it was told in `<rendezvous>.rank<r>`, one line per command."""

    vocab_size = 512
    eos_token_ids = (0,)
    kv_groups: tuple[()] = ()

    def __init__(self, config: EngineConfig, *, rank: int, rendezvous: Path) -> None:
        self._script = config.model_id
        self._rank = rank
        self._notes = Path(f"{rendezvous}.rank{rank}")
        self._note(f"begin {os.getpid()}")

    def load(self, progress: Callable[[int, int], None] | None = None) -> None:
        if self._script == "load-fails" and self._rank > 0:
            raise ModelError("tensor `lm_head.weight` is missing: fetch the model again")
        if progress is not None:
            progress(1, 1)
        self._note("load")

    def warm_up(self, num_tokens: int) -> float:
        self._note(f"warm_up {num_tokens}")
        return 0.25

    def free_bytes(self) -> int:
        return 1000 - 100 * self._rank

    def initialize_cache(self, num_blocks: list[int]) -> None:
        self._note(f"cache {num_blocks}")

    def launch(self, batch: ScheduledBatch) -> StepResult | None:
        if self._script == "step-fails" and self._rank > 0:
            raise RuntimeError("out of memory")
        if self._script == "hangs" and self._rank == 0:
            threading.Event().wait()
        if self._script == "breaks" and self._rank == 0:
            raise RuntimeError("Connection closed by peer")
        self._note(f"step {batch.step}")
        if self._rank > 0:
            return None
        return StepResult(step=batch.step, sampled=[SampledToken(row=0, token_id=7, logprob=-1.0)])

    def collect(self, step: StepResult | None) -> StepResult | None:
        return step

    def close(self) -> None:
        self._note("close")

    def _note(self, line: str) -> None:
        with self._notes.open("a") as notes:
            notes.write(line + "\n")


if __name__ == "__main__":
    from serving.worker.rank import main

    main(worker_factory=FakeWorker)  # type: ignore[arg-type]
