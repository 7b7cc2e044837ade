"""Random paged-attention problems with a float64 answer, for GPUs and for interpreted kernels on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from serving.contracts import AttentionMetadata, KVLayerCache

NAN = float("nan")


@dataclass(slots=True, frozen=True)
class Case:
    """`rows` holds (queries of this step, context after it) per sequence."""

    rows: tuple[tuple[int, int], ...]
    dtype: torch.dtype = torch.float32
    head_dim: int = 64
    num_heads: int = 4
    num_kv_heads: int = 2
    block_size: int = 16
    window: int | None = None
    softcap: float = 0.0
    alibi: bool = False
    sinks: bool = False
    fp8_scales: int = 0
    """Scales of a float8 cache: one, or one per KV head. 0: the cache has the type of the model."""
    splits: int = 0
    """Force that many programs per short row, however short it is. 0: as for serving."""
    short_queries: int = 1
    seed: int = 0

    def __str__(self) -> str:
        name = (
            f"{str(self.dtype)[6:]}-d{self.head_dim}-h{self.num_heads}x{self.num_kv_heads}-b{self.block_size}"
        )
        name += f"-w{self.window}" if self.window else ""
        name += f"-c{self.softcap:g}" if self.softcap else ""
        name += "-alibi" * self.alibi + "-sinks" * self.sinks
        name += f"-fp8x{self.fp8_scales}" if self.fp8_scales else ""
        name += f"-s{self.splits}q{self.short_queries}" if self.splits else ""
        return f"{name}-rows{len(self.rows)}q{max(q for q, _ in self.rows)}k{max(k for _, k in self.rows)}"


@dataclass(slots=True, frozen=True)
class Options:
    """What some models add to attention."""

    alibi_slopes: Tensor | None = None
    sinks: Tensor | None = None
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None

    @classmethod
    def draw(cls, case: Case, generator: torch.Generator, device: str) -> Options:
        def draw(wanted: int) -> Tensor | None:
            return torch.rand(wanted, generator=generator).to(device) if wanted else None

        return cls(
            alibi_slopes=draw(case.num_heads * case.alibi),
            sinks=draw(case.num_heads * case.sinks),
            key_scale=draw(case.fp8_scales),
            value_scale=draw(case.fp8_scales),
        )

    def scales(self) -> dict[str, Tensor | None]:
        return {"key_scale": self.key_scale, "value_scale": self.value_scale}

    def all(self) -> dict[str, Tensor | None]:
        return {"alibi_slopes": self.alibi_slopes, "sinks": self.sinks} | self.scales()


@dataclass(slots=True)
class Problem:
    """Inputs of one call. Cache slots that no token owns hold NaN: reading one spoils the result."""

    query: Tensor
    key: Tensor
    value: Tensor
    cache: KVLayerCache
    metadata: AttentionMetadata
    scale: float
    expected: Tensor
    case: Case
    options: Options
    owned_slots: Tensor = field(repr=False)


def dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float,
    options: Options = Options(),
) -> Tensor:
    """One sequence in float64: query [Tq, Hq, D] are the last of the positions of key/value [Tk, Hkv, D]."""
    group = query.shape[1] // key.shape[1]
    keys, values = (t.double().repeat_interleave(group, dim=1) for t in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.double(), keys) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    query_positions = torch.arange(len(query), device=query.device).unsqueeze(1) + len(key) - len(query)
    key_positions = torch.arange(len(key), device=query.device)
    hidden = key_positions > query_positions
    if window is not None:
        hidden |= key_positions <= query_positions - window
    if options.alibi_slopes is not None:
        slopes = options.alibi_slopes.double().to(query.device)[:, None, None]
        scores = scores + slopes * (key_positions - query_positions)
    scores = scores.masked_fill(hidden, -torch.inf)
    if options.sinks is not None:
        sinks = options.sinks.double().to(query.device)[:, None, None].expand(-1, len(query), 1)
        scores = torch.cat((scores, sinks), dim=-1)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1)[..., : len(key)], values)


def stored(x: Tensor, scale: Tensor | None) -> Tensor:
    """What a float8 cache holds of `x` [T, Hkv, D]."""
    if scale is None:
        return x
    return (x.float() / scale.view(1, -1, 1)).clamp(-448, 448).to(torch.float8_e4m3fn)


def restored(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x.double() * scale.view(1, -1, 1)


def build(case: Case, device: str = "cpu") -> Problem:
    generator = torch.Generator().manual_seed(case.seed)
    size, heads, kv_heads, dim = case.block_size, case.num_heads, case.num_kv_heads, case.head_dim
    blocks_of = [-(-context // size) for _, context in case.rows]
    num_blocks = 1 + sum(blocks_of)
    free = (torch.randperm(num_blocks - 1, generator=generator) + 1).tolist()
    options = Options.draw(case, generator, "cpu")
    shape = (num_blocks, size, kv_heads, dim)
    cache_dtype = torch.float8_e4m3fn if case.fp8_scales else case.dtype
    caches = [torch.full(shape, NAN, dtype=case.dtype).to(cache_dtype) for _ in range(2)]
    for cache in caches:
        cache[0] = torch.zeros(shape[1:]).to(cache_dtype)
    tables = torch.zeros(len(case.rows), max(blocks_of) + 1, dtype=torch.int32)
    packed, slots_of_step, owned, expected = [], [], [], []
    for row, (num_queries, context) in enumerate(case.rows):
        blocks = torch.tensor([free.pop() for _ in range(blocks_of[row])], dtype=torch.int64)
        tables[row, : len(blocks)] = blocks
        slots = (blocks[:, None] * size + torch.arange(size)).flatten()[:context]
        fused = torch.randn(context, heads + 2 * kv_heads, dim, generator=generator).to(case.dtype)
        query, key, value = fused.split([heads, kv_heads, kv_heads], dim=1)
        done = context - num_queries
        kept = stored(key, options.key_scale), stored(value, options.value_scale)
        for cache, tokens in zip(caches, kept, strict=True):
            as_bits(cache).flatten(0, 1)[slots[:done]] = as_bits(tokens[:done])
        packed.append(fused[done:])
        slots_of_step.append(slots[done:])
        owned.append(slots)
        keys, values = restored(kept[0], options.key_scale), restored(kept[1], options.value_scale)
        answer = dense(
            query[done:], keys, values, scale=dim**-0.5, window=case.window, softcap=case.softcap, options=options
        )  # fmt: skip
        expected.append(answer)
    lens = [num_queries for num_queries, _ in case.rows]
    contexts = [context for _, context in case.rows]
    # Slices of one tensor, as the layers hand them over: tokens are not contiguous.
    query, key, value = torch.cat(packed).to(device).split([heads, kv_heads, kv_heads], dim=1)
    return Problem(
        query=query,
        key=key,
        value=value,
        cache=KVLayerCache(*(cache.to(device) for cache in caches)),
        metadata=AttentionMetadata(
            query_start=torch.tensor([0, *torch.tensor(lens).cumsum(0)], dtype=torch.int32, device=device),
            seq_lens=torch.tensor(contexts, dtype=torch.int32, device=device),
            block_tables=tables.to(device),
            slot_mapping=torch.cat(slots_of_step).to(device),
            query_lens_list=lens,
            seq_lens_list=contexts,
            block_size=size,
        ),
        scale=dim**-0.5,
        expected=torch.cat(expected).to(device),
        case=case,
        options=Options(**{name: None if t is None else t.to(device) for name, t in options.all().items()}),
        owned_slots=torch.cat(owned).to(device),
    )


def as_bits(cache: Tensor) -> Tensor:
    """float8 as integers, which can be indexed."""
    return cache.view(torch.uint8) if cache.dtype == torch.float8_e4m3fn else cache


def relative_error(output: Tensor, expected: Tensor) -> float:
    """|| output - expected || / || expected ||; NaN anywhere makes it NaN."""
    return ((output.double() - expected).norm() / expected.norm()).item()


def run_kernels(case: Case, device: str = "cpu", launch: Any = None) -> float:
    """Error of the KV write followed by paged attention; fails when a foreign slot was written."""
    from serving.kernels.triton.paged_attention import new_counters

    problem = build(case, device)
    write(problem)
    _check_foreign_slots(problem)
    counters = new_counters(torch.device(device))
    output = attend(problem, launch or launch_of(case, counters))
    assert not bool(counters.any()), "a counter was not set back"
    return relative_error(output, problem.expected)


def write(problem: Problem) -> None:
    from serving.kernels.triton.kv_write import reshape_and_cache

    cache, slots = problem.cache, problem.metadata.slot_mapping
    reshape_and_cache(problem.key, problem.value, cache.key, cache.value, slots, **problem.options.scales())


def attend(problem: Problem, launch: Any) -> Tensor:
    from serving.kernels.triton.paged_attention import paged_attention

    metadata = problem.metadata
    return paged_attention(
        problem.query,
        problem.cache.key,
        problem.cache.value,
        block_tables=metadata.block_tables,
        seq_lens=metadata.seq_lens,
        query_start=metadata.query_start,
        max_query_len=metadata.max_query_len,
        scale=problem.scale,
        window=problem.case.window,
        softcap=problem.case.softcap,
        **problem.options.all(),
        launch=launch,
    )


def launch_of(case: Case, counters: Tensor) -> Any:
    """As for serving, or with the least part of a row that a program can take."""
    from serving.kernels.triton.paged_attention import Launch
    from serving.kernels.triton.tiles import TileShape, Tuning

    if not case.splits:
        return Launch(counters=counters, short_queries=case.short_queries)
    tuning = Tuning(
        short=TileShape(rows=16, keys=16, num_warps=4, num_stages=2),
        long=TileShape(rows=32, keys=16, num_warps=4, num_stages=2),
        programs_per_sm=10_000,
        min_segment=16,
        max_splits=case.splits,
    )
    return Launch(counters=counters, short_queries=case.short_queries, tuning=tuning)


def deterministic_differences(case: Case, device: str = "cpu") -> dict[str, int]:
    """Queries of the first row, in the batch of `case` and each alone as a decode step: how many differ in a bit."""
    from serving.kernels.triton.paged_attention import Launch

    problem = build(case, device)
    write(problem)
    metadata = problem.metadata
    launch = Launch(deterministic=True)
    together = attend(problem, launch)
    num_queries, context = case.rows[0]
    chosen = [0, num_queries // 3, num_queries // 2, num_queries - 2]
    different = 0
    for query in chosen:
        alone = attend(
            replace(
                problem,
                query=problem.query[query : query + 1],
                metadata=AttentionMetadata(
                    query_start=torch.tensor([0, 1], dtype=torch.int32, device=device),
                    seq_lens=metadata.seq_lens[:1] - (num_queries - 1 - query),
                    block_tables=metadata.block_tables[:1],
                    slot_mapping=metadata.slot_mapping[query : query + 1],
                    query_lens_list=[1],
                    seq_lens_list=[context - num_queries + 1 + query],
                    block_size=case.block_size,
                ),
            ),
            launch,
        )
        different += not torch.equal(alone[0], together[query])
    return {"different": different, "compared": len(chosen)}


def _check_foreign_slots(problem: Problem) -> None:
    for cache in (problem.cache.key, problem.cache.value):
        slots = cache.flatten(0, 1).float()
        foreign = torch.ones(len(slots), dtype=torch.bool, device=slots.device)
        foreign[problem.owned_slots] = False
        foreign[: problem.case.block_size] = False
        assert bool(slots[foreign].isnan().all()), "a slot that no token owns was written"
        assert bool((slots[: problem.case.block_size] == 0).all()), "the padding block was written"
        assert not bool(slots[problem.owned_slots].isnan().any()), "a token's slot was not written"


def run_packed(case: Case, device: str = "cpu") -> float:
    """Error of attention without a cache; every row's context must be its own queries."""
    from serving.kernels.triton.paged_attention import packed_attention

    problem = build(case, device)
    output = packed_attention(
        problem.query,
        problem.key,
        problem.value,
        query_start=problem.metadata.query_start,
        max_query_len=problem.metadata.max_query_len,
        scale=problem.scale,
        window=case.window,
        softcap=case.softcap,
    )
    return relative_error(output, problem.expected)


