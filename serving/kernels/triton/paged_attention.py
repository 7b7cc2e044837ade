# Kernel bodies are Triton's language, not Python's.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
"""Paged causal attention in Triton: one kernel for prefill chunks and decode in the same launch.

Owns tile shapes and memory access; knows nothing of layers, requests or how blocks are handed out. Nothing
here reads device memory from the host, so a launch can be captured in a graph. The calling thread's current
CUDA device must be the one that holds the tensors.

Work is cut into query tiles. A tile holds `tile_queries` consecutive queries of one row times the query heads
that share a KV head (up to 32), so that a key is loaded once for all of them and even a decode step fills a
tile of the matrix units. Row b starts at tile `query_start[b] // tile_queries + b`, which leaves every row at
least the tiles it needs and lets a program find its row by bisection.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

SUPPORTED_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MIN_HEAD_DIM = 16
MAX_HEAD_DIM = 256
_MIN_TILE_ROWS = 16
_MAX_TILE_HEADS = 32
_LOG2_E = 1.4426950408889634


@dataclass(slots=True, frozen=True)
class TileShape:
    """Launch shape: rows = queries x padded group of one tile, keys = KV positions loaded at a time."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


def tile_shape(*, head_dim: int, group_size: int, itemsize: int, max_query_len: int) -> TileShape:
    """Tiles that stay under 99 KiB of shared memory, which every GPU since compute capability 8.0 has."""
    wide = triton.next_power_of_2(head_dim) > 128
    group = heads_per_tile(group_size)
    if max_query_len * group <= _MIN_TILE_ROWS:
        rows = max(_MIN_TILE_ROWS, group)
        keys = 32 if itemsize == 4 or wide else 64
        return TileShape(rows=rows, keys=keys, num_warps=4, num_stages=1 if itemsize == 4 and wide else 2)
    rows = max(group, 32 if itemsize == 4 else 64)
    keys = (16 if wide else 32) if itemsize == 4 else (32 if wide else 64)
    return TileShape(rows=rows, keys=keys, num_warps=4, num_stages=1 if itemsize == 4 else 2)


def heads_per_tile(group_size: int) -> int:
    """Query heads of one KV head that share a tile, a power of two; larger groups take several tiles."""
    return int(min(_MAX_TILE_HEADS, triton.next_power_of_2(group_size)))


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
) -> Tensor:
    """query [T, Hq, D], caches [num_blocks, block_size, Hkv, D] -> [T, Hq, D], in the dtype of `query`.

    block_tables [B, max_blocks] int32, seq_lens [B] int32 (context after this step), query_start [B+1] int32.
    A query at position p attends to keys max(0, p-window+1)..p. `softcap` > 0 turns a score s into
    softcap * tanh(s / softcap). `max_query_len` only chooses the tile shape. A row may have no query.
    float32 is multiplied in full precision, not TF32.
    """
    num_tokens, num_heads, head_dim = query.shape
    _, block_size, num_kv_heads, _ = key_cache.shape
    num_rows = seq_lens.shape[0]
    group_size = num_heads // num_kv_heads
    query, key_cache, value_cache = (_rows_contiguous(t) for t in (query, key_cache, value_cache))
    output = torch.empty((num_tokens, num_heads, head_dim), dtype=query.dtype, device=query.device)
    if num_tokens == 0:
        return output
    tile = tile_shape(
        head_dim=head_dim, group_size=group_size, itemsize=query.element_size(), max_query_len=max_query_len
    )
    tile_heads = heads_per_tile(group_size)
    tile_queries = tile.rows // tile_heads
    grid = (num_tokens // tile_queries + num_rows, num_kv_heads * triton.cdiv(group_size, tile_heads))
    _paged_attention_kernel[grid](
        output, query, key_cache, value_cache, block_tables, seq_lens, query_start,
        scale * _LOG2_E, softcap, num_rows,
        query.stride(0), query.stride(1), output.stride(0), output.stride(1),
        key_cache.stride(0), key_cache.stride(1), key_cache.stride(2),
        value_cache.stride(0), value_cache.stride(1), value_cache.stride(2),
        block_tables.stride(0),
        HEAD_DIM=head_dim,
        HEAD_DIM_PADDED=max(MIN_HEAD_DIM, triton.next_power_of_2(head_dim)),
        GROUP=group_size,
        TILE_HEADS=tile_heads,
        TILE_QUERIES=tile_queries,
        TILE_KEYS=tile.keys,
        BLOCK_SIZE=block_size,
        WINDOW=window or 0,
        SOFTCAP=softcap > 0.0,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )  # fmt: skip
    return output


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    query_start: Tensor,
    max_query_len: int,
    scale: float,
    window: int | None = None,
    softcap: float = 0.0,
) -> Tensor:
    """Each row's causal attention over its own tokens: query [T, Hq, D], key/value [T, Hkv, D] -> [T, Hq, D].

    The packed keys are read as a cache of one-token blocks, so that this is the same kernel.
    """
    first = query_start[:-1]
    positions = torch.arange(max_query_len, dtype=torch.int32, device=query.device)
    return paged_attention(
        query,
        key.unsqueeze(1),
        value.unsqueeze(1),
        block_tables=first[:, None] + positions[None, :],
        seq_lens=query_start[1:] - first,
        query_start=query_start,
        max_query_len=max_query_len,
        scale=scale,
        window=window,
        softcap=softcap,
    )


