"""Matrix products with few rows. Every bound here is measured: docs/performance.md, "CPU linear"."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SKINNY_ROWS = 8
_TILE_ROWS = 16
_MAX_TRANSPOSED_ROWS = 64


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [T, in], weight [out, in] -> [T, out]; for a few rows the result is a view with column-major strides.

    The library does not split a product with few rows over threads, but it does split W xᵀ, which has many.
    """
    rows = x.shape[0]
    limit = _MAX_TRANSPOSED_ROWS if torch.get_num_threads() > 1 else _SKINNY_ROWS
    if rows == 1 or rows > limit or x.dtype is not torch.float32:
        return F.linear(x, weight, bias)
    if _SKINNY_ROWS < rows < _TILE_ROWS:
        tile = x.new_zeros(_TILE_ROWS, x.shape[1])
        tile[:rows] = x
        output = torch.mm(weight, tile.t()).t()[:rows]
    else:
        output = torch.mm(weight, x.t()).t()
    return output if bias is None else output.add_(bias)
