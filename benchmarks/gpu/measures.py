"""What every engine is asked, and the record that survives a stopped measurement."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from benchmarks.gpu.workloads import Workload, prompts


class Engine(Protocol):
    def run(self, prompts: list[list[int]], num_tokens: int) -> None:
        """Generate exactly `num_tokens` greedy tokens for each prompt, and return when all are on the host."""
        ...


class Record:
    """Results by dotted name in one JSON file, written after each of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[str, Any] = {}

    def add(self, name: str, value: object) -> None:
        self._values[name] = value
        self._path.write_text(json.dumps(self._values, indent=1, default=str))
        print(f"{name} = {value}", flush=True)


def measure_steady(engine: Engine, workload: Workload, record: Record) -> None:
    """Prefill time per prompt length, decode step time per batch size."""
    _timed(engine, prompts(2, workload.decode_prompt, workload, seed=1), workload.decode_skip)
    for length in workload.prefill_lengths:
        asked = [prompts(1, length, workload, seed=100 + n) for n in range(workload.repeats + 1)]
        times_s = [_timed(engine, prompt, 1) for prompt in asked][1:]
        record.add(f"prefill.{length}.ms", 1e3 * statistics.median(times_s))
    for batch in workload.decode_batches:
        record.add(f"decode.{batch}.step_ms", 1e3 * _decode_step_s(engine, batch, workload))


def _decode_step_s(engine: Engine, batch: int, workload: Workload) -> float:
    """Difference of a long and a short generation over the same prompts, per step; the best of two of each."""
    asked = prompts(batch, workload.decode_prompt, workload, seed=batch)
    skip, steps = workload.decode_skip, workload.decode_steps
    _timed(engine, asked, skip)
    short_s = min(_timed(engine, asked, skip) for _ in range(2))
    long_s = min(_timed(engine, asked, skip + steps) for _ in range(2))
    return (long_s - short_s) / steps


def _timed(engine: Engine, asked: list[list[int]], num_tokens: int) -> float:
    started_s = time.perf_counter()
    engine.run(asked, num_tokens)
    return time.perf_counter() - started_s


def timed(record: Record, name: str, action: Callable[[], Any]) -> Any:
    """Result of `action`; its seconds are recorded as `name`."""
    started_s = time.perf_counter()
    result = action()
    record.add(name, time.perf_counter() - started_s)
    return result
