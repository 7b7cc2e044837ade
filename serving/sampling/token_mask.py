"""Permitted tokens of some rows, as bits. Knows nothing of who made them; `Kernels.mask_tokens` applies them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True, frozen=True)
class TokenMasks:
    """`bits` [M, W] int32 on the CPU: bit i of word w says whether token 32 w + i is permitted. `rows[m]` is the index
    of the row of logits that mask m belongs to, ascending. Tokens beyond 32 W are not permitted."""

    rows: list[int]
    bits: Tensor
