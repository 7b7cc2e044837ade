"""Norms, rotation and activation with as few passes and temporaries as torch's own operators allow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if x.dtype is not torch.float32:
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(eps))).to(x.dtype)
    scale = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return (x * scale).mul_(weight)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    residual.add_(x)
    return rms_norm(residual, weight, eps)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    output = torch.empty(x.shape, dtype=x.dtype)
    torch.mul(first, cos, out=output[..., :half])
    torch.mul(second, cos, out=output[..., half:])
    output[..., :half].addcmul_(second, sin, value=-1)
    output[..., half:].addcmul_(first, sin)
    return output


def silu_mul(gate_up: Tensor) -> Tensor:
    half = gate_up.shape[-1] // 2
    return F.silu(gate_up[:, :half], inplace=True).mul_(gate_up[:, half:])
