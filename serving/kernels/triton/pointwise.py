# Kernel bodies are Triton's language, not Python's.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
"""Norms, rotation and the gate of the feed-forward block, each in one pass over memory, in Triton.

Twins of the functions of the same names in `serving.kernels.reference`, and like them rounded to the type of `x` where
those round. The calling thread's current CUDA device must be the one that holds the tensors.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE_ELEMENTS = 4096
_GATE_TILE = 1024


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, N] with weight [N], or [T, H, N] with weight [H, N] -> contiguous, of the shape of `x`."""
    return _norm(x, None, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add `x` [T, N] to `residual` in place and return the norm of the sum."""
    return _norm(x, residual, weight, eps)


def _norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    output = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    num_heads = 1 if x.dim() == 2 else x.shape[1]
    size = x.shape[-1]
    padded = triton.next_power_of_2(size)
    tile_heads = max(1, min(triton.next_power_of_2(num_heads), _TILE_ELEMENTS // padded))
    if x.shape[0] == 0:
        return output
    x = x if x.stride(-1) == 1 else x.contiguous()
    _norm_kernel[(x.shape[0], triton.cdiv(num_heads, tile_heads))](
        output, x, residual, weight, eps,
        x.stride(0), x.stride(-2), 0 if residual is None else residual.stride(0), output.stride(0),
        SIZE=size,
        SIZE_PADDED=padded,
        HEADS=num_heads,
        TILE_HEADS=tile_heads,
        num_warps=4 if padded * tile_heads <= _TILE_ELEMENTS else min(16, padded // 1024),
    )  # fmt: skip
    return output


def rotary(x: Tensor, table: Tensor, positions: Tensor) -> Tensor:
    """Rotate pairs (i, i + D/2) of x [T, H, D] by the angles of positions [T] int64 -> contiguous [T, H, D].

    table [P, D]: of each position D/2 cosines, then D/2 sines.
    """
    output = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    num_tokens, num_heads, head_dim = x.shape
    if num_tokens == 0:
        return output
    _rotary_kernel[(num_tokens,)](
        output, x, table, positions, x.stride(0), x.stride(1), x.stride(2), table.stride(0),
        HEADS=num_heads,
        HEADS_PADDED=triton.next_power_of_2(num_heads),
        HALF=head_dim // 2,
        HALF_PADDED=triton.next_power_of_2(head_dim // 2),
        num_warps=4,
    )  # fmt: skip
    return output


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate_up [T, 2 I] -> silu(gate) * up, [T, I]."""
    num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    output = torch.empty((num_tokens, size), dtype=gate_up.dtype, device=gate_up.device)
    if num_tokens == 0:
        return output
    _silu_mul_kernel[(num_tokens, triton.cdiv(size, _GATE_TILE))](
        output, gate_up, gate_up.stride(0), gate_up.stride(1), SIZE=size, TILE=_GATE_TILE, num_warps=4
    )
    return output


@triton.jit
def _norm_kernel(
    output, x, residual, weight, eps, x_stride_token, x_stride_head, residual_stride_token, output_stride_token,
    SIZE: tl.constexpr, SIZE_PADDED: tl.constexpr, HEADS: tl.constexpr, TILE_HEADS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    heads = (tl.program_id(1) * TILE_HEADS + tl.arange(0, TILE_HEADS))[:, None]
    elements = tl.arange(0, SIZE_PADDED)[None, :]
    used = (heads < HEADS) & (elements < SIZE)
    own = x
    if HEADS > 1:
        own += heads * x_stride_head
    summed = tl.load(own + token * x_stride_token + elements, mask=used, other=0.0)
    if residual is not None:
        residual_at = residual + token * residual_stride_token + elements + heads * 0
        wide = tl.load(residual_at, mask=used, other=0.0).to(tl.float32) + summed.to(tl.float32)
        summed = wide.to(x.dtype.element_ty)
        tl.store(residual_at, summed, mask=used)
    wide = summed.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=1) / SIZE + eps)
    normed = (wide * scale[:, None]).to(x.dtype.element_ty).to(tl.float32)
    scaled = normed * tl.load(weight + heads * SIZE + elements, mask=used, other=0.0).to(tl.float32)
    output_at = output + token * output_stride_token + heads * SIZE + elements
    tl.store(output_at, scaled.to(output.dtype.element_ty), mask=used)


@triton.jit
def _rotary_kernel(
    output, x, table, positions, x_stride_token, x_stride_head, x_stride_dim, table_stride,
    HEADS: tl.constexpr, HEADS_PADDED: tl.constexpr, HALF: tl.constexpr, HALF_PADDED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    heads = tl.arange(0, HEADS_PADDED)[:, None]
    dims = tl.arange(0, HALF_PADDED)[None, :]
    used = (heads < HEADS) & (dims < HALF)
    angles = table + tl.load(positions + token) * table_stride + dims
    cosine = tl.load(angles, mask=dims < HALF, other=0.0).to(tl.float32)
    sine = tl.load(angles + HALF, mask=dims < HALF, other=0.0).to(tl.float32)
    own = x + token * x_stride_token + heads * x_stride_head
    first = tl.load(own + dims * x_stride_dim, mask=used, other=0.0).to(tl.float32)
    second = tl.load(own + (dims + HALF) * x_stride_dim, mask=used, other=0.0).to(tl.float32)
    output_at = output + (token * HEADS + heads) * (2 * HALF) + dims
    tl.store(output_at, (first * cosine - second * sine).to(output.dtype.element_ty), mask=used)
    tl.store(output_at + HALF, (second * cosine + first * sine).to(output.dtype.element_ty), mask=used)


@triton.jit
def _silu_mul_kernel(
    output, gate_up, stride_token, stride_element, SIZE: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    elements = tl.program_id(1) * TILE + tl.arange(0, TILE)
    used = elements < SIZE
    own = gate_up + token * stride_token
    gate = tl.load(own + elements * stride_element, mask=used, other=0.0).to(tl.float32)
    up = tl.load(own + (elements + SIZE) * stride_element, mask=used, other=0.0).to(tl.float32)
    gated = (gate / (1.0 + tl.exp(-gate))).to(gate_up.dtype.element_ty).to(tl.float32)
    tl.store(output + token * SIZE + elements, (gated * up).to(output.dtype.element_ty), mask=used)
