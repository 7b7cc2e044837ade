"""Steps of decodes that were captured once and are replayed: one capture per padded number of rows.

Knows sizes and which are worth capturing; neither what a capture is nor what it computes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from serving.contracts import GraphBackend, StepGraph
from serving.worker.decode_inputs import DecodeInputs, PackedTokens


@dataclass(slots=True, frozen=True)
class _Captured:
    graph: StepGraph
    output: Tensor


class DecodeGraphs:
    """A size is captured when it is needed for the second time: many come only once, on the way up or down.

    `forward` computes the rows of its inputs and returns one tensor [rows, ...]. It may run more than once in a capture.
    """

    def __init__(
        self, backend: GraphBackend, inputs: DecodeInputs, forward: Callable[[PackedTokens], Tensor]
    ) -> None:
        self._backend = backend
        self._inputs = inputs
        self._forward = forward
        self._captured: dict[int, _Captured | None] = {}
        self._seen: set[int] = set()

    @property
    def num_captured(self) -> int:
        return sum(captured is not None for captured in self._captured.values())

    @property
    def largest(self) -> int | None:
        """The largest size that can be captured."""
        return max(self._sizes(), default=None)

    def run(self, num_rows: int) -> Tensor | None:
        """Compute the first `num_rows` places of the inputs, which must have been uploaded: the output of these rows, valid
        until the next run. None: nothing was computed, this step has to run without a capture."""
        size = self._size(num_rows)
        if size is None:
            return None
        if size in self._captured:
            captured = self._captured[size]
            if captured is None:
                return None
            captured.graph.replay()
        elif size in self._seen:
            captured = self._capture(size)
            if captured is None:
                return None
        else:
            self._seen.add(size)
            return None
        return captured.output if size == num_rows else captured.output[:num_rows]

    def capture_all(self, *, limit_s: float, agree: Callable[[bool], bool] = bool) -> int:
        """Capture ahead of need, the largest size first, so that smaller ones find its memory; whatever `limit_s` leaves
        no time for comes when it is needed. `agree` makes all ranks go on or stop alike. Returns the number captured."""
        started_s = time.perf_counter()
        self._inputs.places(0)
        self._inputs.upload()
        for size in sorted(self._sizes(), reverse=True):
            if not agree(time.perf_counter() - started_s < limit_s):
                break
            self._capture(size)
        return self.num_captured

    def _sizes(self) -> set[int]:
        sizes = {self._size(count) for count in range(1, self._inputs.max_rows + 1)}
        return {size for size in sizes if size is not None}

    def _size(self, num_rows: int) -> int | None:
        size = self._backend.padded_rows(num_rows)
        return None if size is None else min(size, self._inputs.max_rows)

    def _capture(self, size: int) -> _Captured | None:
        """Also computes what lies in the inputs."""
        packed, forward = self._inputs.packed(size), self._forward
        made = self._backend.capture(lambda: forward(packed))
        self._captured[size] = captured = None if made is None else _Captured(*made)
        return captured
