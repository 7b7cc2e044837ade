"""Decode attention and KV writes by the compiled CPU kernels; everything else, and every case they do not cover, by the
torch backend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from serving.attention import sdpa
from serving.attention.write import write_kv
from serving.contracts import AttentionMetadata, KVLayerCache
from serving.kernels.cpu.native.operations import NativeKernels


class NativeCachePath:
    """The two operations that touch the cache, with the signatures of `write_kv` and `sdpa.decode_with_torch`."""

    def __init__(self, kernels: NativeKernels) -> None:
        self._kernels = kernels

    def write(self, key: Tensor, value: Tensor, cache: KVLayerCache, slot_mapping: Tensor) -> None:
        if self._kernels.covers_cache(key, cache.key):
            self._kernels.write_kv(key, value, cache.key, cache.value, slot_mapping)
        else:
            write_kv(key, value, cache, slot_mapping)

    def decode(
        self,
        query: Tensor,
        cache: KVLayerCache,
        metadata: AttentionMetadata,
        scale: float,
        window: int | None,
        output: Tensor | None = None,
    ) -> Tensor:
        if not self._kernels.covers_cache(query, cache.key):
            return sdpa.decode_with_torch(query, cache, metadata, scale, window, output)
        scratch = metadata.scratch
        if metadata.max_query_len > 1 and "single_rows" not in scratch:
            rows = torch.tensor(sdpa.decode_rows(metadata), dtype=torch.int64)
            scratch["single_rows"] = rows
            scratch["single_tokens"] = metadata.query_start[rows].long()
        return self._kernels.decode(
            query, cache.key, cache.value, tables=metadata.block_tables, seq_lens=metadata.seq_lens,
            rows=scratch.get("single_rows"), tokens=scratch.get("single_tokens"), scale=scale, window=window,
            output=output,
        )  # fmt: skip
