"""Masks of permitted tokens over float32 logits, in numpy: torch wakes its threads for less than they take over."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from serving.kernels import reference

_OCTETS = np.arange(256, dtype=np.uint8)
_LIMITS_OF_OCTET = np.where(
    np.unpackbits(_OCTETS[:, None], axis=1, bitorder="little"), np.float32("inf"), np.float32("-inf")
)
"""[256, 8]: what the logits of eight tokens may be at most, by the byte that holds their bits."""


def mask_tokens(logits: Tensor, bits: Tensor, rows: list[int]) -> None:
    if logits.dtype is not torch.float32:
        reference.mask_tokens(logits, bits, rows)
        return
    # A minimum, because filling by a mask is slowed down by branches that nobody can predict.
    limits = _LIMITS_OF_OCTET.take(bits.numpy().view(np.uint8), axis=0).reshape(len(bits), -1)
    values = logits.numpy()
    known = min(limits.shape[1], values.shape[1])
    permitted = values[rows]
    np.minimum(permitted[:, :known], limits[:, :known], out=permitted[:, :known])
    permitted[:, known:] = -np.inf
    values[rows] = permitted
