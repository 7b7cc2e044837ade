"""Paged causal attention in Triton: one family of kernels for prompts, chunks of prompts, decode and any mix of them.

Owns the launch; the kernels are in `attention_kernels`, their shapes in `tiles`. Knows nothing of layers, requests or how
blocks are handed out. Nothing here reads device memory from the host, and the grid depends on the shapes of the tensors
alone, so a launch can be captured in a graph and replayed while contexts grow. The calling thread's current CUDA device
must be the one that holds the tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from serving.kernels.triton.attention_kernels import MERGE_ELEMENTS, long_rows_kernel, short_rows_kernel
from serving.kernels.triton.tiles import (
    DETERMINISTIC_SEGMENT,
    MIN_HEAD_DIM,
    PARTIALS_LIMIT_BYTES,
    Splits,
    TileShape,
    Tuning,
    heads_per_tile,
    padded,
    splits_for,
    tuning_for,
)

SUPPORTED_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CACHE_DTYPE_FP8 = torch.float8_e4m3fn
COUNTERS = 1 << 16
"""Tiles that may be split in one launch: rows x tiles of heads."""

_LOG2_E = 1.4426950408889634
_NATIVE_FP8_CAPABILITY = (8, 9)


@dataclass(slots=True, frozen=True)
class Launch:
    """What changes how a step is computed, not what.

    `counters` int32 [COUNTERS] are zero between launches; a launch without them allocates its own. Rows of up to
    `short_queries` queries, a power of two, are split over their keys; `has_short_rows` may be False where the caller knows
    that there are none. With `deterministic` the bits of a query's result
    depend on its own keys only: one tile shape, and parts of `DETERMINISTIC_SEGMENT` keys put together in order.
    """

    counters: Tensor | None = None
    short_queries: int = 1
    has_short_rows: bool = True
    deterministic: bool = False
    tuning: Tuning | None = None


DEFAULT_LAUNCH = Launch()


def new_counters(device: torch.device) -> Tensor:
    return torch.zeros(COUNTERS, dtype=torch.int32, device=device)


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
    launch: Launch = DEFAULT_LAUNCH,
) -> Tensor:
    """query [T, Hq, D], caches [num_blocks, block_size, Hkv, D] -> [T, Hq, D], in the dtype of `query`.

    block_tables [B, max_blocks] int32, seq_lens [B] int32 (context after this step), query_start [B+1] int32.
    A query at position p attends to keys max(0, p-window+1)..p. `softcap` > 0 turns a score s into
    softcap * tanh(s / softcap); then `alibi_slopes` [Hq] adds slope * (key position - query position), and `sinks` [Hq] is
    the score of a further key whose value is zero. Caches of float8_e4m3fn hold key / key_scale and value / value_scale;
    a scale is float32 [1] or [Hkv], and None is 1. A row may have no query. float32 is multiplied in full precision.
    """
    query, key_cache, value_cache = (_rows_contiguous(t) for t in (query, key_cache, value_cache))
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if query.shape[0] == 0:
        return output
    group_size = query.shape[1] // key_cache.shape[2]
    sizes = query.element_size(), key_cache.element_size()
    tuning = launch.tuning or _tuning(query.device, query.shape[2], group_size, *sizes)
    short_tile = tuning.long if launch.deterministic else tuning.short
    splits = _splits(tuning, short_tile, launch, query, key_cache, block_tables, window)
    arguments = _arguments(output, query, key_cache, value_cache, block_tables, seq_lens, query_start)
    arguments |= _options(
        query, key_cache, scale, window, softcap, alibi_slopes, sinks, key_scale, value_scale
    )
    arguments["SEGMENT"] = DETERMINISTIC_SEGMENT if launch.deterministic else 0
    arguments["SHORT_QUERIES"] = 0 if splits is None else launch.short_queries
    all_short = max_query_len <= arguments["SHORT_QUERIES"]
    if splits is not None and (launch.has_short_rows or all_short):
        _launch_short(arguments, short_tile, splits, launch.counters, query, key_cache, seq_lens.shape[0])
    if not all_short:
        _launch_long(arguments, tuning.long, query, key_cache, seq_lens.shape[0])
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


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    """An interpreted kernel on a CPU takes the shapes of the GPU with least shared memory."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 6)


@cache
def _num_multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def _tuning(
    device: torch.device, head_dim: int, group_size: int, itemsize: int, cache_itemsize: int
) -> Tuning:
    return tuning_for(
        _capability(device), head_dim=head_dim, group_size=group_size, itemsize=itemsize, cache_itemsize=cache_itemsize
    )  # fmt: skip


def _splits(
    tuning: Tuning,
    tile: TileShape,
    launch: Launch,
    query: Tensor,
    key_cache: Tensor,
    block_tables: Tensor,
    window: int | None,
) -> Splits | None:
    """How short rows are split; None where they are computed like all others."""
    num_rows, num_tables = block_tables.shape
    max_keys = num_tables * key_cache.shape[1]
    if window is not None:
        max_keys = min(max_keys, window + tile.keys)
    num_programs = num_rows * _head_tiles(query, key_cache)
    bytes_per_split = 4 * num_rows * query.shape[1] * (query.shape[2] + 2)
    if not launch.deterministic:
        splits = splits_for(
            tuning,
            num_programs=num_programs,
            num_multiprocessors=_num_multiprocessors(query.device),
            max_keys=max_keys,
            bytes_per_split=bytes_per_split,
        )
        return splits if num_programs <= COUNTERS else Splits(count=1, min_segment=splits.min_segment)
    # A window touches one segment more than it fills.
    count = triton.cdiv(max_keys, DETERMINISTIC_SEGMENT) + (window is not None)
    if count * bytes_per_split > PARTIALS_LIMIT_BYTES or num_programs > COUNTERS:
        return None
    return Splits(count=count, min_segment=DETERMINISTIC_SEGMENT)


