"""Paged attention with torch's own scaled_dot_product_attention: the CPU backend, and the fallback anywhere.

Rows with one query (decode) are batched over gathered, padded contexts; longer rows are one call each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from serving.attention.write import write_kv
from serving.contracts import AttentionMetadata, KVLayerCache

Write = Callable[[Tensor, Tensor, KVLayerCache, Tensor], None]
Decode = Callable[[Tensor, KVLayerCache, AttentionMetadata, float, int | None, Tensor | None], Tensor]

_MASKED = float("-inf")
_PADDING_LIMIT = 1.5
"""Gathered blocks over needed blocks above which decode rows of different lengths are computed in separate groups."""


class SdpaAttention:
    """Stateless: what a step derives once for all layers of a KV group is kept in `metadata.scratch`.

    Decode rows are in groups `i` of similar length: `tokens.i` (absent when the group is the whole batch), `blocks.i`
    [rows * blocks] and `mask.i`. Longer rows have `blocks.row.b` and `mask.row.b` where they need them. A batch of one
    decode row has `blocks`, and `first_block` where these are consecutive and need not be gathered.
    """

    name = "sdpa"

    def __init__(self, write: Write = write_kv, decode: Decode | None = None) -> None:
        """`write` and `decode` may be faster twins of `write_kv` and of `decode_with_torch`."""
        self._write = write
        self._decode = decode or decode_with_torch

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
            self._write(key, value, cache, metadata.slot_mapping)
            if metadata.max_query_len == 1:
                return self._decode(query, cache, metadata, scale, window, None)
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        start = 0
        for row, length in enumerate(metadata.query_lens_list):
            here = slice(start, start + length)
            start += length
            if cache is None or length == metadata.seq_lens_list[row]:
                mask = _prompt_mask(row, length, metadata, window, query)
                output[here] = _dense(query[here], key[here], value[here], scale, mask)
            elif length > 1:
                output[here] = _chunk(query[here], row, cache, metadata, scale, window)
        if cache is not None:
            self._decode(query, cache, metadata, scale, window, output)
        return output


def decode_rows(metadata: AttentionMetadata) -> list[int]:
    """Rows with one query and a context in the cache; beside longer rows, a prompt of one token counts as a prompt."""
    return [
        row
        for row, length in enumerate(metadata.query_lens_list)
        if length == 1 and (metadata.seq_lens_list[row] > 1 or metadata.max_query_len == 1)
    ]


def decode_with_torch(
    query: Tensor,
    cache: KVLayerCache,
    metadata: AttentionMetadata,
    scale: float,
    window: int | None,
    output: Tensor | None = None,
) -> Tensor:
    """One query per row, into its place in `output`. Query heads that share a KV head stand in the query dimension."""
    if metadata.query_lens_list == [1]:
        return _decode_one(query, cache, metadata, scale, window)
    scratch = metadata.scratch
    if "groups" not in scratch:
        _plan_decode(metadata, window, query)
    num_heads, head_dim = query.shape[1:]
    num_kv_heads = cache.key.shape[2]
    for group in range(len(scratch["groups"])):
        tokens = scratch.get(f"tokens.{group}")
        mask, blocks = scratch[f"mask.{group}"], scratch[f"blocks.{group}"]
        rows = mask.shape[0]
        context = (rows, -1, num_kv_heads, head_dim)
        keys = cache.key.index_select(0, blocks).view(context)
        values = cache.value.index_select(0, blocks).view(context)
        own = query if tokens is None else query.index_select(0, tokens)
        attended = F.scaled_dot_product_attention(
            own.reshape(rows, num_kv_heads, num_heads // num_kv_heads, head_dim),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=mask,
            scale=scale,
        ).reshape(rows, num_heads, head_dim)
        if tokens is None:
            return attended
        if output is None:
            output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        output.index_copy_(0, tokens, attended)
    return query if output is None else output


def _decode_one(
    query: Tensor, cache: KVLayerCache, metadata: AttentionMetadata, scale: float, window: int | None
) -> Tensor:
    """A batch of one row with one query: its context has an exact length, so that nothing is masked."""
    size, seq_len = metadata.block_size, metadata.seq_lens_list[0]
    first_key = 0 if window is None else max(0, seq_len - window)
    first_block, last_block = first_key // size, -(-seq_len // size)
    scratch = metadata.scratch
    if "blocks" not in scratch:
        blocks = metadata.block_tables[0, first_block:last_block].long()
        scratch["blocks"] = blocks
        if blocks.device.type == "cpu" and bool((blocks.diff() == 1).all()):
            scratch["first_block"] = blocks[0]
    visible = slice(first_key - first_block * size, seq_len - first_block * size)
    if "first_block" in scratch:
        start = int(scratch["first_block"])
        held = slice(start, start + last_block - first_block)
        keys, values = cache.key[held], cache.value[held]
    else:
        keys, values = (side.index_select(0, scratch["blocks"]) for side in (cache.key, cache.value))
    keys, values = keys.flatten(0, 1)[visible], values.flatten(0, 1)[visible]
    num_kv_heads = keys.shape[1]
    attended = F.scaled_dot_product_attention(
        query.reshape(1, num_kv_heads, -1, query.shape[2]),
        keys.transpose(0, 1).unsqueeze(0),
        values.transpose(0, 1).unsqueeze(0),
        scale=scale,
    )
    return attended.view(query.shape)


def _plan_decode(metadata: AttentionMetadata, window: int | None, query: Tensor) -> None:
    """Group the rows that have one query and a context in the cache."""
    size = metadata.block_size
    spans: list[tuple[int, int]] = []
    rows = decode_rows(metadata)
    for row in rows:
        seq_len = metadata.seq_lens_list[row]
        first_block = 0 if window is None else max(0, seq_len - window) // size
        spans.append((first_block, -(-seq_len // size)))
    groups = _group_by_length([stop - first for first, stop in spans])
    device = metadata.block_tables.device
    for index, members in enumerate(groups):
        chosen = torch.tensor([rows[member] for member in members], device=device)
        if len(members) < len(metadata.query_lens_list):
            metadata.scratch[f"tokens.{index}"] = metadata.query_start[chosen].long()
        starts = torch.tensor([spans[member][0] for member in members], device=device).unsqueeze(1)
        num_blocks = max(spans[member][1] - spans[member][0] for member in members)
        columns = starts + torch.arange(num_blocks, device=device)
        tables = metadata.block_tables[chosen].long()
        columns_held = columns.clamp(max=tables.shape[1] - 1)
        positions = (columns.unsqueeze(2) * size + torch.arange(size, device=device)).flatten(1)
        ends = metadata.seq_lens[chosen].long().unsqueeze(1)
        hidden = positions >= ends
        if window is not None:
            hidden |= positions < ends - window
        mask = torch.zeros(hidden.shape, dtype=query.dtype, device=device).masked_fill_(hidden, _MASKED)
        metadata.scratch[f"blocks.{index}"] = tables.gather(1, columns_held).flatten()
        metadata.scratch[f"mask.{index}"] = mask[:, None, None, :]
    metadata.scratch["groups"] = torch.arange(len(groups))


def _group_by_length(num_blocks: list[int]) -> list[list[int]]:
    """Indices together unless padding all to the longest gathers far too much; then by powers of two."""
    if not num_blocks:
        return []
    if max(num_blocks) * len(num_blocks) <= _PADDING_LIMIT * sum(num_blocks):
        return [list(range(len(num_blocks)))]
    groups: dict[int, list[int]] = {}
    for index, count in enumerate(num_blocks):
        groups.setdefault(max(count - 1, 7).bit_length(), []).append(index)
    return [groups[size] for size in sorted(groups)]


def _prompt_mask(
    row: int, length: int, metadata: AttentionMetadata, window: int | None, query: Tensor
) -> Tensor | None:
    """A row whose whole context is in this step needs a mask only where the window is shorter than the row."""
    if window is None or window >= length:
        return None
    name = f"mask.row.{row}"
    if name not in metadata.scratch:
        metadata.scratch[name] = _causal_mask(0, length, length, window, query)
    return metadata.scratch[name]


def _chunk(
    query: Tensor,
    row: int,
    cache: KVLayerCache,
    metadata: AttentionMetadata,
    scale: float,
    window: int | None,
) -> Tensor:
    """A row with several queries after a context that is in the cache."""
    size = metadata.block_size
    seq_len = metadata.seq_lens_list[row]
    first_query = seq_len - query.shape[0]
    first_block = 0 if window is None else max(0, first_query - window + 1) // size
    first_key = first_block * size
    scratch, mask, blocks = metadata.scratch, f"mask.row.{row}", f"blocks.row.{row}"
    if mask not in scratch:
        scratch[blocks] = metadata.block_tables[row, first_block : -(-seq_len // size)].long()
        scratch[mask] = _causal_mask(
            first_query - first_key, query.shape[0], seq_len - first_key, window, query
        )
    keys = cache.key.index_select(0, scratch[blocks]).flatten(0, 1)[: seq_len - first_key]
    values = cache.value.index_select(0, scratch[blocks]).flatten(0, 1)[: seq_len - first_key]
    return _dense(query, keys, values, scale, scratch[mask])


def _causal_mask(
    first_query: int, num_queries: int, num_keys: int, window: int | None, like: Tensor
) -> Tensor:
    """Additive [num_queries, num_keys]; query i stands at key position first_query + i."""
    queries = torch.arange(first_query, first_query + num_queries, device=like.device).unsqueeze(1)
    keys = torch.arange(num_keys, device=like.device)
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, _MASKED)


def _dense(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """query [Tq, Hq, D], key/value [Tk, Hkv, D]; without a mask: causal over equal lengths."""
    output = F.scaled_dot_product_attention(
        query.transpose(0, 1).unsqueeze(0),
        key.transpose(0, 1).unsqueeze(0),
        value.transpose(0, 1).unsqueeze(0),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.squeeze(0).transpose(0, 1)
