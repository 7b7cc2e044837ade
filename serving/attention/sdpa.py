"""Paged attention with torch's own scaled_dot_product_attention: the CPU backend, and the fallback anywhere.

Rows with one query (decode) are one batched call over gathered, padded contexts; longer rows are one call each.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from serving.attention.write import write_kv
from serving.contracts import AttentionMetadata, KVLayerCache

_MASKED = float("-inf")


class SdpaAttention:
    """Stateless: what a step derives once for all layers of a KV group is kept in `metadata.scratch`."""

    name = "sdpa"

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
            return _packed_attention(query, key, value, metadata, scale, window)
        write_kv(key, value, cache, metadata.slot_mapping)
        if metadata.max_query_len == 1:
            return _decode(query, cache, metadata, scale, window)
        output = torch.empty_like(query)
        start = 0
        single: list[int] = []
        for row, length in enumerate(metadata.query_lens_list):
            stop = start + length
            if length == 1:
                single.append(row)
            elif length == metadata.seq_lens_list[row]:
                output[start:stop] = _prompt(
                    query[start:stop], key[start:stop], value[start:stop], scale, window
                )
            else:
                output[start:stop] = _chunk(query[start:stop], row, cache, metadata, scale, window)
            start = stop
        if single:
            tokens, rows = _single_rows(single, metadata)
            output[tokens] = _decode(
                query[tokens], cache, metadata, scale, window, rows=single, row_index=rows
            )
        return output


def _single_rows(single: list[int], metadata: AttentionMetadata) -> tuple[Tensor, Tensor]:
    """Token and row indices of the rows with one query in a mixed batch."""
    scratch = metadata.scratch
    if "single_rows" not in scratch:
        rows = torch.tensor(single, device=metadata.query_start.device)
        scratch["single_rows"] = rows
        scratch["single_tokens"] = metadata.query_start[rows].long()
    return scratch["single_tokens"], scratch["single_rows"]


def _decode(
    query: Tensor,
    cache: KVLayerCache,
    metadata: AttentionMetadata,
    scale: float,
    window: int | None,
    rows: list[int] | None = None,
    row_index: Tensor | None = None,
) -> Tensor:
    """One query per row. The query heads that share a KV head take the place of the query length."""
    scratch = metadata.scratch
    if "decode_blocks" not in scratch:
        _prepare_decode(metadata, window, rows, row_index, query.dtype)
    blocks, mask = scratch["decode_blocks"], scratch["decode_mask"]
    num_rows, num_heads, head_dim = query.shape
    num_kv_heads = cache.key.shape[2]
    context = (num_rows, -1, num_kv_heads, head_dim)
    keys = torch.index_select(cache.key, 0, blocks).view(context).transpose(1, 2)
    values = torch.index_select(cache.value, 0, blocks).view(context).transpose(1, 2)
    grouped = query.reshape(num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
    output = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
    return output.reshape(num_rows, num_heads, head_dim)


def _prepare_decode(
    metadata: AttentionMetadata,
    window: int | None,
    rows: list[int] | None,
    row_index: Tensor | None,
    dtype: torch.dtype,
) -> None:
    """Blocks to gather and the additive mask over them, from the first block that any row's window reaches."""
    lens = metadata.seq_lens_list if rows is None else [metadata.seq_lens_list[row] for row in rows]
    tables, seq_lens = metadata.block_tables, metadata.seq_lens
    if row_index is not None:
        tables, seq_lens = tables[row_index], seq_lens[row_index]
    size = metadata.block_size
    first_block = 0 if window is None else max(0, min(lens) - window) // size
    last_block = -(-max(lens) // size)
    positions = torch.arange(first_block * size, last_block * size, device=tables.device)
    ends = seq_lens.long().unsqueeze(1)
    visible = positions < ends
    if window is not None:
        visible &= positions >= ends - window
    mask = torch.zeros(visible.shape, dtype=dtype, device=tables.device).masked_fill_(~visible, _MASKED)
    metadata.scratch["decode_blocks"] = tables[:, first_block:last_block].reshape(-1).long()
    metadata.scratch["decode_mask"] = mask[:, None, None, :]


def _prompt(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
    """A row whose whole context is in this step."""
    length = query.shape[0]
    if window is None or window >= length:
        return _dense(query, key, value, scale, None)
    return _dense(query, key, value, scale, causal_mask(0, length, length, window, query))


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
    start = first_block * size
    scratch, mask_name, blocks_name = metadata.scratch, f"chunk_mask_{row}", f"chunk_blocks_{row}"
    if mask_name not in scratch:
        scratch[blocks_name] = metadata.block_tables[row, first_block : -(-seq_len // size)].long()
        scratch[mask_name] = causal_mask(first_query - start, query.shape[0], seq_len - start, window, query)
    blocks = scratch[blocks_name]
    keys = torch.index_select(cache.key, 0, blocks).flatten(0, 1)[: seq_len - start]
    values = torch.index_select(cache.value, 0, blocks).flatten(0, 1)[: seq_len - start]
    return _dense(query, keys, values, scale, scratch[mask_name])


def causal_mask(
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


def _packed_attention(
    query: Tensor, key: Tensor, value: Tensor, metadata: AttentionMetadata, scale: float, window: int | None
) -> Tensor:
    """No cache: the step's own tokens are the context of each row."""
    output = torch.empty_like(query)
    start = 0
    for length in metadata.query_lens_list:
        stop = start + length
        output[start:stop] = _prompt(query[start:stop], key[start:stop], value[start:stop], scale, window)
        start = stop
    return output
