"""Who is measured when: for each case, round after round, every engine once (A B A B), until it is done or time is up.

Knows engines by their role only; what is measured goes into a record, and what is in it already is not done again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import machine
from benchmarks.machine import ProcessorTime
from benchmarks.metrics import Metrics
from benchmarks.peers.contracts import Engine, EngineFailed, Measured, Running, Settings, Workload
from benchmarks.peers.conversions import converted_folder
from benchmarks.record import Record, Run
from benchmarks.workloads import Case, Family

_WARM_TOKENS = 8
SETTLE_S = 2.0
"""For every engine before its turn: between requests it has a moment elsewhere too."""
_RESERVE_BYTES = 2**30
# What an engine takes for a model, in the size of its files: some keep a second copy while they load.
_MEMORY_FACTOR = 2.5


@dataclass(slots=True, frozen=True)
class Entry:
    """An engine that takes part, under the name it has in the record."""

    label: str
    engine: Engine
    settings: Settings


@dataclass(slots=True, frozen=True)
class Turn:
    case: Case
    round: int
    entry: Entry


def turns(cases: Sequence[Case], rounds: int, entries: Sequence[Entry]) -> Iterator[Turn]:
    """Case by case, so that the engines of one comparison see the machine at the same time."""
    for case in cases:
        for number in range(1, rounds + 1):
            yield from (Turn(case, number, entry) for entry in entries)


def left_to_do(family: Family, rounds: int, entries: Sequence[Entry], record: Record) -> list[Turn]:
    return [
        turn
        for turn in turns(family.cases, rounds, entries)
        if not record.has(turn.case.name, turn.entry.label, turn.round)
        and not record.contenders[turn.entry.label].absent
    ]


class Stable:
    """Engines that are up. They stay up, held still while others have their turn, as long as memory lasts; then the one
    that was used longest ago ends.
    """

    def __init__(self, model: Path, warm: Workload) -> None:
        self._model = model
        self._model_bytes = sum(file.stat().st_size for file in model.iterdir() if file.is_file())
        self._warm = warm
        self._running: dict[str, Running] = {}  # in the order of their last use

    def get(self, entry: Entry) -> Running:
        """Started and warm, and the only one that goes on, for a moment already: whatever an engine does between requests it
        could not do while it was held. Raises `EngineFailed`."""
        running = self._running.pop(entry.label, None)
        for other in self._running.values():
            other.pause()
        if running is not None:
            running.resume()
        else:
            self._make_room()
            running = entry.engine.start(self._model, entry.settings)
            try:
                warmed = running.run(self._warm)
            except BaseException:
                running.close()
                raise
            if errors := [one.error for one in warmed.requests if one.error]:
                running.close()
                raise EngineFailed(f"{entry.label} failed its warm-up: {errors[0]}")
        self._running[entry.label] = running
        time.sleep(SETTLE_S)
        return running

    def start_s(self, label: str) -> float | None:
        """Process start to first token of an engine that is up."""
        return self._running[label].first_token_s if label in self._running else None

    def drop(self, label: str) -> None:
        if running := self._running.pop(label, None):
            running.close()

    def close(self) -> None:
        while self._running:
            self.drop(next(iter(self._running)))

    def __enter__(self) -> Stable:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _make_room(self) -> None:
        needed = _MEMORY_FACTOR * self._model_bytes + _RESERVE_BYTES
        while self._running and (machine.available_bytes() or needed) < needed:
            self.drop(next(iter(self._running)))


def warm_up(family: Family) -> Workload:
    """A few tokens of the first case's requests, with other prompts than any round has."""
    first = family.cases[0].make(0)
    count = min(len(first.requests), first.concurrency or len(first.requests), 4)
    shorter = [
        replace(one, prompt_ids=one.prompt_ids[:128], num_output_tokens=_WARM_TOKENS, arrival_s=0.0)
        for one in first.requests[:count]
    ]
    return Workload(tuple(shorter), concurrency=count)


