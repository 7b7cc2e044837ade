"""The torch backends against the naive reference, over paged caches with scattered blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from serving.attention.registry import choose_attention, create_attention
from serving.contracts import AttentionBackend, AttentionMetadata, KVLayerCache
from serving.errors import ConfigError
from serving.kernels.reference import paged_attention

HEADS, HEAD_DIM, BLOCK = 6, 16, 8
BATCHES = {
    "decode": ([1, 1, 1], [9, 30, 17]),
    "decode_very_different_lengths": ([1, 1, 1, 1], [300, 4, 280, 9]),
    "first_token": ([1], [1]),
    "one_row": ([1], [77]),
    "one_row_in_consecutive_blocks": ([1], [16]),
    "prompts": ([5, 33], [5, 33]),
    "chunks": ([7, 16], [40, 100]),
    "mixed": ([1, 20, 1, 3, 1, 12], [70, 20, 1, 50, 8, 29]),
}


@pytest.fixture(params=[False, True], ids=["sdpa", "tiled"])
def backend(request: pytest.FixtureRequest) -> AttentionBackend:
    torch.manual_seed(0)
    return create_attention("sdpa", deterministic=request.param)


def step(query_lens: list[int], seq_lens: list[int], kv_heads: int) -> tuple[AttentionMetadata, KVLayerCache]:
    """A cache full of random keys and the metadata of a step whose new keys are not in it yet."""
    needed = [-(-length // BLOCK) for length in seq_lens]
    blocks = torch.randperm(sum(needed)) + 1 if sum(needed) > 2 else torch.arange(sum(needed)) + 1
    tables = torch.zeros(len(needed), max(needed), dtype=torch.int32)
    slots, used = [], 0
    for row, (count, query_len, seq_len) in enumerate(zip(needed, query_lens, seq_lens, strict=True)):
        tables[row, :count] = blocks[used : used + count].int()
        used += count
        positions = torch.arange(seq_len - query_len, seq_len)
        slots.append(tables[row][positions // BLOCK].long() * BLOCK + positions % BLOCK)
    shape = (sum(needed) + 1, BLOCK, kv_heads, HEAD_DIM)
    metadata = AttentionMetadata(
        query_start=torch.tensor([0, *query_lens]).cumsum(0).int(),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        block_tables=tables,
        slot_mapping=torch.cat(slots),
        query_lens_list=query_lens,
        seq_lens_list=seq_lens,
        block_size=BLOCK,
    )
    return metadata, KVLayerCache(torch.randn(shape), torch.randn(shape))


def reference(query: Tensor, cache: KVLayerCache, metadata: AttentionMetadata, window: int | None) -> Tensor:
    return paged_attention(
        query,
        cache.key,
        cache.value,
        block_tables=metadata.block_tables,
        seq_lens=metadata.seq_lens,
        query_start=metadata.query_start,
        max_query_len=metadata.max_query_len,
        scale=0.3,
        window=window,
    )


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("window", [None, 1, 11, 64])
def test_agrees_with_the_reference_in_every_layer(
    backend: AttentionBackend, batch: str, kv_heads: int, window: int | None
) -> None:
    query_lens, seq_lens = BATCHES[batch]
    metadata, first = step(query_lens, seq_lens, kv_heads)
    second = KVLayerCache(torch.randn_like(first.key), torch.randn_like(first.value))
    tokens = sum(query_lens)
    for cache in (first, second):
        query = torch.randn(tokens, HEADS, HEAD_DIM)
        key, value = torch.randn(2, tokens, kv_heads, HEAD_DIM)
        output = backend.forward(query, key, value, cache=cache, metadata=metadata, scale=0.3, window=window)
        assert torch.equal(cache.key.flatten(0, 1)[metadata.slot_mapping], key)
        assert torch.equal(cache.value.flatten(0, 1)[metadata.slot_mapping], value)
        assert (output - reference(query, cache, metadata, window)).abs().max() < 1e-5


@pytest.mark.parametrize("window", [None, 4])
def test_without_a_cache_the_step_is_the_context(backend: AttentionBackend, window: int | None) -> None:
    metadata, cache = step([5, 1, 9], [5, 1, 9], 2)
    query = torch.randn(15, HEADS, HEAD_DIM)
    key, value = torch.randn(2, 15, 2, HEAD_DIM)
    packed = backend.forward(query, key, value, cache=None, metadata=metadata, scale=0.3, window=window)
    paged = backend.forward(query, key, value, cache=cache, metadata=metadata, scale=0.3, window=window)
    assert (packed - paged).abs().max() < 1e-5


@pytest.mark.parametrize("window", [None, 20])
def test_tiled_bits_do_not_depend_on_neighbours_or_chunks(window: int | None) -> None:
    torch.manual_seed(0)
    backend = create_attention("sdpa", deterministic=True)
    lens = [150, 3, 90]
    query, keys, values = torch.randn(243, 6, 16), torch.randn(243, 2, 16), torch.randn(243, 2, 16)
    metadata, cache = step(lens, lens, 2)
    together = backend.forward(query, keys, values, cache=cache, metadata=metadata, scale=0.3, window=window)
    for sizes in ([150], [64, 86], [1] * 150, [13] * 11 + [7]):
        done, parts = 0, []
        alone, alone_cache = step([150], [150], 2)
        for size in sizes:
            here = slice(done, done + size)
            done += size
            chunk = AttentionMetadata(
                query_start=torch.tensor([0, size], dtype=torch.int32),
                seq_lens=torch.tensor([done], dtype=torch.int32),
                block_tables=alone.block_tables,
                slot_mapping=alone.slot_mapping[here],
                query_lens_list=[size],
                seq_lens_list=[done],
                block_size=BLOCK,
            )
            parts.append(
                backend.forward(
                    query[here],
                    keys[here],
                    values[here],
                    cache=alone_cache,
                    metadata=chunk,
                    scale=0.3,
                    window=window,
                )
            )
        assert torch.equal(torch.cat(parts), together[:150]), sizes[:2]


def test_unknown_backend_lists_the_known() -> None:
    with pytest.raises(
        ConfigError, match=r"'paged' does not exist; choose one of .*sdpa, triton, flash_attn"
    ):
        create_attention("paged", deterministic=False)


def test_choice_of_backend_has_a_reason() -> None:
    def choice(preferred: str, block_size: int | None = 16, deterministic: bool = False) -> tuple[str, str]:
        return choose_attention(
            preferred,
            dtype=torch.float16,
            head_dim=64,
            block_size=block_size,
            deterministic=deterministic,
        )

    assert choice("sdpa")[0] == "sdpa"
    assert choice("triton", deterministic=True)[0] == "triton"
    name, reason = choice("triton")
    assert name == "triton" and "flash-attn reads KV blocks of 256 x n tokens, the cache has 16" in reason
