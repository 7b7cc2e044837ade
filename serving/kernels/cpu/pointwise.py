"""Norms, rotation and activation in few operator calls: at one row, the calls cost more than the arithmetic."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from serving.kernels import reference


@lru_cache(maxsize=16)
def _one(value: float) -> Tensor:
    return torch.tensor([value])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if x.dtype is not torch.float32:
        return reference.rms_norm(x, weight, eps)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = torch.addcmul(_one(eps), length, length, value=1.0 / x.shape[-1]).rsqrt_()
    return (x * scale).mul_(weight)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    residual.add_(x)
    return rms_norm(residual, weight, eps)


def rotary(x: Tensor, table: Tensor, positions: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    cos, sin = table.index_select(0, positions).unsqueeze(1).split(half, dim=-1)
    output: Tensor = (x.unflatten(-1, (2, half)) * cos.unsqueeze(-2)).flatten(-2)
    output[..., :half].addcmul_(x[..., half:], sin, value=-1)
    output[..., half:].addcmul_(x[..., :half], sin)
    return output


def silu_mul(gate_up: Tensor) -> Tensor:
    half = gate_up.shape[-1] // 2
    return F.silu(gate_up[:, :half], inplace=True).mul_(gate_up[:, half:])
