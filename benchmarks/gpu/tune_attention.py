"""Launch shapes of the attention kernels, timed on this GPU: `python -m benchmarks.gpu.tune_attention RECORD [--quick]`.

For each model shape and step the time of the shapes in `serving.kernels.triton.tiles` beside the best of the others, with
the share of 3 TB/s (decode) or 800 TFLOP/s (prompts) that it reaches. What wins is entered in `tiles` by hand.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from triton.runtime.errors import OutOfResources

from benchmarks.gpu.measures import Record
from serving.kernels.triton.paged_attention import Launch, new_counters, paged_attention
from serving.kernels.triton.tiles import MIN_ROWS, TileShape, Tuning, tuning_for

BYTES_PER_S = 3.0e12
FLOP_PER_S = 800e12
BLOCK_SIZE = 16
REPEATS = 20

HEADS = {"llama-3.1-8b": (32, 8, 128), "qwen3-0.6b": (16, 8, 128), "small-heads": (32, 8, 64)}
"""Query heads, KV heads, head size."""

STEPS = [(1, 1, 1024), (1, 1, 32768), (32, 1, 1024), (256, 1, 1024), (1, 2048, 2048), (8, 256, 4096)]
"""Rows, queries of each, context of each."""


def main() -> None:
    record, quick = Record(Path(sys.argv[1])), "--quick" in sys.argv[2:]
    capability = torch.cuda.get_device_capability()
    for (model, heads), step in itertools.product(HEADS.items(), STEPS):
        attend = _step(heads, step)
        group = heads[0] // heads[1]
        known = tuning_for(capability, head_dim=heads[2], group_size=group, itemsize=2)
        name = f"{model}.{step[0]}x{step[1]}@{step[2]}"
        now_s = _seconds(attend, known)
        record.add(f"{name}.now_us", 1e6 * now_s)
        record.add(f"{name}.share", _floor_s(heads, step) / now_s)
        if quick:
            continue
        times = {tuning: _seconds(attend, tuning) for tuning in _candidates(known, short=step[1] == 1)}
        best = min(times, key=lambda tuning: times[tuning])
        record.add(f"{name}.best_us", 1e6 * times[best])
        record.add(f"{name}.best", str(best))


def _candidates(known: Tuning, *, short: bool) -> Iterator[Tuning]:
    if not short:
        for rows, keys, warps, stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4)):
            yield replace(known, long=TileShape(rows, keys, warps, stages))
        return
    for keys, warps, stages in itertools.product((32, 64, 128), (2, 4, 8), (2, 3, 4)):
        for programs, least in itertools.product((2, 3, 4, 6), (64, 128, 256)):
            yield replace(
                known,
                short=TileShape(max(MIN_ROWS, known.short.rows), keys, warps, stages),
                programs_per_sm=programs,
                min_segment=least,
            )


def _step(heads: tuple[int, int, int], step: tuple[int, int, int]) -> Callable[[Tuning], object]:
    num_heads, num_kv_heads, head_dim = heads
    rows, queries, context = step
    num_blocks = -(-context // BLOCK_SIZE)
    shape = (1 + rows * num_blocks, BLOCK_SIZE, num_kv_heads, head_dim)
    key_cache, value_cache = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    query = torch.randn(rows * queries, num_heads, head_dim, device="cuda", dtype=torch.bfloat16)
    tables = 1 + torch.randperm(rows * num_blocks, device="cuda").int().view(rows, num_blocks)
    seq_lens = torch.full((rows,), context, dtype=torch.int32, device="cuda")
    query_start = torch.arange(rows + 1, dtype=torch.int32, device="cuda") * queries
    counters = new_counters(query.device)

    def attend(tuning: Tuning) -> object:
        return paged_attention(
            query, key_cache, value_cache, block_tables=tables, seq_lens=seq_lens, query_start=query_start,
            max_query_len=queries, scale=head_dim**-0.5, launch=Launch(counters=counters, tuning=tuning),
        )  # fmt: skip

    return attend


def _floor_s(heads: tuple[int, int, int], step: tuple[int, int, int]) -> float:
    num_heads, num_kv_heads, head_dim = heads
    rows, queries, context = step
    moved = rows * (2 * context * num_kv_heads + 2 * queries * num_heads) * head_dim * 2
    pairs = rows * queries * (context - (queries - 1) / 2)
    return max(moved / BYTES_PER_S, 4 * pairs * num_heads * head_dim / FLOP_PER_S)


def _seconds(attend: Callable[[Tuning], object], tuning: Tuning) -> float:
    """Per call, from a captured graph, so that the host's time is not in it. Infinite for a shape that does not fit."""
    try:
        attend(tuning)
    except OutOfResources:
        return float("inf")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            attend(tuning)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    start.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / REPEATS


if __name__ == "__main__":
    main()
