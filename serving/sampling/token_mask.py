"""Permitted tokens as bits, and how they meet the logits. Knows nothing of who made the bits."""

from __future__ import annotations

from dataclasses import dataclass

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
        words = self.bits.to(logits.device, non_blocking=True)
        octets = words.view(torch.uint8)
        shifts = torch.arange(8, dtype=torch.uint8, device=logits.device)
        forbidden = ((octets.unsqueeze(-1) >> shifts) & 1).eq_(0).flatten(1).bool()
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