def measure(turn: Turn, family: Family, stable: Stable) -> Run:
    """One repeat. What made it no measurement is in its `error`. Raises `EngineFailed` when the engine is gone."""
    running = stable.get(turn.entry)
    workload = turn.case.make(turn.round)
    load, share = os.getloadavg()[0], machine.busy_share()
    before, own_s = machine.processor_time(), time.process_time()
    started_s = time.perf_counter()
    measured = running.run(workload)
    wall_s = time.perf_counter() - started_s
    own_s = time.process_time() - own_s
    foreign = _foreign_share(before, machine.processor_time(), measured, own_s=own_s, wall_s=wall_s)
    complaints = measured.complaints(workload) if family.closed_loop else []
    return Run(
        case=turn.case.name,
        engine=turn.entry.label,
        round=turn.round,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        metrics={} if complaints else turn.case.measure(workload, measured),
        wall_s=measured.wall_s,
        load_average_before=load,
        busy_share_before=share,
        foreign_share=foreign,
        client_cpu_s=measured.client_cpu_s,
        engine_cpu_s=measured.engine_cpu_s,
        error=f"{len(complaints)} of {len(workload.requests)}: {complaints[0]}" if complaints else "",
    )


def measure_start(turn: Turn, model: Path) -> Run:
    """Process start to first token; the engine ends again. Before it the files that engines start from are read: what nobody
    has read for a minute may have left the page cache."""
    for folder in (model, converted_folder(model)):
        machine.into_page_cache(folder)
    load, share = os.getloadavg()[0], machine.busy_share()
    started_s = time.perf_counter()
    with turn.entry.engine.start(model, turn.entry.settings) as running:
        metrics: Metrics = {"start_s": running.first_token_s, "ready_s": running.ready_s}
    return Run(
        case=turn.case.name,
        engine=turn.entry.label,
        round=turn.round,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        metrics=metrics,
        wall_s=time.perf_counter() - started_s,
        load_average_before=load,
        busy_share_before=share,
        foreign_share=None,
        client_cpu_s=0.0,
        engine_cpu_s=0.0,
    )


class Clock:
    """Says whether another turn fits into the time there is, from how long turns and starts took before."""

    def __init__(self, limit_s: float | None, record: Record) -> None:
        self._started_s = time.monotonic()
        self._limit_s = limit_s
        self._record = record
        self._num_before = len(record.runs)

    def expected_s(self, turn: Turn, *, is_up: bool) -> float:
        """As long as this took before, else as the longest of this case; 0 when nothing is known."""
        same_case = [run for run in self._record.runs if run.case == turn.case.name]
        same = [run.wall_s for run in same_case if run.engine == turn.entry.label]
        start_s = self._record.contenders[turn.entry.label].start_s or 0.0
        return max(same or [run.wall_s for run in same_case], default=0.0) + (0.0 if is_up else start_s)

    def fits(self, turn: Turn, *, is_up: bool) -> bool:
        """The first turn of a piece always does, or there would be no end."""
        if self._limit_s is None or len(self._record.runs) == self._num_before:
            return True
        used_s = time.monotonic() - self._started_s
        known = any((run.case, run.engine) == (turn.case.name, turn.entry.label) for run in self._record.runs)
        # Engines that were not seen yet may be a few times slower than those that were.
        factor = 1.2 if known else 4.0
        return used_s + factor * self.expected_s(turn, is_up=is_up) < self._limit_s


def _foreign_share(
    before: ProcessorTime | None,
    after: ProcessorTime | None,
    measured: Measured,
    *,
    own_s: float,
    wall_s: float,
) -> float | None:
    if before is None or after is None:
        return None
    used_s = after.busy_s - before.busy_s + after.stolen_s - before.stolen_s
    # The client of an HTTP engine runs in this process, so one of these contains the other.
    foreign_s = used_s - measured.engine_cpu_s - max(measured.client_cpu_s, own_s)
    return max(0.0, foreign_s / (wall_s * (os.cpu_count() or 1)))
