"""The compiled kernels with the signatures of their twins. Whatever they do not cover goes to `serving.kernels.cpu`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from serving.kernels import cpu

_MAX_ROWS = 512
"""Largest products it was measured on: docs/performance.md, "Compiled kernels"."""
_MAX_HEADS, _MAX_HEAD, _LANES = 128, 256, 8


class NativeKernels:
    """Operations on one loaded library. All take and give float32 on the CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def embed(self, token_ids: Tensor, weight: Tensor) -> Tensor:
        if weight.dtype is not torch.float32 or not weight.is_contiguous():
            return cpu.embed(token_ids, weight)
        token_ids = token_ids.contiguous()
        output = torch.empty((token_ids.shape[0], weight.shape[1]))
        self._library.embed_f32(
            token_ids.data_ptr(), weight.data_ptr(), output.data_ptr(), output.shape[0], output.shape[1]
        )
        return output

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, size = x.shape
        if rows > _MAX_ROWS or x.dtype is not torch.float32 or not weight.is_contiguous():
            return cpu.linear(x, weight, bias)
        x = x.contiguous()
        output = torch.empty((rows, weight.shape[0]))
        self._library.linear_f32(
            x.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(), output.data_ptr(),
            rows, weight.shape[0], size, torch.get_num_threads(),
        )  # fmt: skip
        return output

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if x.dtype is not torch.float32:
            return cpu.rms_norm(x, weight, eps)
        if x.dim() == 2:
            return self._norm(None, x.contiguous(), weight, eps)
        return self._norm(None, _with_adjoining_heads(x), weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        if x.dim() != 2 or x.dtype is not torch.float32 or not residual.is_contiguous():
            return cpu.add_rms_norm(x, residual, weight, eps)
        return self._norm(x.contiguous(), residual, weight, eps)

    def _norm(self, x: Tensor | None, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        output = torch.empty(residual.shape)
        parts = residual.shape[1] if residual.dim() == 3 else 1
        self._library.rms_norm_f32(
            None if x is None else x.data_ptr(), residual.data_ptr(), residual.stride(0), weight.data_ptr(),
            output.data_ptr(), residual.shape[0], parts, residual.shape[-1], eps, torch.get_num_threads(),
        )  # fmt: skip
        return output

    def rotary(self, x: Tensor, table: Tensor, positions: Tensor) -> Tensor:
        if x.dtype is not torch.float32 or not _heads_adjoin(x) or not table.is_contiguous():
            return cpu.rotary(x, table, positions)
        positions = positions.contiguous()
        output = torch.empty(x.shape)
        self._library.rotary_f32(
            x.data_ptr(), x.stride(0), table.data_ptr(), positions.data_ptr(), output.data_ptr(),
            x.shape[0], x.shape[1], x.shape[2], torch.get_num_threads(),
        )  # fmt: skip
        return output

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        if gate_up.dtype is not torch.float32:
            return cpu.silu_mul(gate_up)
        gate_up = gate_up.contiguous()
        rows, half = gate_up.shape[0], gate_up.shape[1] // 2
        output = torch.empty((rows, half))
        self._library.silu_mul_f32(gate_up.data_ptr(), output.data_ptr(), rows, half, torch.get_num_threads())
        return output

    def mask_tokens(self, logits: Tensor, bits: Tensor, rows: list[int]) -> None:
        if logits.dtype is not torch.float32 or logits.stride(1) != 1 or not bits.is_contiguous():
            cpu.mask_tokens(logits, bits, rows)
            return
        self._library.mask_tokens_f32(
            logits.data_ptr(), logits.stride(0), bits.data_ptr(), bits.shape[1], (ctypes.c_long * len(rows))(*rows),
            len(rows), logits.shape[1],
        )  # fmt: skip

    def covers_cache(self, query: Tensor, key_cache: Tensor) -> bool:
        """Can `write_kv` and `decode` work on this cache [blocks, block_size, Hkv, D] with these queries [T, Hq, D]?"""
        num_heads, head_dim = query.shape[1:]
        fits = num_heads <= _MAX_HEADS and head_dim <= _MAX_HEAD and head_dim % _LANES == 0
        return fits and query.dtype is torch.float32 and key_cache.dtype is torch.float32

    def write_kv(
        self, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
    ) -> None:
        """key, value [T, Hkv, D] into slots [T] int64 of the two sides of a cache."""
        key, value = _with_adjoining_heads(key), _with_adjoining_heads(value)
        self._library.write_kv_f32(
            key.data_ptr(), key.stride(0), value.data_ptr(), value.stride(0), key_cache.data_ptr(),
            value_cache.data_ptr(), slots.data_ptr(), key.shape[0], key.shape[1] * key.shape[2],
        )  # fmt: skip

    def decode(
        self, query: Tensor, key_cache: Tensor, value_cache: Tensor, *, tables: Tensor, seq_lens: Tensor,
        scale: float, window: int | None, output: Tensor, rows: Tensor | None = None, tokens: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Attention of single queries over a paged cache, into their places of output [T, Hq, D]: those of query
        [T, Hq, D], one for each row of tables [B, W] int32 and seq_lens [B] int32, or of them only `tokens` [R] int64,
        which belong to `rows` [R] int64."""
        query = _with_adjoining_heads(query)
        num_heads, head_dim = query.shape[1:]
        self._library.decode_f32(
            query.data_ptr(), query.stride(0), key_cache.data_ptr(), value_cache.data_ptr(), tables.data_ptr(),
            tables.stride(0), seq_lens.data_ptr(), None if rows is None else rows.data_ptr(),
            None if tokens is None else tokens.data_ptr(), (seq_lens if rows is None else rows).shape[0], num_heads,
            key_cache.shape[2], head_dim, key_cache.shape[1], scale, window or 0, output.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip


def _heads_adjoin(x: Tensor) -> bool:
    """[T, H, D] whose heads follow each other within a token."""
    return x.stride(2) == 1 and x.stride(1) == x.shape[2]


def _with_adjoining_heads(x: Tensor) -> Tensor:
    return x if _heads_adjoin(x) else x.contiguous()
