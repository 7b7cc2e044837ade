"""Paged attention one query at a time, in float32: slow, and short enough to be believed."""

from __future__ import annotations

import torch
from torch import Tensor

FP8_MAX = 448.0
"""Largest finite float8_e4m3fn."""


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    *,
    block_tables: Tensor,
    seq_lens: Tensor,
    query_start: Tensor,
    max_query_len: int,
    scale: float,
    window: int | None = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Tensor:
    """query [T, Hq, D]; caches [num_blocks, block_size, Hkv, D] already hold the step's keys -> [T, Hq, D].

    The queries of a row are the last of its `seq_lens[row]` positions; `max_query_len` is not needed here. What the options
    mean is said at `serving.kernels.triton.paged_attention`, their twin.
    """
    block_size, num_kv_heads, head_dim = key_cache.shape[1:]
    groups = query.shape[1] // num_kv_heads
    starts, lens = query_start.tolist(), seq_lens.tolist()
    output = torch.empty_like(query)
    for row, seq_len in enumerate(lens):
        blocks = block_tables[row, : -(-seq_len // block_size)].long()
        keys, values = (
            _scaled(cache[blocks].reshape(-1, num_kv_heads, head_dim)[:seq_len], given)
            for cache, given in ((key_cache, key_scale), (value_cache, value_scale))
        )
        for token in range(starts[row], starts[row + 1]):
            position = seq_len - starts[row + 1] + token
            first = 0 if window is None else max(0, position - window + 1)
            for head in range(query.shape[1]):
                own_keys = keys[first : position + 1, head // groups]
                scores = own_keys @ query[token, head].float() * scale
                if softcap > 0.0:
                    scores = softcap * torch.tanh(scores / softcap)
                if alibi_slopes is not None:
                    distances = torch.arange(first, position + 1, device=query.device) - position
                    scores = scores + alibi_slopes[head] * distances
                if sinks is not None:
                    scores = torch.cat((scores, sinks[head].float()[None]))
                weights = torch.softmax(scores, dim=0)[: len(own_keys)]
                output[token, head] = (weights @ values[first : position + 1, head // groups]).to(query.dtype)
    return output


def write_kv(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> None:
    """key/value [T, Hkv, D] to the slots [T] int64 of the caches; negative slots are skipped.

    Caches of float8_e4m3fn receive key / key_scale, rounded to nearest even and limited to what the type can hold.
    """
    written = slot_mapping >= 0
    slots = slot_mapping[written]
    for source, cache, scale in ((key, key_cache, key_scale), (value, value_cache, value_scale)):
        stored = source[written].float() if scale is None else source[written].float() / scale.view(1, -1, 1)
        if cache.dtype == torch.float8_e4m3fn:
            # Indexed stores know no float8.
            stored = stored.clamp(-FP8_MAX, FP8_MAX).to(cache.dtype).view(torch.uint8)
            cache = cache.view(torch.uint8)
        cache.flatten(0, 1).index_copy_(0, slots, stored.to(cache.dtype))


def _scaled(stored: Tensor, scale: Tensor | None) -> Tensor:
    """[tokens, Hkv, D] in float32; scale [1] or [Hkv]."""
    wide = stored.float()
    return wide if scale is None else wide * scale.float().view(1, -1, 1)
