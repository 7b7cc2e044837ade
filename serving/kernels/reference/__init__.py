"""Every primitive operation in plain torch: the specification that other implementations are checked against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from serving.kernels.reference.attention import paged_attention

__all__ = [
    "add_rms_norm", "embed", "linear", "mask_tokens", "normalizers", "pack", "paged_attention", "rms_norm", "rotary",
    "silu_mul",
]  # fmt: skip


def pack(weight: Tensor) -> Tensor:
    """A weight [out, in] as it is."""
    return weight


def embed(token_ids: Tensor, weight: Tensor) -> Tensor:
    """token_ids [T] int64, weight [V, N] -> rows [T, N] of it, freshly allocated."""
    return F.embedding(token_ids, weight)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [T, in], weight [out, in], bias [out] -> [T, out]."""
    return F.linear(x, weight, bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., N] scaled to unit root mean square along its last dimension, in float32, then by `weight`.

    `weight` is [N], or has the leading dimensions of `x` where each head has its own.
    """
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add `x` to `residual` in place and return the norm of the sum."""
    residual.add_(x)
    return rms_norm(residual, weight, eps)


def rotary(x: Tensor, table: Tensor, positions: Tensor) -> Tensor:
    """Rotate pairs (i, i + D/2) of x [T, H, D] by the angles of positions [T] int64 -> [T, H, D].

    table [P, D]: of each position D/2 cosines, then D/2 sines.
    """
    half = x.shape[-1] // 2
    cos, sin = table.index_select(0, positions).unsqueeze(1).split(half, dim=-1)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate_up [T, 2 I] -> silu(gate) * up, [T, I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def mask_tokens(logits: Tensor, bits: Tensor, rows: list[int]) -> None:
    """Set what is not permitted in `rows` of logits [R, V] to -inf, in place.

    bits [M, W] int32 on the CPU: bit i of word w of mask m says whether token 32 w + i may be chosen in `rows[m]`. Tokens
    beyond 32 W are not permitted.
    """
    octets = bits.view(torch.uint8).to(logits.device, non_blocking=True)
    shifts = torch.arange(8, dtype=torch.uint8, device=logits.device)
    forbidden = ((octets.unsqueeze(-1) >> shifts) & 1).eq(0).flatten(1)
    index = torch.tensor(rows, device=logits.device)
    known = min(forbidden.shape[1], logits.shape[1])
    masked = logits[index]
    masked[:, :known].masked_fill_(forbidden[:, :known], float("-inf"))
    masked[:, known:] = float("-inf")
    logits[index] = masked


def normalizers(logits: Tensor) -> Tensor:
    """logits [R, V] float32 -> [R], what log-probabilities are less than logits."""
    return logits.logsumexp(dim=-1)
