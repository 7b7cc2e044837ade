"""Attention by the compiled CPU kernels against dense attention in float64: outputs begin as NaN, and what lies in the cache
beside a row's context is NaN too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from serving.attention.native import NativeAttention
from serving.contracts import AttentionMetadata, KVLayerCache
from serving.kernels.cpu.native import library, program
from serving.kernels.cpu.native.operations import NativeKernels

SHAPES = [
    (4, 4, 8),
    (8, 4, 64),
    (20, 4, 64),
    (7, 1, 80),
    (6, 3, 96),
    (8, 2, 128),
    (3, 1, 40),
    (16, 2, 24),
    (2, 1, 256),
]


@pytest.fixture(scope="module")
def native() -> NativeKernels:
    loaded = library.load()
    assert loaded is not None, "the suite needs a C compiler: the kernels would go untested"
    return NativeKernels(loaded)


@pytest.fixture(autouse=True)
def _poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "empty", lambda shape: torch.full(tuple(shape), float("nan")))


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@dataclass(slots=True)
class Case:
    """A batch over a cache whose blocks are shuffled; `contexts` are the keys and values of each row, in order."""

    query: Tensor
    cache: KVLayerCache
    metadata: AttentionMetadata
    contexts: list[tuple[Tensor, Tensor]]

    @property
    def new_keys(self) -> tuple[Tensor, Tensor]:
        rows = zip(self.contexts, self.metadata.query_lens_list, strict=True)
        sides = [(key[-length:], value[-length:]) for (key, value), length in rows]
        return torch.cat([key for key, _ in sides]), torch.cat([value for _, value in sides])

    def attend(self, native: NativeKernels, window: int | None, *, deterministic: bool = False) -> Tensor:
        key, value = self.new_keys
        self.metadata.scratch.clear()
        return NativeAttention(native, deterministic=deterministic).forward(
            self.query, key, value, cache=self.cache, metadata=self.metadata,
            scale=self.query.shape[2] ** -0.5, window=window,
        )  # fmt: skip


def build(
    shape: tuple[int, int, int], seq_lens: list[int], query_lens: list[int], block_size: int = 16
) -> Case:
    heads, kv_heads, head_dim = shape
    num_blocks = [-(-length // block_size) for length in seq_lens]
    order = torch.randperm(sum(num_blocks)).add(1).int().split(num_blocks)
    tables = torch.zeros(len(seq_lens), max(num_blocks) + 2, dtype=torch.int32)
    sides = [torch.full((sum(num_blocks) + 1, block_size, kv_heads, head_dim), float("nan")) for _ in "kv"]
    contexts, slots = [], []
    for row, (length, blocks) in enumerate(zip(seq_lens, order, strict=True)):
        tables[row, : len(blocks)] = blocks
        places = (blocks.long().unsqueeze(1) * block_size + torch.arange(block_size)).flatten()[:length]
        context = (torch.randn(length, kv_heads, head_dim), torch.randn(length, kv_heads, head_dim))
        for side, held in zip(sides, context, strict=True):
            side.flatten(0, 1)[places[: length - query_lens[row]]] = held[: length - query_lens[row]]
        contexts.append(context)
        slots.append(places[length - query_lens[row] :])
    metadata = AttentionMetadata(
        query_start=torch.tensor([0, *query_lens]).cumsum(0).int(),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        block_tables=tables,
        slot_mapping=torch.cat(slots),
        query_lens_list=query_lens,
        seq_lens_list=seq_lens,
        block_size=block_size,
    )
    query = 3 * torch.randn(sum(query_lens), heads, head_dim)
    return Case(query=query, cache=KVLayerCache(*sides), metadata=metadata, contexts=contexts)


def expected(case: Case, window: int | None) -> Tensor:
    """Dense attention in float64, one row after the other."""
    outputs = []
    queries = case.query.double().split(case.metadata.query_lens_list)
    for query, (key, value) in zip(queries, case.contexts, strict=True):
        group = query.shape[1] // key.shape[1]
        keys, values = (side.double().repeat_interleave(group, dim=1) for side in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, keys) * query.shape[2] ** -0.5
        positions = torch.arange(len(key) - len(query), len(key)).unsqueeze(1)
        hidden = torch.arange(len(key)) > positions
        if window is not None:
            hidden |= torch.arange(len(key)) <= positions - window
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(outputs)


def check(native: NativeKernels, case: Case, window: int | None) -> None:
    wanted = expected(case, window)
    for deterministic in (False, True):
        got = case.attend(native, window, deterministic=deterministic)
        torch.testing.assert_close(got.double(), wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("window", "block_size"), [(None, 16), (None, 3), (1, 32), (30, 16), (300, 3)])
def test_decode(
    native: NativeKernels, shape: tuple[int, int, int], window: int | None, block_size: int
) -> None:
    lengths = [[1], [257], [700], [33, 5, 256, 900], list(range(1, 80, 7))]
    for seq_lens in lengths:
        check(native, build(shape, seq_lens, [1] * len(seq_lens), block_size), window)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("window", "block_size"), [(None, 16), (None, 3), (1, 32), (30, 16), (300, 3)])
def test_prompts_chunks_and_decodes_together(
    native: NativeKernels, shape: tuple[int, int, int], window: int | None, block_size: int
) -> None:
    batches = [
        ([7], [7]), ([64], [64]), ([65], [2]), ([193], [130]), ([5, 300, 1, 90, 1], [5, 1, 1, 33, 1]),
        ([400, 66], [3, 64]),
    ]  # fmt: skip
    for seq_lens, query_lens in batches:
        check(native, build(shape, seq_lens, query_lens, block_size), window)


def test_long_contexts(native: NativeKernels) -> None:
    """Beyond the segments of equal length, and many tiles."""
    check(native, build((2, 1, 8), [5200, 17000, 3, 4097], [1, 1, 1, 1]), None)
    check(native, build((2, 1, 8), [5200, 1300], [50, 7]), None)


def test_bits_of_a_decode_do_not_depend_on_the_batch(native: NativeKernels) -> None:
    together = build((8, 4, 64), [700, 12, 300, 1025, 90, 4, 260, 512], [1] * 8)
    attended = together.attend(native, None)
    for row in range(8):
        assert torch.equal(_row(together, row).attend(native, None)[0], attended[row])
    torch.set_num_threads(1)
    assert torch.equal(together.attend(native, None), attended)


@pytest.mark.parametrize("window", [None, 40])
def test_bits_of_a_prompt_do_not_depend_on_its_chunks(native: NativeKernels, window: int | None) -> None:
    whole = build((6, 2, 64), [210], [210])
    attended = whole.attend(native, window)
    for first, end in ((0, 2), (2, 63), (63, 130), (130, 210)):
        chunk = _row(whole, 0, first, end)
        assert torch.equal(chunk.attend(native, window), attended[first:end])


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("shape", SHAPES)
def test_deterministic_bits_are_those_of_the_token(
    native: NativeKernels, shape: tuple[int, int, int], window: int | None
) -> None:
    """However many tokens of its row, and whatever rows, come with it."""
    together = build(shape, [130, 300, 1, 90], [130, 7, 1, 1])
    attended = together.attend(native, window, deterministic=True)
    for first, end in ((0, 1), (1, 2), (2, 63), (63, 64), (64, 65), (65, 129), (129, 130)):
        alone = _row(together, 0, first, end).attend(native, window, deterministic=True)
        assert torch.equal(alone, attended[first:end])
    for row, token in ((2, 137), (3, 138)):
        assert torch.equal(_row(together, row).attend(native, window, deterministic=True)[0], attended[token])
    decodes = build(shape, [300, 12, 700], [1, 1, 1])
    attended = decodes.attend(native, window, deterministic=True)
    torch.set_num_threads(1)
    for row in range(3):
        assert torch.equal(_row(decodes, row).attend(native, window, deterministic=True)[0], attended[row])


def _row(case: Case, row: int, first: int | None = None, end: int | None = None) -> Case:
    """A row of a case as a batch of its own, of it the tokens first ... end."""
    start = int(case.metadata.query_start[row])
    seq_len = case.metadata.seq_lens_list[row] if end is None else end
    length = 1 if first is None else seq_len - first
    begin = start if first is None else start + first
    key, value = case.contexts[row]
    metadata = AttentionMetadata(
        query_start=torch.tensor([0, length], dtype=torch.int32),
        seq_lens=torch.tensor([seq_len], dtype=torch.int32),
        block_tables=case.metadata.block_tables[row : row + 1],
        slot_mapping=case.metadata.slot_mapping[begin : begin + length],
        query_lens_list=[length],
        seq_lens_list=[seq_len],
        block_size=case.metadata.block_size,
    )
    return Case(
        query=case.query[begin : begin + length],
        cache=case.cache,
        metadata=metadata,
        contexts=[(key[:seq_len], value[:seq_len])],
    )
