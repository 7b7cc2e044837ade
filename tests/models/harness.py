"""A paged cache and hand-made step metadata: runs a model below the worker, one packed step at a time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from serving.contracts import AttentionMetadata, ForwardContext, KVLayerCache
from serving.distributed import ParallelContext
from serving.models.registry import Model, load_model
from serving.platform import get_device

BLOCK_SIZE = 16


def load(folder: Path, *, deterministic: bool = False, parallel: ParallelContext | None = None) -> Model:
    return load_model(
        folder,
        dtype=torch.float32,
        device=get_device("cpu"),
        parallel=parallel or ParallelContext.single(),
        deterministic=deterministic,
    )


class PagedHarness:
    """Sequences are rows; each owns blocks scattered over the cache by a seeded shuffle. Block 0 is padding."""

    def __init__(
        self, model: Model, *, num_rows: int = 1, max_tokens: int = 256, block_size: int = BLOCK_SIZE
    ) -> None:
        self.model = model
        self._block_size = block_size
        blocks_per_row = -(-max_tokens // block_size)
        num_blocks = 1 + num_rows * blocks_per_row
        generator = torch.Generator().manual_seed(7)
        self._tables = (torch.randperm(num_blocks - 1, generator=generator) + 1).view(
            num_rows, blocks_per_row
        )
        self._lens = [0] * num_rows
        specs = {spec.name: spec for spec in model.kv_groups}
        self._caches = []
        for group in model.layer_groups:
            spec = specs[group]
            shape = (num_blocks, block_size, spec.num_kv_heads, spec.head_dim)
            self._caches.append(
                KVLayerCache(
                    torch.full(shape, 3.0, dtype=spec.dtype), torch.full(shape, 3.0, dtype=spec.dtype)
                )
            )

    def metadata(self, rows: list[int], lens: list[int]) -> AttentionMetadata:
        """For a step that adds `lens[i]` tokens to `rows[i]`."""
        seq_lens = [self._lens[row] + length for row, length in zip(rows, lens, strict=True)]
        slots = []
        for row, length, seq_len in zip(rows, lens, seq_lens, strict=True):
            positions = torch.arange(seq_len - length, seq_len)
            blocks = self._tables[row][positions // self._block_size]
            slots.append(blocks * self._block_size + positions % self._block_size)
        num_blocks = -(-max(seq_lens) // self._block_size)
        tables = torch.zeros(len(rows), num_blocks, dtype=torch.int32)
        for index, (row, seq_len) in enumerate(zip(rows, seq_lens, strict=True)):
            used = -(-seq_len // self._block_size)
            tables[index, :used] = self._tables[row, :used].int()
        return AttentionMetadata(
            query_start=torch.tensor([0, *torch.tensor(lens).cumsum(0).tolist()], dtype=torch.int32),
            seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
            block_tables=tables,
            slot_mapping=torch.cat(slots),
            query_lens_list=list(lens),
            seq_lens_list=seq_lens,
            block_size=self._block_size,
        )

    @torch.inference_mode()
    def step(self, chunks: dict[int, list[int]], *, wanted: list[int] | None = None) -> Tensor | None:
        """Compute the next tokens of each row; logits [T, vocab_size] in order, on rank 0: of all, or of those `wanted`."""
        rows, lens = list(chunks), [len(tokens) for tokens in chunks.values()]
        positions = torch.cat(
            [
                torch.arange(self._lens[row], self._lens[row] + length)
                for row, length in zip(rows, lens, strict=True)
            ]
        )
        context = ForwardContext(
            attention={spec.name: self.metadata(rows, lens) for spec in self.model.kv_groups},
            caches=self._caches,
            wanted=None if wanted is None else torch.tensor(wanted),
        )
        tokens = torch.tensor([token for chunk in chunks.values() for token in chunk])
        hidden = self.model.forward(tokens, positions, context)
        for row, length in zip(rows, lens, strict=True):
            self._lens[row] += length
        return self.model.compute_logits(hidden)

    def run(self, tokens: list[int], chunk_sizes: list[int], *, row: int = 0) -> Tensor:
        """Logits of all `tokens` of one row, computed in chunks; the last size repeats to the end."""
        outputs, start = [], 0
        while start < len(tokens):
            size = chunk_sizes[min(len(outputs), len(chunk_sizes) - 1)]
            logits = self.step({row: tokens[start : start + size]})
            assert logits is not None
            outputs.append(logits)
            start += size
        return torch.cat(outputs)


def random_tokens(count: int, vocab_size: int, *, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (count,), generator=generator).tolist()
