"""Paged attention with our Triton kernels: the CUDA backend. Needs compute capability 8.0 or newer."""

from __future__ import annotations

import torch
from torch import Tensor

from serving.contracts import AttentionMetadata, KVLayerCache
from serving.kernels.triton.kv_write import reshape_and_cache, rotate_and_cache
from serving.kernels.triton.paged_attention import Launch, new_counters, packed_attention, paged_attention


class TritonAttention:
    """With `deterministic`, one tile shape serves all steps: a query's sums have the same order in each."""

    name = "triton"

    def __init__(self, *, deterministic: bool = False) -> None:
        self._deterministic = deterministic
        self._counters: dict[torch.device, Tensor] = {}

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
        # Also without a cache: that is the memory warm-up, which comes before anything is captured.
        self._launch(metadata, query.device)
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
        reshape_and_cache(
            key, value, cache.key, cache.value, metadata.slot_mapping, cache.key_scale, cache.value_scale
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
        return paged_attention(
            query,
            cache.key,
            cache.value,
            block_tables=metadata.block_tables,
            seq_lens=metadata.seq_lens,
            query_start=metadata.query_start,
            max_query_len=metadata.max_query_len,
            scale=scale,
            window=window,
            key_scale=cache.key_scale,
            value_scale=cache.value_scale,
            launch=self._launch(metadata, query.device),
        )

    def _launch(self, metadata: AttentionMetadata, device: torch.device) -> Launch:
        if device not in self._counters:
            self._counters[device] = new_counters(device)
        return Launch(
            counters=self._counters[device],
            has_short_rows=min(metadata.query_lens_list) <= 1,
            deterministic=self._deterministic,
        )


class RotatingTritonAttention(TritonAttention):
    """With the rotation in one pass with the KV write."""

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
        query = rotate_and_cache(
            query_key, value, rotary_table, positions, cache.key, cache.value, metadata.slot_mapping, cache.key_scale,
            cache.value_scale,
        )  # fmt: skip
        return self._attend(query, cache, metadata, scale, window)
