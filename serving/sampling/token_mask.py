"""Permitted tokens as bits, and how they meet the logits. Knows nothing of who made the bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_REMOVED = float("-inf")


@dataclass(slots=True, frozen=True)
class TokenMasks:
    """`bits` [M, W] int32 on the CPU: bit i of word w says whether token 32 w + i is permitted. `rows[m]` is the index
    of the row of logits that mask m belongs to, ascending. Tokens beyond 32 W are not permitted."""

    rows: list[int]
    bits: Tensor

    def apply(self, logits: Tensor) -> None:
        """Set what is not permitted in `logits` [R, V] to -inf, in place."""
        forbidden = _unset(self.bits, logits.device)
        vocab_size = logits.shape[-1]
        known = min(forbidden.shape[1], vocab_size)
        if len(self.rows) == len(logits):
            logits[:, :known].masked_fill_(forbidden[:, :known], _REMOVED)
            logits[:, known:] = _REMOVED
            return
        index = torch.tensor(self.rows, device=logits.device)
        masked = logits[index]
        masked[:, :known].masked_fill_(forbidden[:, :known], _REMOVED)
        masked[:, known:] = _REMOVED
        logits[index] = masked


def _unset(bits: Tensor, device: torch.device) -> Tensor:
    """[M, 32 W] booleans: True where a bit is 0. Unpacked where the logits are: the bits are fewer bytes to move."""
    octets = bits.view(torch.uint8)
    if device.type == "cpu":
        # One pass instead of a kernel per operation.
        return torch.from_numpy(np.unpackbits(~octets.numpy(), axis=1, bitorder="little")).view(torch.bool)
    shifts = torch.arange(8, dtype=torch.uint8, device=device)
    return ((octets.to(device, non_blocking=True).unsqueeze(-1) >> shifts) & 1).eq(0).flatten(1)