def _head_tiles(query: Tensor, key_cache: Tensor) -> int:
    """Programs that the heads of one query take."""
    num_kv_heads = key_cache.shape[2]
    group_size = query.shape[1] // num_kv_heads
    return int(num_kv_heads * triton.cdiv(group_size, heads_per_tile(group_size)))


def _arguments(
    output: Tensor,
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    query_start: Tensor,
) -> dict[str, Any]:
    head_dim = query.shape[2]
    group_size = query.shape[1] // key_cache.shape[2]
    fp8 = key_cache.dtype == CACHE_DTYPE_FP8
    native = fp8 and _capability(query.device) >= _NATIVE_FP8_CAPABILITY
    return {
        "output": output,
        "query": query,
        "key_cache": key_cache.view(torch.uint8) if fp8 else key_cache,
        "value_cache": value_cache.view(torch.uint8) if fp8 else value_cache,
        "block_tables": block_tables,
        "seq_lens": seq_lens,
        "query_start": query_start,
        "query_stride_token": query.stride(0),
        "query_stride_head": query.stride(1),
        "output_stride_token": output.stride(0),
        "output_stride_head": output.stride(1),
        "key_stride_block": key_cache.stride(0),
        "key_stride_token": key_cache.stride(1),
        "key_stride_head": key_cache.stride(2),
        "value_stride_block": value_cache.stride(0),
        "value_stride_token": value_cache.stride(1),
        "value_stride_head": value_cache.stride(2),
        "table_stride": block_tables.stride(0),
        "HEAD_DIM": head_dim,
        "HEAD_DIM_PADDED": max(MIN_HEAD_DIM, padded(head_dim)),
        "GROUP": group_size,
        "TILE_HEADS": heads_per_tile(group_size),
        "BLOCK_SIZE": key_cache.shape[1],
        "FP8": ("native" if native else "bits") if fp8 else "",
    }


def _options(
    query: Tensor,
    key_cache: Tensor,
    scale: float,
    window: int | None,
    softcap: float,
    alibi_slopes: Tensor | None,
    sinks: Tensor | None,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
) -> dict[str, Any]:
    num_kv_heads = key_cache.shape[2]
    for name, given in (("alibi_slopes", alibi_slopes), ("sinks", sinks)):
        if given is not None and given.shape != (query.shape[1],):
            raise ValueError(f"{name} has shape {tuple(given.shape)}; there are {query.shape[1]} query heads")
    for name, given in (("key_scale", key_scale), ("value_scale", value_scale)):
        if given is not None and given.numel() not in (1, num_kv_heads):
            raise ValueError(
                f"{name} has {given.numel()} elements; give 1 or {num_kv_heads}, one per KV head"
            )
    return {
        "alibi_slopes": alibi_slopes,
        "sinks": sinks,
        "key_scale": key_scale,
        "value_scale": value_scale,
        "scale_log2": scale * _LOG2_E,
        "softcap": softcap,
        "KEY_SCALES": 0 if key_scale is None else key_scale.numel(),
        "VALUE_SCALES": 0 if value_scale is None else value_scale.numel(),
        "WINDOW": window or 0,
        "SOFTCAP": softcap > 0.0,
    }


def _launch_short(
    arguments: dict[str, Any],
    tile: TileShape,
    splits: Splits,
    counters: Tensor | None,
    query: Tensor,
    key_cache: Tensor,
    num_rows: int,
) -> None:
    _, num_heads, head_dim = query.shape
    short_queries = arguments["SHORT_QUERIES"]
    if counters is None:
        counters = new_counters(query.device)
    on_device: dict[str, Any] = {"dtype": torch.float32, "device": query.device}
    owners = num_rows * short_queries
    merge_rows = short_queries * arguments["TILE_HEADS"]
    merged = max(1, MERGE_ELEMENTS // (merge_rows * arguments["HEAD_DIM_PADDED"]))
    short_rows_kernel[(num_rows, _head_tiles(query, key_cache), splits.count)](
        partials=torch.empty((owners, num_heads, splits.count, head_dim), **on_device),
        partial_stats=torch.empty((owners, num_heads, 2, splits.count), **on_device),
        counters=counters,
        num_splits=splits.count,
        min_segment=splits.min_segment,
        **arguments,
        ROWS=max(tile.rows, merge_rows),
        TILE_KEYS=tile.keys,
        MERGED=1 if arguments["SEGMENT"] else merged,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=arguments["SEGMENT"] == 0,
    )


def _launch_long(
    arguments: dict[str, Any], tile: TileShape, query: Tensor, key_cache: Tensor, num_rows: int
) -> None:
    tile_queries = tile.rows // arguments["TILE_HEADS"]
    grid = (query.shape[0] // tile_queries + num_rows, _head_tiles(query, key_cache))
    long_rows_kernel[grid](
        num_rows=num_rows,
        **arguments,
        TILE_QUERIES=tile_queries,
        TILE_KEYS=tile.keys,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        enable_fp_fusion=arguments["SEGMENT"] == 0,
    )