def run_backends(case: Case, device: str = "cpu") -> list[float]:
    """Errors of the Triton backend, its deterministic form, and the torch backend, each on its own cache."""
    from serving.attention.sdpa import SdpaAttention
    from serving.attention.triton import TritonAttention

    errors = []
    for backend in (TritonAttention(), TritonAttention(deterministic=True), SdpaAttention()):
        problem = build(case, device)
        for cache in (problem.cache.key, problem.cache.value):
            cache.nan_to_num_()  # the torch backend multiplies masked values by zero
        output = backend.forward(
            problem.query,
            problem.key,
            problem.value,
            cache=problem.cache,
            metadata=problem.metadata,
            scale=problem.scale,
            window=case.window,
        )
        errors.append(relative_error(output, problem.expected))
    return errors


def written_slots(device: str = "cpu") -> list[int]:
    """Slots that a write of four tokens changed, two of which have the slot -1."""
    from serving.kernels.triton.kv_write import reshape_and_cache

    key_cache = torch.zeros(3, 16, 2, 40, dtype=torch.float16, device=device)
    value_cache = torch.zeros_like(key_cache)
    token = torch.ones(4, 2, 40, device=device)
    slots = torch.tensor([17, -1, 40, -1], device=device)
    reshape_and_cache(token, 2 * token, key_cache, value_cache, slots)
    assert bool((value_cache == 2 * key_cache).all())
    return key_cache.flatten(0, 1).flatten(1).all(dim=1).nonzero().flatten().tolist()
