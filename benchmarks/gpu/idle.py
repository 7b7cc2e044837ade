"""How long the device waits for the host between decode steps, from the profiler's trace of what ran on it when.

A captured step is one launch of many activities. What lies idle inside of a launch is the device's own doing; what lies idle
between two launches is the host's. Tracing costs time itself, on both sides, so that shares come out too large rather
than too small; the length of a traced step is recorded, to be compared with that of one that was not traced.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.measures import Engine, Record
from benchmarks.gpu.workloads import Workload, prompts

_ON_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_LEAST_IN_STEP = 8
"""Activities of one launch from which on it is a captured step."""


@dataclass(slots=True, frozen=True)
class Activity:
    """A kernel or a copy; microseconds. Those of one captured step have one `launch`."""

    start_us: float
    end_us: float
    launch: int


@dataclass(slots=True, frozen=True)
class Idle:
    """Of a row of captured steps. Shares of their time: between two launches, and at all."""

    num_steps: int
    step_us: float
    between_launches: float
    at_all: float


def measure_idle(engine: Engine, workload: Workload, record: Record, *, on_device: bool) -> None:
    """One row of steps per batch size. Without captured steps on a device only their number is recorded, 0."""
    for batch in workload.decode_batches:
        asked = prompts(batch, workload.decode_prompt, workload, seed=batch)
        num_tokens = workload.decode_skip + workload.decode_steps
        engine.run(asked, num_tokens)
        kind = ProfilerActivity.CUDA if on_device else ProfilerActivity.CPU
        with profile(activities=[kind]) as profiler:
            engine.run(asked, num_tokens)
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(trace))
            found = idle_of(activities(json.loads(trace.read_text())["traceEvents"]), workload.decode_skip)
        record.add(f"idle.{batch}.num_steps", found.num_steps if found else 0)
        if found:
            record.add(f"idle.{batch}.traced_step_ms", found.step_us / 1e3)
            record.add(f"idle.{batch}.host_share", found.between_launches)
            record.add(f"idle.{batch}.share", found.at_all)


def activities(events: Iterable[dict[str, Any]]) -> list[Activity]:
    """Of a trace in Chrome's format, as torch writes it: what ran on the device, in the order of its start."""
    found = [
        Activity(event["ts"], event["ts"] + event["dur"], event["args"]["correlation"])
        for event in events
        if event.get("ph") == "X" and event.get("cat") in _ON_DEVICE
    ]
    return sorted(found, key=lambda activity: activity.start_us)


def idle_of(ran: Sequence[Activity], skip: int) -> Idle | None:
    """From the start of the captured step after the first `skip` to that of the last; None if there are no two of them."""
    sizes = Counter(activity.launch for activity in ran)
    starts: dict[int, float] = {}
    for activity in ran:
        if sizes[activity.launch] >= _LEAST_IN_STEP:
            starts.setdefault(activity.launch, activity.start_us)
    steps = sorted(starts.values())[skip:]
    if len(steps) < 2:
        return None
    between_us = inside_us = 0.0
    last = None
    for activity in ran:
        if activity.start_us < steps[0] or activity.start_us > steps[-1]:
            continue
        if last is not None and activity.start_us > last.end_us:
            waited_us = activity.start_us - last.end_us
            if activity.launch == last.launch:
                inside_us += waited_us
            else:
                between_us += waited_us
        if last is None or activity.end_us > last.end_us:
            last = activity
    whole_us = steps[-1] - steps[0]
    return Idle(
        num_steps=len(steps) - 1,
        step_us=whole_us / (len(steps) - 1),
        between_launches=between_us / whole_us,
        at_all=(between_us + inside_us) / whole_us,
    )
