"""What every engine is asked, and the record that survives a stopped measurement."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
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
        unfinished = self._path.with_suffix(".part")
        unfinished.write_text(json.dumps(self._values, indent=1, default=str))
        unfinished.replace(self._path)
        print(f"{name} = {value}", flush=True)

    def add_samples(self, name: str, values: Sequence[float]) -> None:
        """Their median as `name`, and all of them beside it."""
        self.add(name, statistics.median(values))
        self.add(f"{name}.all", list(values))


def measure_steady(engine: Engine, workload: Workload, record: Record, *, long: bool = False) -> None:
    """Prefill time per prompt length, decode step time per batch size; with `long` that of long contexts too."""
    timed_s(engine, prompts(2, workload.decode_prompt, workload, seed=1), workload.decode_skip)
    for length in workload.prefill_lengths:
        asked = [prompts(1, length, workload, seed=100 + n) for n in range(workload.repeats + 1)]
        times_s = [timed_s(engine, prompt, 1) for prompt in asked][1:]
        record.add_samples(f"prefill.{length}.ms", [1e3 * seconds for seconds in times_s])
    for prompt in (workload.decode_prompt, *((workload.long_prompt,) if long else ())):
        for batch in workload.decode_batches:
            steps_s = _decode_steps_s(engine, batch, prompt, workload)
            record.add_samples(decode_name(batch, prompt), [1e3 * seconds for seconds in steps_s])


def decode_name(batch: int, prompt: int) -> str:
    return f"decode.{batch}@{prompt}.step_ms"


def _decode_steps_s(engine: Engine, batch: int, prompt: int, workload: Workload) -> list[float]:
    """Difference of a long and a short generation over the same prompts, per step; once per repeat, one after the other."""
    asked = prompts(batch, prompt, workload, seed=batch)
    skip, steps = workload.decode_skip, workload.decode_steps
    timed_s(engine, asked, skip)
    found = []
    for _ in range(workload.repeats):
        short_s = timed_s(engine, asked, skip)
        found.append((timed_s(engine, asked, skip + steps) - short_s) / steps)
    return found


def timed_s(engine: Engine, asked: list[list[int]], num_tokens: int) -> float:
    started_s = time.perf_counter()
    engine.run(asked, num_tokens)
    return time.perf_counter() - started_s


def timed(record: Record, name: str, action: Callable[[], Any]) -> Any:
    """Result of `action`; its seconds are recorded as `name`."""
    started_s = time.perf_counter()
    result = action()
    record.add(name, time.perf_counter() - started_s)
    return result
