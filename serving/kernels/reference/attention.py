"""Paged attention one query at a time, in float32: slow, and short enough to be believed."""

from __future__ import annotations

import torch
from torch import Tensor


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    *,
    query_lens: list[int],
    seq_lens: list[int],
    block_tables: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    """query [T, Hq, D]; caches [num_blocks, block_size, Hkv, D] already hold the step's keys -> [T, Hq, D].

    The queries of a row are the last `query_lens[row]` of its `seq_lens[row]` positions.
    """
    block_size, num_kv_heads, head_dim = key_cache.shape[1:]
    groups = query.shape[1] // num_kv_heads
    output = torch.empty_like(query)
    token = 0
    for row, (query_len, seq_len) in enumerate(zip(query_lens, seq_lens, strict=True)):
        blocks = block_tables[row, : -(-seq_len // block_size)].long()
        keys = key_cache[blocks].reshape(-1, num_kv_heads, head_dim)[:seq_len].float()
        values = value_cache[blocks].reshape(-1, num_kv_heads, head_dim)[:seq_len].float()
        for position in range(seq_len - query_len, seq_len):
            first = 0 if window is None else max(0, position - window + 1)
            for head in range(query.shape[1]):
                head_keys = keys[first : position + 1, head // groups]
                weights = torch.softmax(head_keys @ query[token, head].float() * scale, dim=0)
                output[token, head] = (weights @ values[first : position + 1, head // groups]).to(query.dtype)
            token += 1
    return output
