"""Operations in fixed tiles of rows, for runs where a row's bits may depend on nothing but the row.

Matrix libraries choose code paths by the number of rows, and vectorized exponentials differ from scalar ones in the last
bit, so every product here has exactly `TILE_ROWS` rows and every activation starts at a fixed place of its row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_ROWS = 16


def pad_rows(x: Tensor) -> Tensor:
    """x [T, N] -> contiguous [ceil(T / TILE_ROWS) * TILE_ROWS, N], zeros below."""
    missing = -x.shape[0] % TILE_ROWS
    return F.pad(x, (0, 0, 0, missing)) if missing else x.contiguous()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.shape[0]
    tiles = pad_rows(x).split(TILE_ROWS)
    output = torch.cat([torch.mm(weight, tile.t()).t() for tile in tiles])[:rows]
    return output if bias is None else output + bias


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float().contiguous()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    residual.add_(x)
    return rms_norm(residual, weight, eps)


def silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.stack([F.silu(row.contiguous()) for row in gate.unbind(0)]) * up


def normalizers(logits: Tensor) -> Tensor:
    """Sums of several rows are cut up in other ways than that of one, on a GPU also by where a row begins."""
    return torch.cat([row.clone().logsumexp(dim=-1, keepdim=True) for row in logits.unbind(0)])
