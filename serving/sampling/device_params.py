"""Rows' parameters as the GPU's sampler reads them: a table of integers that the host writes and sends without waiting.
Knows sampling parameters, not kernels."""

from __future__ import annotations

import math
import struct

import torch
from torch import Tensor

from serving.sampling.adjustments import adjusts, bans
from serving.sampling_params import SamplingParams

NUM_COLUMNS = 9
_POSITION, _MASK = 5, 7


def covers(params: SamplingParams) -> bool:
    """False for rows whose logits something else has to change first, and for typical sampling: those need `Sampler`."""
    return not adjusts(params) and not bans(params) and params.typical_p == 1.0


class DeviceParams:
    """`table` [max_rows, 9] int64 on the device, columns as `serving.kernels.triton.sampler` names them. Doubles are held
    as their bits."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self.table = torch.zeros((max_rows, NUM_COLUMNS), dtype=torch.int64, device=device)
        # Two, because the step before may still be reading what it was sent.
        self._hosts = [
            torch.zeros((max_rows, NUM_COLUMNS), dtype=torch.int64, pin_memory=device.type == "cuda")
            for _ in range(2)
        ]
        self._turn = 0
        self._rows = self._hosts[0].numpy().copy()

    def write(self, place: int, params: SamplingParams, seed: int) -> None:
        """The row at `place` of the batch is another one now. Its position and mask are `send`'s."""
        self._rows[place] = (
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

    def send(self, positions: list[int], masked: list[int] | None = None) -> Tensor:
        """Output positions of the first rows; mask m is for row `masked[m]`. Returns the table, which the device has before
        it runs what is launched next on this stream."""
        count = len(positions)
        self._rows[:count, _POSITION] = positions
        self._rows[:count, _MASK] = -1
        if masked:
            self._rows[masked, _MASK] = range(len(masked))
        self._turn = 1 - self._turn
        host = self._hosts[self._turn]
        host.numpy()[:count] = self._rows[:count]
        self.table[:count].copy_(host[:count], non_blocking=True)
        return self.table


def _bits(value: float) -> int:
    """A double's bits as a signed integer."""
    bits: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return bits
