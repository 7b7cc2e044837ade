"""Matrix products with few rows. Every bound here is measured: docs/performance.md, "Products without a compiler"."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SKINNY_ROWS = 8
_TILE_ROWS = 16
_MAX_TRANSPOSED_ROWS = 64
_VECTOR_PARTS = 8


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [T, in], weight [out, in] -> [T, out]; for a few rows the result is a view with column-major strides.

    The library does not split a product with few rows over threads. It does split W xᵀ, which has many, and a batch.
    """
    rows = x.shape[0]
    threads = torch.get_num_threads()
    limit = _MAX_TRANSPOSED_ROWS if threads > 1 else _SKINNY_ROWS
    if rows > limit or x.dtype is not torch.float32:
        return F.linear(x, weight, bias)
    if rows == 1:
        output = _vector_product(x, weight) if threads > 1 else F.linear(x, weight)
    elif _SKINNY_ROWS < rows < _TILE_ROWS:
        tile = x.new_zeros(_TILE_ROWS, x.shape[1])
        tile[:rows] = x
        output = torch.mm(weight, tile.t()).t()[:rows]
    else:
        output = torch.mm(weight, x.t()).t()
    return output if bias is None else output.add_(bias)


def _vector_product(x: Tensor, weight: Tensor) -> Tensor:
    out_features, in_features = weight.shape
    if out_features % _VECTOR_PARTS:
        return F.linear(x, weight)
    parts = weight.view(_VECTOR_PARTS, -1, in_features)
    return torch.bmm(parts, x.t().expand(_VECTOR_PARTS, in_features, 1)).view(1, out_features)