def _rows_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


@triton.jit
def _find_row(query_start: tl.tensor, tile: tl.tensor, num_rows: tl.tensor, TILE_QUERIES: tl.constexpr):
    """The last row whose first tile is not after `tile`."""
    low = 0
    high = num_rows
    while low < high:
        middle = (low + high) // 2
        if tl.load(query_start + middle) // TILE_QUERIES + middle <= tile:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def _attend(
    query, key_cache, value_cache, table, query_positions, head_dims, kv_head, first_key, last_key,
    key_stride_block, key_stride_token, key_stride_head,
    value_stride_block, value_stride_token, value_stride_head,
    scale_log2, softcap,
    ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr, TILE_KEYS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Online softmax of one query tile over keys first_key..last_key-1: (maximum, sum, accumulator), base 2.

    The three are what a split over the keys would merge.
    """
    LOG2_E: tl.constexpr = 1.4426950408889634
    NEGATIVE_INFINITY: tl.constexpr = float("-inf")
    maximum = tl.full([ROWS], NEGATIVE_INFINITY, dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    accumulator = tl.zeros([ROWS, HEAD_DIM_PADDED], dtype=tl.float32)
    start = (first_key // TILE_KEYS) * TILE_KEYS
    for tile_start in range(start, last_key, TILE_KEYS):
        keys = tile_start + tl.arange(0, TILE_KEYS)
        readable = (keys >= first_key) & (keys < last_key)
        blocks = tl.load(table + keys // BLOCK_SIZE, mask=readable, other=0).to(tl.int64)
        offsets = keys % BLOCK_SIZE
        keys_at = kv_head * key_stride_head + blocks * key_stride_block + offsets * key_stride_token
        values_at = kv_head * value_stride_head + blocks * value_stride_block + offsets * value_stride_token
        key = tl.load(
            key_cache + keys_at[None, :] + head_dims[:, None],
            mask=readable[None, :] & (head_dims[:, None] < HEAD_DIM),
            other=0.0,
        )
        value = tl.load(
            value_cache + values_at[:, None] + head_dims[None, :],
            mask=readable[:, None] & (head_dims[None, :] < HEAD_DIM),
            other=0.0,
        )
        scores = tl.dot(query, key, input_precision="ieee") * scale_log2
        if SOFTCAP:
            # tanh(x) = 2 * sigmoid(2x) - 1; the scores carry log2(e), the cap does not.
            scores = softcap * LOG2_E * (2.0 / (1.0 + tl.exp2(-2.0 * scores / softcap)) - 1.0)
        visible = readable[None, :] & (keys[None, :] <= query_positions[:, None])
        if WINDOW > 0:
            visible = visible & (keys[None, :] > query_positions[:, None] - WINDOW)
        scores = tl.where(visible, scores, NEGATIVE_INFINITY)

        new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
        # A row that has seen no key yet would subtract infinity from infinity.
        shift = tl.where(new_maximum == NEGATIVE_INFINITY, 0.0, new_maximum)
        weights = tl.exp2(scores - shift[:, None])
        rescale = tl.exp2(maximum - shift)
        total = total * rescale + tl.sum(weights, axis=1)
        accumulator = accumulator * rescale[:, None]
        accumulator = tl.dot(weights.to(value.dtype), value, accumulator, input_precision="ieee")
        maximum = new_maximum
    return maximum, total, accumulator


# These two change from step to step; variants for multiples of 16 would be compiled in the middle of serving.
@triton.jit(do_not_specialize=["num_rows", "table_stride"])
def _paged_attention_kernel(
    output, query, key_cache, value_cache, block_tables, seq_lens, query_start,
    scale_log2, softcap, num_rows,
    query_stride_token, query_stride_head, output_stride_token, output_stride_head,
    key_stride_block, key_stride_token, key_stride_head,
    value_stride_block, value_stride_token, value_stride_head,
    table_stride,
    HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr, GROUP: tl.constexpr, TILE_HEADS: tl.constexpr,
    TILE_QUERIES: tl.constexpr, TILE_KEYS: tl.constexpr, BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = TILE_QUERIES * TILE_HEADS
    TILES_PER_GROUP: tl.constexpr = (GROUP + TILE_HEADS - 1) // TILE_HEADS
    tile = tl.program_id(0)
    kv_head = tl.program_id(1) // TILES_PER_GROUP
    first_member = tl.program_id(1) % TILES_PER_GROUP * TILE_HEADS
    row = _find_row(query_start, tile, num_rows, TILE_QUERIES)
    row_start = tl.load(query_start + row)
    query_len = tl.load(query_start + row + 1) - row_start
    first_query = (tile - (row_start // TILE_QUERIES + row)) * TILE_QUERIES
    if first_query >= query_len:
        return
    num_computed = tl.load(seq_lens + row) - query_len

    tile_rows = tl.arange(0, ROWS)
    queries = first_query + tile_rows // TILE_HEADS
    members = first_member + tile_rows % TILE_HEADS
    head_dims = tl.arange(0, HEAD_DIM_PADDED)
    used = (queries < query_len) & (members < GROUP)
    used_elements = used[:, None] & (head_dims[None, :] < HEAD_DIM)
    tokens = (row_start + queries).to(tl.int64)
    heads = kv_head * GROUP + members
    query_tile = tl.load(
        query + (tokens * query_stride_token + heads * query_stride_head)[:, None] + head_dims[None, :],
        mask=used_elements,
        other=0.0,
    )
    last_key = num_computed + tl.minimum(first_query + TILE_QUERIES, query_len)
    first_key = 0
    if WINDOW > 0:
        first_key = tl.maximum(num_computed + first_query - WINDOW + 1, 0)
    _, total, accumulator = _attend(
        query_tile, key_cache, value_cache, block_tables + row.to(tl.int64) * table_stride,
        num_computed + queries, head_dims, kv_head, first_key, last_key,
        key_stride_block, key_stride_token, key_stride_head,
        value_stride_block, value_stride_token, value_stride_head,
        scale_log2, softcap,
        ROWS, HEAD_DIM, HEAD_DIM_PADDED, TILE_KEYS, BLOCK_SIZE, WINDOW, SOFTCAP,
    )  # fmt: skip
    # Padding rows of the tile may have seen no key; they are not stored.
    result = accumulator / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(
        output + (tokens * output_stride_token + heads * output_stride_head)[:, None] + head_dims[None, :],
        result.to(output.dtype.element_ty),
        mask=used_elements,
    )
