"""Attention kernels on the GPU against float64, over the shapes that models have."""

from __future__ import annotations

import pytest
import torch

from serving.contracts import AttentionMetadata, KVLayerCache
from tests.gpu.attention_cases import (
    Case,
    attend,
    build,
    dense,
    deterministic_differences,
    relative_error,
    run_backends,
    run_kernels,
    run_packed,
    write,
    written_slots,
)

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
DECODES = ((1, 1), (1, 16), (1, 17), (1, 300), (1, 1100))
MIXED = ((1, 333), (129, 129), (0, 40), (1, 1), (64, 700), (17, 80))

GRID = [
    Case(rows=rows, dtype=dtype, head_dim=head_dim, num_heads=8, num_kv_heads=2)
    for dtype in TOLERANCE
    for head_dim in (64, 128, 256)
    for rows in (DECODES, MIXED)
]
SHAPES = [
    Case(rows=MIXED, dtype=torch.bfloat16, head_dim=32, num_heads=4, num_kv_heads=4),
    Case(rows=MIXED, dtype=torch.bfloat16, head_dim=80, num_heads=14, num_kv_heads=2),
    Case(rows=MIXED, dtype=torch.float16, head_dim=96, num_heads=6, num_kv_heads=2, block_size=32),
    Case(rows=MIXED, dtype=torch.float32, head_dim=192, num_heads=3, num_kv_heads=1),
    Case(rows=DECODES, dtype=torch.bfloat16, head_dim=128, num_heads=64, num_kv_heads=1),
    Case(rows=MIXED, dtype=torch.bfloat16, head_dim=64, num_heads=71, num_kv_heads=1),
    Case(rows=DECODES, dtype=torch.bfloat16, head_dim=128, num_heads=5, num_kv_heads=1, block_size=256),
    Case(rows=MIXED, dtype=torch.bfloat16, head_dim=128, num_heads=8, block_size=24),
]
WINDOWS = [
    Case(rows=rows, dtype=dtype, head_dim=128, num_heads=8, num_kv_heads=2, window=window)
    for dtype in (torch.float32, torch.bfloat16)
    for window in (1, 100, 4096)
    for rows in (DECODES, MIXED)
]
LONG = [
    Case(rows=((1, 16_000), (1, 5)), dtype=torch.bfloat16, head_dim=128, num_heads=8, num_kv_heads=2),
    Case(rows=((1024, 3000), (1, 50)), dtype=torch.bfloat16, head_dim=128, num_heads=8, num_kv_heads=2),
    Case(rows=tuple((1, 1 + 7 * row) for row in range(256)), dtype=torch.bfloat16, head_dim=128, num_heads=8),
]
SPLIT = [
    Case(rows=((1, 30_000),), dtype=torch.bfloat16, head_dim=128, num_heads=8),
    Case(rows=((1, 9_000), (300, 700), (0, 5), (1, 70)), dtype=torch.bfloat16, head_dim=128, num_heads=8),
    Case(rows=((1, 5_000), (1, 3)), dtype=torch.float32, head_dim=64, window=3000),
    Case(rows=((1, 700), (1, 90)), dtype=torch.float16, head_dim=80, num_heads=7, num_kv_heads=1, splits=64),
    Case(rows=((4, 900), (2, 30), (5, 900)), dtype=torch.bfloat16, num_heads=6, splits=16, short_queries=4),
]
DETERMINISTIC = [
    Case(rows=((300, 4_000), (1, 40)), dtype=dtype, head_dim=128, num_heads=8, window=window)
    for dtype in TOLERANCE
    for window in (None, 1500)
]
OPTIONS = [
    Case(
        rows=MIXED,
        dtype=dtype,
        head_dim=head_dim,
        num_heads=6,
        alibi=True,
        sinks=True,
        softcap=20.0,
        window=window,
    )
    for dtype in (torch.float32, torch.bfloat16)
    for head_dim in (96, 128)
    for window in (None, 50)
]
FP8 = [
    Case(rows=rows, dtype=dtype, head_dim=head_dim, num_heads=8, fp8_scales=scales)
    for dtype in (torch.float16, torch.bfloat16)
    for head_dim in (80, 128, 256)
    for scales in (1, 2)
    for rows in (DECODES, MIXED)
]


@pytest.mark.parametrize("case", [*GRID, *SHAPES, *WINDOWS, *LONG, *SPLIT, *OPTIONS, *FP8], ids=str)
def test_write_then_attend(case: Case) -> None:
    assert run_kernels(case, "cuda") < TOLERANCE[case.dtype]


@pytest.mark.parametrize("short", ["1,2", "3,0", "0,0"])
def test_a_split_row_is_put_together_over_and_over(short: str) -> None:
    """A part that is read before it is stored would show as a wrong result now and then."""
    from serving.kernels.triton.paged_attention import Launch, new_counters

    seed, longer = map(int, short.split(","))
    case = Case(
        rows=((1, 8_000 + longer), (1, 700)), dtype=torch.bfloat16, head_dim=128, num_heads=32, seed=seed
    )
    problem = build(case, "cuda")
    write(problem)
    launch = Launch(counters=new_counters(torch.device("cuda")))
    first = attend(problem, launch)
    assert relative_error(first, problem.expected) < TOLERANCE[torch.bfloat16]
    assert all(torch.equal(attend(problem, launch), first) for _ in range(300))


