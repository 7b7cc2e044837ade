"""The compiled kernels with the signatures of their twins, to which goes what they do not cover."""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from serving.kernels import cpu
from serving.kernels.cpu.native import program

PANEL = 16
"""Outputs of a packed weight that lie together: products.c."""
_MAX_HEADS, _MAX_HEAD, _LANES = 128, 256, 8
_SEGMENT, _MAX_SEGMENTS = 256, 64
"""Of a context in decode attention: attention.c."""


class Twins(Protocol):
    """What serves other types and layouts."""

    def embed(self, token_ids: Tensor, weight: Tensor, /) -> Tensor: ...
    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, /) -> Tensor: ...
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, /) -> Tensor: ...
    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, /) -> Tensor: ...
    def rotary(self, x: Tensor, table: Tensor, positions: Tensor, /) -> Tensor: ...
    def silu_mul(self, gate_up: Tensor, /) -> Tensor: ...
    def mask_tokens(self, logits: Tensor, bits: Tensor, rows: list[int], /) -> None: ...


class NativeKernels:
    """Operations on one loaded library. All take and give float32 on the CPU, and the bits of a row do not depend on the
    others: a sum has one order. That of attention is one in `decode` and another in `prefill`."""

    def __init__(self, library: ctypes.CDLL, twins: Twins = cpu) -> None:
        self._library = library
        self._twins = twins
        self._run = partial(program.run, library)

    def pack(self, weight: Tensor) -> Tensor:
        """A weight [N, K] as panels [N / 16, K, 16], in its own memory: `weight` is void afterwards. Weights that make no
        whole panels, or are not float32, stay as they are."""
        rows, size = weight.shape
        if weight.dtype is not torch.float32 or rows % PANEL or not weight.is_contiguous():
            return weight
        scratch = torch.empty(torch.get_num_threads(), PANEL, size)
        self._run("pack_panels", [weight, scratch], [rows, size], work=weight.numel())
        return weight.view(rows // PANEL, size, PANEL)

    def embed(self, token_ids: Tensor, weight: Tensor) -> Tensor:
        if weight.dtype is not torch.float32 or not weight.is_contiguous():
            return self._twins.embed(token_ids, weight)
        count, size = token_ids.shape[0], weight.shape[1]
        output = program.empty((count, size))
        sizes = [count, size, weight.dim() == 3]
        self._run("embed", [token_ids.contiguous(), weight, output], sizes, work=output.numel())
        return output

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`weight` is [N, K], or what `pack` made of it."""
        if weight.dtype is not torch.float32 or x.dtype is not torch.float32 or not weight.is_contiguous():
            return self._twins.linear(x, weight, bias)
        rows, size = x.shape
        outputs = weight.numel() // size
        output = program.empty((rows, outputs))
        kind = "linear_panels" if weight.dim() == 3 else "linear_rows"
        tensors = [x.contiguous(), weight, bias, output]
        self._run(kind, tensors, [rows, outputs, size], work=rows * weight.numel())
        return output

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if x.dtype is not torch.float32:
            return self._twins.rms_norm(x, weight, eps)
        return self._norm(None, x.contiguous() if x.dim() == 2 else _with_adjoining_heads(x), weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        if x.dim() != 2 or x.dtype is not torch.float32 or not residual.is_contiguous():
            return self._twins.add_rms_norm(x, residual, weight, eps)
        return self._norm(x.contiguous(), residual, weight, eps)

    def _norm(self, x: Tensor | None, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        output = program.empty(residual.shape)
        parts = residual.shape[1] if residual.dim() == 3 else 1
        sizes = [residual.shape[0], parts, residual.shape[-1], residual.stride(0)]
        self._run("rms_norm", [x, residual, weight, output], sizes, work=output.numel(), factor=eps)
        return output

    def rotary(self, x: Tensor, table: Tensor, positions: Tensor) -> Tensor:
        if x.dtype is not torch.float32 or not _heads_adjoin(x) or not table.is_contiguous():
            return self._twins.rotary(x, table, positions)
        output = program.empty(x.shape)
        tensors = [x, table, positions.contiguous(), output]
        self._run("rotary", tensors, [*x.shape, x.stride(0)], work=output.numel())
        return output

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        if gate_up.dtype is not torch.float32:
            return self._twins.silu_mul(gate_up)
        rows, half = gate_up.shape[0], gate_up.shape[1] // 2
        output = program.empty((rows, half))
        self._run("silu_mul", [gate_up.contiguous(), output], [rows, half], work=2 * output.numel())
        return output

    def mask_tokens(self, logits: Tensor, bits: Tensor, rows: list[int]) -> None:
        if logits.dtype is not torch.float32 or logits.stride(1) != 1 or not bits.is_contiguous():
            self._twins.mask_tokens(logits, bits, rows)
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
        sizes = [key.shape[0], key.shape[1] * key.shape[2], key.stride(0), value.stride(0)]
        tensors = [key, value, key_cache, value_cache, slots]
        self._run("write_kv", tensors, sizes, work=2 * key.numel())

    def decode(
        self, query: Tensor, key_cache: Tensor, value_cache: Tensor, *, tables: Tensor, seq_lens: Tensor,
        scale: float, window: int | None, output: Tensor | None, picks: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Attention of single queries over a paged cache: those of query [T, Hq, D], one for each row of tables [B, W]
        int32 and seq_lens [B] int32, or of them only those that `picks` [2, R] int64 names: rows, and their tokens. The
        result [T, Hq, D] is `output` if given."""
        query = _with_adjoining_heads(query)
        if output is None:
            output = program.empty(query.shape)
        count = seq_lens.shape[0] if picks is None else picks.shape[1]
        num_heads = query.shape[1]
        block_size, num_kv_heads, head_dim = key_cache.shape[1:]
        segments = min(-(-tables.shape[1] * block_size // _SEGMENT), _MAX_SEGMENTS)
        partial = program.empty((count, segments, num_heads, head_dim + _LANES)) if segments > 1 else None
        sizes = [
            count, num_heads, num_kv_heads, head_dim, block_size, tables.stride(0), query.stride(0), window or 0, segments
        ]  # fmt: skip
        tensors = [query, key_cache, value_cache, tables, seq_lens, picks, partial, output]
        self._run("decode_attention", tensors, sizes, work=1 << 30, factor=scale)
        if partial is not None:
            self._run("merge_segments", tensors, sizes, work=partial.numel(), factor=scale)
        return output

    def prefill(
        self, query: Tensor, key_cache: Tensor, value_cache: Tensor, *, tables: Tensor, seq_lens: Tensor,
        picks: Tensor | None, scale: float, window: int | None,
    ) -> Tensor:  # fmt: skip
        """Causal attention of rows with several new tokens, the last ones of their contexts, over a paged cache that holds
        them already. `picks` [3, R] int64: rows of tables [B, W] int32 and seq_lens [B] int32, where their tokens begin in
        query [T, Hq, D], and how many they are; None: all rows have one. The result is [T, Hq, D]; other tokens of it are
        not written."""
        query = _with_adjoining_heads(query)
        output = program.empty(query.shape)
        block_size, num_kv_heads, head_dim = key_cache.shape[1:]
        count = seq_lens.shape[0] if picks is None else picks.shape[1]
        sizes = [
            count, query.shape[1], num_kv_heads, head_dim, block_size, tables.stride(0), query.stride(0), window or 0
        ]  # fmt: skip
        self._run(
            "prefill_attention",
            [query, key_cache, value_cache, tables, seq_lens, picks, None, output],
            sizes,
            work=1 << 30,
            factor=scale,
        )
        return output


def _heads_adjoin(x: Tensor) -> bool:
    """[T, H, D] whose heads follow each other within a token."""
    return x.stride(2) == 1 and x.stride(1) == x.shape[2]


def _with_adjoining_heads(x: Tensor) -> Tensor:
    return x if _heads_adjoin(x) else x.contiguous()
