"""Attention by the compiled CPU kernels, over the cache where it lies; what they do not cover goes to the torch backend."""

from __future__ import annotations

import torch
from torch import Tensor

from serving.attention import sdpa
from serving.attention.tiled import TiledAttention
from serving.attention.write import write_kv
from serving.contracts import AttentionBackend, AttentionMetadata, KVLayerCache
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
            scratch["single_rows"] = torch.stack([rows, metadata.query_start[rows].long()])
        return self._kernels.decode(
            query, cache.key, cache.value, tables=metadata.block_tables, seq_lens=metadata.seq_lens,
            picks=scratch.get("single_rows"), scale=scale, window=window, output=output,
        )  # fmt: skip


class NativeAttention:
    """The torch backend, with rows of several new tokens computed by a kernel too: with `deterministic` all rows, as that
    kernel adds in one order whatever comes with a token, and the one for single tokens in another order. In
    `metadata.scratch`, `long_rows` [3, R] int64 are these rows, their first tokens, and how many tokens they have."""

    name = "native"

    def __init__(self, kernels: NativeKernels, *, deterministic: bool = False) -> None:
        self._kernels = kernels
        self._path = NativeCachePath(kernels)
        self._deterministic = deterministic
        self._torch: AttentionBackend = (
            TiledAttention() if deterministic else sdpa.SdpaAttention(self._path.write, self._path.decode)
        )

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
        only_single = metadata.max_query_len == 1
        if (
            cache is None
            or not self._kernels.covers_cache(query, cache.key)
            or (only_single and not self._deterministic)
        ):
            return self._torch.forward(
                query, key, value, cache=cache, metadata=metadata, scale=scale, window=window
            )
        self._path.write(key, value, cache, metadata.slot_mapping)
        picks = None if only_single else self._long_rows(metadata)
        output = self._kernels.prefill(
            query, cache.key, cache.value, tables=metadata.block_tables, seq_lens=metadata.seq_lens,
            picks=picks, scale=scale, window=window,
        )  # fmt: skip
        if picks is not None and picks.shape[1] < len(metadata.query_lens_list):
            self._path.decode(query, cache, metadata, scale, window, output)
        return output

    def _long_rows(self, metadata: AttentionMetadata) -> Tensor:
        scratch = metadata.scratch
        if "long_rows" not in scratch:
            single = set() if self._deterministic else set(sdpa.decode_rows(metadata))
            rows = torch.tensor([row for row in range(len(metadata.query_lens_list)) if row not in single])
            starts = metadata.query_start.long()
            scratch["long_rows"] = torch.stack([rows, starts[rows], starts[rows + 1] - starts[rows]])
        return scratch["long_rows"]
