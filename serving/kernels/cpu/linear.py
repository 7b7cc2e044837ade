"""Matrix products with few rows. The choice of shapes is measured: see docs/performance.md, "CPU linear"."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_MAX_SKINNY_ROWS = 64


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [T, in], weight [out, in] -> [T, out]; for a few rows the result is a view with column-major strides."""
    rows = x.shape[0]
    if rows == 1 or rows > _MAX_SKINNY_ROWS or x.dtype is not torch.float32:
        return F.linear(x, weight, bias)
    output = torch.mm(weight, x.t()).t()
    return output if bias is None else output.add_(bias)
