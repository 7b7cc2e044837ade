"""Paged attention with FlashAttention-3 (the folder `hopper` of flash-attn), where it is installed and fits."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from serving.attention.write import write_kv
from serving.contracts import AttentionMetadata, KVLayerCache

_HOPPER = 9
_MAX_HEAD_DIM = 256
_DTYPES = (torch.float16, torch.bfloat16)
_MODULE = "flash_attn_interface"

Rotate = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def fits(*, dtype: torch.dtype, head_dim: int, capability: tuple[int, int]) -> str | None:
    """Why the package cannot serve this model on a GPU of this compute capability, or None when it can."""
    if capability[0] != _HOPPER:
        return f"FlashAttention-3 is for compute capability 9, the GPU has {capability[0]}.{capability[1]}"
    if dtype not in _DTYPES:
        return f"FlashAttention-3 computes in float16 or bfloat16, the model in {str(dtype).removeprefix('torch.')}"
    if head_dim > _MAX_HEAD_DIM:
        return f"FlashAttention-3 takes heads of up to {_MAX_HEAD_DIM}, the model has {head_dim}"
    if find_spec(_MODULE) is None:
        return "FlashAttention-3 is not installed"
    return None


class FlashAttention3:
    """One call for prompts, chunks and decode; blocks of any size. The number of splits comes from the shapes alone, so that
    a captured call stays right while contexts grow. The causal mask is aligned to the last key."""

    name = "flash_attn_3"

    def __init__(self, rotate: Rotate | None = None) -> None:
        """`rotate` has the signature of `rotate_and_cache` of our Triton kernels, which it is by default."""
        from flash_attn_interface import (  # type: ignore[import-not-found]
            flash_attn_varlen_func,
            flash_attn_with_kvcache,
        )

        self._attend_packed = flash_attn_varlen_func
        self._attend_cached = flash_attn_with_kvcache
        self._rotate = rotate or _triton_rotate()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        cache: KVLayerCache | None,
        metadata: AttentionMetadata,
        scale: float,
        window: int | None,
    ) -> Tensor:
        if cache is not None:
            write_kv(key, value, cache, metadata.slot_mapping)
            return self._attend(query, cache, metadata, scale, window)
        packed: Tensor = self._attend_packed(
            query,
            key,
            value,
            cu_seqlens_q=metadata.query_start,
            cu_seqlens_k=metadata.query_start,
            max_seqlen_q=metadata.max_query_len,
            max_seqlen_k=metadata.max_query_len,
            softmax_scale=scale,
            causal=True,
            window_size=_sides(window),
        )
        return packed

    def forward_rotating(
        self,
        query_key: Tensor,
        value: Tensor,
        *,
        rotary_table: Tensor,
        positions: Tensor,
        cache: KVLayerCache,
        metadata: AttentionMetadata,
        scale: float,
        window: int | None,
    ) -> Tensor:
        query = self._rotate(
            query_key, value, rotary_table, positions, cache.key, cache.value, metadata.slot_mapping
        )
        return self._attend(query, cache, metadata, scale, window)

    def _attend(
        self,
        query: Tensor,
        cache: KVLayerCache,
        metadata: AttentionMetadata,
        scale: float,
        window: int | None,
    ) -> Tensor:
        attended: Tensor = self._attend_cached(
            query,
            cache.key,
            cache.value,
            cache_seqlens=metadata.seq_lens,
            page_table=metadata.block_tables,
            cu_seqlens_q=metadata.query_start,
            max_seqlen_q=metadata.max_query_len,
            softmax_scale=scale,
            causal=True,
            window_size=_sides(window),
        )
        return attended


def _triton_rotate() -> Rotate:
    from serving.kernels.triton.kv_write import rotate_and_cache

    return rotate_and_cache


def _sides(window: int | None) -> tuple[int, int]:
    return (-1, -1) if window is None else (window - 1, 0)
