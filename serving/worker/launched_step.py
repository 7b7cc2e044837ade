"""A step between its launch and the moment the host reads what it sampled. Plain state."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from serving.batch import StepResult
from serving.worker.device_sampling import ChosenTokens
from serving.worker.input_batch import Row


@dataclass(slots=True, eq=False)
class LaunchedStep:
    """`started_s` is a reading of `time.perf_counter`. `ids` [R] int64 are what was sampled for the row numbers `sampling`,
    while the host has not read them; `rows` are the same rows, and `ends` the lengths they had with those ids. `chosen` is
    what brings them, and all of `result.sampled`, where the device chose them."""

    result: StepResult
    started_s: float
    sampling: list[int] = field(default_factory=list)
    ids: Tensor | None = None
    chosen: ChosenTokens | None = None
    rows: list[Row] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
