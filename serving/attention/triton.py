"""Paged attention with our Triton kernels: the CUDA backend. Needs compute capability 8.0 or newer."""

from __future__ import annotations

from torch import Tensor

from serving.contracts import AttentionMetadata, KVLayerCache
from serving.kernels.triton.kv_write import reshape_and_cache
from serving.kernels.triton.paged_attention import packed_attention, paged_attention

_ANY_QUERY_LEN = 1 << 30


class TritonAttention:
    """With `deterministic`, one tile shape serves all steps: a query's sums have the same order in each."""

    name = "triton"

    def __init__(self, *, deterministic: bool = False) -> None:
        self._deterministic = deterministic

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
        if cache is None:
            return packed_attention(
                query,
                key,
                value,
                query_start=metadata.query_start,
                max_query_len=metadata.max_query_len,
                scale=scale,
                window=window,
            )
        reshape_and_cache(key, value, cache.key, cache.value, metadata.slot_mapping)
        return paged_attention(
            query,
            cache.key,
            cache.value,
            block_tables=metadata.block_tables,
            seq_lens=metadata.seq_lens,
            query_start=metadata.query_start,
            max_query_len=_ANY_QUERY_LEN if self._deterministic else metadata.max_query_len,
            scale=scale,
            window=window,
        )
