"""A step between its launch and the moment the host reads what it sampled. Plain state."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from serving.batch import StepResult
from serving.worker.input_batch import Row


@dataclass(slots=True, eq=False)
class LaunchedStep:
    """`started_s` is a reading of `time.perf_counter`. `ids` [R] int64 are what was sampled for the row numbers `sampling`,
    while only the device knows them; `rows` are the same rows, and `ends` the lengths they had with those ids."""

    result: StepResult
    started_s: float
    sampling: list[int] = field(default_factory=list)
    ids: Tensor | None = None
    rows: list[Row] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
