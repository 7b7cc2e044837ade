"""Paged attention whose result for a query has the same bits in every batch, chunking and context padding.

Queries stand in tiles of 16 and keys in tiles of 64, both at fixed absolute positions, and every product has the same
shape. Tiles are folded in order with an online softmax (Milakov and Gimelshein, 2018); a masked key adds exact zeros.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from serving.attention.sdpa import SdpaAttention
from serving.attention.write import write_kv
from serving.contracts import AttentionMetadata, KVLayerCache

QUERY_TILE = 16
KEY_TILE = 64
_LOWEST = -1e30


class TiledAttention:
    """Slow on purpose: a loop over rows and tiles, so that no shape depends on the batch."""

    name = "tiled"

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
            return SdpaAttention().forward(
                query, key, value, cache=None, metadata=metadata, scale=scale, window=window
            )
        write_kv(key, value, cache, metadata.slot_mapping)
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        start = 0
        for row, length in enumerate(metadata.query_lens_list):
            seq_len = metadata.seq_lens_list[row]
            keys = _tiles(cache.key, metadata, row, seq_len)
            values = _tiles(cache.value, metadata, row, seq_len)
            first_query = seq_len - length
            position = first_query
            while position < seq_len:
                stop = min(seq_len, position - position % QUERY_TILE + QUERY_TILE)
                here = slice(start + position - first_query, start + stop - first_query)
                output[here] = _query_tile(query[here], position, keys, values, scale, window)
                position = stop
            start += length
        return output


def _tiles(cache: Tensor, metadata: AttentionMetadata, row: int, seq_len: int) -> Tensor:
    """The row's context as contiguous [tiles, Hkv, KEY_TILE, D] in float32; what lies past its end is zero."""
    size = metadata.block_size
    blocks = metadata.block_tables[row, : -(-seq_len // size)].long()
    context = cache.index_select(0, blocks).flatten(0, 1)[:seq_len].float()
    context = F.pad(context, (0, 0, 0, 0, 0, -seq_len % KEY_TILE))
    return context.view(-1, KEY_TILE, *context.shape[1:]).transpose(1, 2).contiguous()


def _query_tile(
    query: Tensor, position: int, keys: Tensor, values: Tensor, scale: float, window: int | None
) -> Tensor:
    """query [n, Hq, D] at `position`..., inside one tile -> [n, Hq, D]."""
    count, num_heads, head_dim = query.shape
    num_kv_heads = keys.shape[1]
    offset = position % QUERY_TILE
    first_position = position - offset
    tile = torch.zeros(QUERY_TILE, num_heads, head_dim, device=query.device)
    tile[offset : offset + count] = query
    tile = tile.view(QUERY_TILE, num_kv_heads, -1, head_dim).permute(1, 2, 0, 3)
    tile = tile.reshape(num_kv_heads, -1, head_dim)
    highest = torch.full((*tile.shape[:2], 1), _LOWEST, device=query.device)
    total = torch.zeros_like(highest)
    output = torch.zeros_like(tile)
    first_key_tile = 0 if window is None else max(0, first_position - window + 1) // KEY_TILE
    for index in range(first_key_tile, (position + count - 1) // KEY_TILE + 1):
        hidden = _hidden_keys(first_position, index * KEY_TILE, window, query.device)
        scores = (
            torch.bmm(tile, keys[index].transpose(1, 2)).mul_(scale).view(num_kv_heads, -1, *hidden.shape)
        )
        scores = scores.masked_fill_(hidden, float("-inf")).view(*tile.shape[:2], KEY_TILE)
        new_highest = torch.maximum(highest, scores.amax(-1, keepdim=True))
        shrink = torch.exp(highest - new_highest)
        weights = torch.exp(scores - new_highest)
        total = total * shrink + weights.sum(-1, keepdim=True)
        output = output * shrink + torch.bmm(weights, values[index])
        highest = new_highest
    output = (output / total).view(num_kv_heads, -1, QUERY_TILE, head_dim).permute(2, 0, 1, 3)
    return output.reshape(QUERY_TILE, num_heads, head_dim)[offset : offset + count].to(query.dtype)


def _hidden_keys(first_query: int, first_key: int, window: int | None, device: torch.device) -> Tensor:
    """[QUERY_TILE, KEY_TILE], True where the query may not see the key."""
    queries = torch.arange(first_query, first_query + QUERY_TILE, device=device).unsqueeze(1)
    keys = torch.arange(first_key, first_key + KEY_TILE, device=device)
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
    return hidden
