"""The KV write shared by the torch backends."""

from __future__ import annotations

from torch import Tensor

from serving.contracts import KVLayerCache


def write_kv(key: Tensor, value: Tensor, cache: KVLayerCache, slot_mapping: Tensor) -> None:
    """key, value [T, Hkv, D] into the slots [T] of `cache`."""
    cache.key.flatten(0, 1).index_copy_(0, slot_mapping, key)
    cache.value.flatten(0, 1).index_copy_(0, slot_mapping, value)
