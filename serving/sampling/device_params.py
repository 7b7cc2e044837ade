"""Rows' parameters as the GPU's sampler reads them: lines of integers, one per row, of which a step sends those it needs.
Knows sampling parameters, not kernels."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from serving.contracts import MAX_LIKELIEST
from serving.sampling.adjustments import adjusts
from serving.sampling_params import SamplingParams

NUM_COLUMNS = 9
_POSITION, _MASK = 5, 7


def covers(params: SamplingParams) -> bool:
    """False for rows whose logits something else has to change first, and for typical sampling: those need `Sampler`. Tokens
    that may not come yet are for the masks."""
    return not adjusts(params) and params.typical_p == 1.0 and params.top_n_tokens <= MAX_LIKELIEST


class DeviceParams:
    """Columns as `serving.kernels.triton.sampler` names them. Doubles are held as their bits."""

    def __init__(self, max_rows: int) -> None:
        self._lines = np.zeros((max_rows, NUM_COLUMNS), dtype=np.int64)

    def write(self, row: int, params: SamplingParams, seed: int) -> None:
        """The row of this number is another one now."""
        self._lines[row] = (
            _bits(params.temperature),
            _bits(params.top_p),
            _bits(math.log(params.min_p) if params.min_p > 0.0 else -math.inf),
            params.top_k,
            seed - 2**64 if seed >= 2**63 else seed,
            0,
            params.raw_logprobs,
            -1,
            params.top_n_tokens,
        )

    def lines(
        self, rows: npt.NDArray[np.int64], positions: Sequence[int], masks: Mapping[int, int] | None = None
    ) -> npt.NDArray[np.int64]:
        """A new array [R, 9] for these row numbers, at these output positions; line l obeys mask `masks[l]`."""
        lines = self._lines[rows]
        lines[:, _POSITION] = positions
        if masks:
            lines[list(masks), _MASK] = list(masks.values())
        return lines


def _bits(value: float) -> int:
    """A double's bits as a signed integer."""
    bits: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return bits