@pytest.mark.parametrize("case", DETERMINISTIC, ids=str)
def test_deterministic_bits_over_several_parts(case: Case) -> None:
    assert deterministic_differences(case, "cuda") == {"different": 0, "compared": 4}


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_softcap(dtype: torch.dtype) -> None:
    assert run_kernels(Case(rows=MIXED, dtype=dtype, softcap=2.0), "cuda") < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("window", [None, 30])
def test_without_a_cache(dtype: torch.dtype, window: int | None) -> None:
    case = Case(rows=((200, 200), (1, 1), (77, 77)), dtype=dtype, head_dim=128, num_heads=8, window=window)
    assert run_packed(case, "cuda") < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("window", [None, 40])
def test_backends_agree(dtype: torch.dtype, window: int | None) -> None:
    case = Case(rows=((1, 333), (129, 129), (1, 1), (64, 700)), dtype=dtype, num_heads=8, window=window)
    assert max(run_backends(case, "cuda")) < TOLERANCE[dtype]


def test_a_negative_slot_is_not_written() -> None:
    assert written_slots("cuda") == [17, 40]


def test_caches_beyond_32_bit_offsets() -> None:
    """Blocks whose first element lies past 2**31 elements are found, written and read."""
    from serving.kernels.triton.kv_write import reshape_and_cache
    from serving.kernels.triton.paged_attention import paged_attention

    size, kv_heads, dim, context = 16, 8, 128, 40
    num_blocks = 2**31 // (size * kv_heads * dim) + 8
    needed = 2 * num_blocks * size * kv_heads * dim * 2 + 2**30
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory")
    shape = (num_blocks, size, kv_heads, dim)
    key_cache, value_cache = (torch.zeros(shape, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    generator = torch.Generator("cuda").manual_seed(0)
    query = torch.randn(1, 32, dim, device="cuda", generator=generator).bfloat16()
    key, value = (
        torch.randn(context, kv_heads, dim, device="cuda", generator=generator).bfloat16() for _ in range(2)
    )
    blocks = torch.arange(num_blocks - 3, num_blocks, device="cuda")
    slots = (blocks[:, None] * size + torch.arange(size, device="cuda")).flatten()[:context]
    reshape_and_cache(key, value, key_cache, value_cache, slots)
    output = paged_attention(
        query,
        key_cache,
        value_cache,
        block_tables=blocks[None].int(),
        seq_lens=torch.tensor([context], dtype=torch.int32, device="cuda"),
        query_start=torch.tensor([0, 1], dtype=torch.int32, device="cuda"),
        max_query_len=1,
        scale=dim**-0.5,
    )
    expected = dense(query, key, value, scale=dim**-0.5, window=None, softcap=0.0)
    assert relative_error(output, expected) < TOLERANCE[torch.bfloat16]


def test_a_captured_launch_follows_its_inputs() -> None:
    """Nothing is read on the host, so a graph captured at one token of context serves the same row at four thousand."""
    from serving.kernels.triton.paged_attention import Launch, new_counters

    problem = build(Case(rows=((1, 4090), (1, 60)), dtype=torch.bfloat16, head_dim=128, num_heads=8), "cuda")
    write(problem)
    seq_lens = problem.metadata.seq_lens.clone()
    problem.metadata.seq_lens.fill_(1)
    launch = Launch(counters=new_counters(torch.device("cuda")))
    attend(problem, launch)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = attend(problem, launch)
    problem.metadata.seq_lens.copy_(seq_lens)
    for _ in range(3):
        output.fill_(float("nan"))
        graph.replay()
        assert relative_error(output, problem.expected) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_deterministic_bits_do_not_depend_on_neighbours_or_chunks(dtype: torch.dtype) -> None:
    from serving.attention.triton import TritonAttention

    case = Case(rows=((120, 300), (1, 40), (33, 33)), dtype=dtype, head_dim=128, num_heads=8)
    problem = build(case, "cuda")
    backend = TritonAttention(deterministic=True)
    together = _forward(backend, problem, slice(0, 120 + 1 + 33), problem.metadata)
    single = AttentionMetadata(
        query_start=torch.tensor([0, 1], dtype=torch.int32, device="cuda"),
        seq_lens=torch.tensor([250], dtype=torch.int32, device="cuda"),
        block_tables=problem.metadata.block_tables[:1],
        slot_mapping=problem.metadata.slot_mapping[69:70],
        query_lens_list=[1],
        seq_lens_list=[250],
        block_size=case.block_size,
    )
    alone = _forward(
        backend, problem, slice(69, 70), single
    )  # position 249 of the first row, as a decode step
    assert torch.equal(alone[0], together[69])


def _forward(backend, problem, tokens: slice, metadata: AttentionMetadata) -> torch.Tensor:  # type: ignore[no-untyped-def]
    return backend.forward(
        problem.query[tokens],
        problem.key[tokens],
        problem.value[tokens],
        cache=KVLayerCache(problem.cache.key, problem.cache.value),
        metadata=metadata,
        scale=problem.scale,
        window=None,
    )
