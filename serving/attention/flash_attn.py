"""Paged attention with the flash-attn package (version 2), where it is installed and fits; see `fits`."""

from __future__ import annotations

from importlib import metadata as distributions

import torch
from torch import Tensor

from serving.attention.write import write_kv
from serving.contracts import AttentionMetadata, KVLayerCache

_BLOCK_MULTIPLE = 256
_MAX_HEAD_DIM = 256
_DTYPES = (torch.float16, torch.bfloat16)


def fits(*, dtype: torch.dtype, head_dim: int, block_size: int) -> str | None:
    """Why the package cannot serve this model, or None when it can."""
    if dtype not in _DTYPES:
        return f"flash-attn computes in float16 or bfloat16, the model in {str(dtype).removeprefix('torch.')}"
    if head_dim > _MAX_HEAD_DIM:
        return f"flash-attn takes heads of up to {_MAX_HEAD_DIM}, the model has {head_dim}"
    if block_size % _BLOCK_MULTIPLE:
        return f"flash-attn reads KV blocks of {_BLOCK_MULTIPLE} x n tokens, the cache has {block_size}"
    try:
        version = distributions.version("flash-attn")
    except distributions.PackageNotFoundError:
        return "flash-attn is not installed"
    if _release(version) < (2, 5):
        return f"flash-attn {version} knows no block tables; 2.5 or newer does"
    return None


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


class FlashAttention:
    """The package aligns the causal mask to the last key, as `AttentionBackend` asks."""

    name = "flash_attn"

    def __init__(self) -> None:
        from flash_attn import flash_attn_varlen_func, flash_attn_with_kvcache

        self._attend = flash_attn_varlen_func
        self._decode = flash_attn_with_kvcache

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
        block_table: Tensor | None = None
        key_start, max_key_len = metadata.query_start, metadata.max_query_len
        if cache is not None:
            write_kv(key, value, cache, metadata.slot_mapping)
            if metadata.max_query_len == 1:
                return self._one_query_per_row(query, cache, metadata, scale, window)
            key, value, block_table = cache.key, cache.value, metadata.block_tables
            key_start, max_key_len = _key_start(metadata), metadata.max_seq_len
        output: Tensor = self._attend(
            query,
            key,
            value,
            cu_seqlens_q=metadata.query_start,
            cu_seqlens_k=key_start,
            max_seqlen_q=metadata.max_query_len,
            max_seqlen_k=max_key_len,
            softmax_scale=scale,
            causal=True,
            window_size=_sides(window),
            block_table=block_table,
        )
        return output

    def _one_query_per_row(
        self,
        query: Tensor,
        cache: KVLayerCache,
        metadata: AttentionMetadata,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Reads the lengths on the device, so that a captured step stays right while contexts grow."""
        output: Tensor = self._decode(
            query.unsqueeze(1),
            cache.key,
            cache.value,
            cache_seqlens=metadata.seq_lens,
            block_table=metadata.block_tables,
            softmax_scale=scale,
            causal=True,
            window_size=_sides(window),
        )
        return output.squeeze(1)


def _sides(window: int | None) -> tuple[int, int]:
    return (-1, -1) if window is None else (window - 1, 0)


def _key_start(metadata: AttentionMetadata) -> Tensor:
    """[B+1] int32: running total of the context lengths."""
    start = metadata.scratch.get("key_start")
    if start is None:
        start = torch.nn.functional.pad(metadata.seq_lens.cumsum(0, dtype=torch.int32), (1, 0))
        metadata.scratch["key_start"] = start
    return start
