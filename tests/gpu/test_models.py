"""Tiny random models of every family on the GPU, against transformers there and against our CPU path."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from serving.contracts import AttentionMetadata, ForwardContext, KVLayerCache
from serving.distributed import ParallelContext
from serving.models.registry import Model, load_model
from serving.platform import get_device
from tests.models.checkpoints import VOCAB_SIZE, configs, write_checkpoint
from tests.models.harness import PagedHarness, random_tokens

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
LENGTH = 90
FLOAT32_TOLERANCE = 1e-4  # largest difference of a logit
RELATIVE_TOLERANCE = 3e-2  # || difference || / || expected ||, for the 16-bit types
HALF_TYPES = (torch.bfloat16, torch.float16)
CHUNKS = ([LENGTH], [37], [64, 1], [5, 30, 1, 1, 17, 16])


@dataclass(slots=True)
class Family:
    folder: Path
    tokens: list[int]
    reference: Any

    def transformers_logits(self, dtype: torch.dtype) -> Tensor:
        """On the GPU, in `dtype`; [LENGTH, vocab_size] float32 on the CPU."""
        model = copy.deepcopy(self.reference).to(DEVICE, dtype)
        with torch.inference_mode():
            return model(torch.tensor([self.tokens], device=DEVICE)).logits[0].float().cpu()


class DeviceHarness(PagedHarness):
    """The paged harness with cache and inputs on the GPU."""

    def __init__(self, model: Model, *, num_rows: int = 1, max_tokens: int = 256) -> None:
        super().__init__(model, num_rows=num_rows, max_tokens=max_tokens)
        self._caches = [KVLayerCache(cache.key.to(DEVICE), cache.value.to(DEVICE)) for cache in self._caches]

    @torch.inference_mode()
    def step(self, chunks: dict[int, list[int]]) -> Tensor | None:
        rows, lens = list(chunks), [len(tokens) for tokens in chunks.values()]
        starts = [self._lens[row] for row in rows]
        positions = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, lens, strict=True)])
        context = ForwardContext(
            attention={spec.name: _to_device(self.metadata(rows, lens)) for spec in self.model.kv_groups},
            caches=self._caches,
        )
        tokens = torch.tensor([token for chunk in chunks.values() for token in chunk])
        hidden = self.model.forward(tokens.to(DEVICE), positions.to(DEVICE), context)
        for row, length in zip(rows, lens, strict=True):
            self._lens[row] += length
        logits = self.model.compute_logits(hidden)
        return None if logits is None else logits.cpu()


def _to_device(metadata: AttentionMetadata) -> AttentionMetadata:
    return AttentionMetadata(
        query_start=metadata.query_start.to(DEVICE),
        seq_lens=metadata.seq_lens.to(DEVICE),
        block_tables=metadata.block_tables.to(DEVICE),
        slot_mapping=metadata.slot_mapping.to(DEVICE),
        query_lens_list=metadata.query_lens_list,
        seq_lens_list=metadata.seq_lens_list,
        block_size=metadata.block_size,
    )


def _load(
    folder: Path,
    dtype: torch.dtype,
    *,
    device: str = DEVICE,
    backend: str | None = None,
    deterministic: bool = False,
) -> Model:
    return load_model(
        folder,
        dtype=dtype,
        device=get_device(device),  # type: ignore[arg-type]
        parallel=ParallelContext.single(),
        deterministic=deterministic,
        attention_backend=backend,
    )


def _relative(logits: Tensor, expected: Tensor) -> float:
    return ((logits - expected).norm() / expected.norm()).item()


@pytest.fixture(scope="module", params=sorted(configs()))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder: Path = tmp_path_factory.mktemp(request.param)
    reference = write_checkpoint(request.param, folder)
    return Family(folder, random_tokens(LENGTH, VOCAB_SIZE, seed=3), reference)


def test_float32_equals_transformers_and_our_cpu_path(family: Family) -> None:
    expected = family.transformers_logits(torch.float32)
    model = _load(family.folder, torch.float32)
    on_cpu = PagedHarness(_load(family.folder, torch.float32, device="cpu")).run(family.tokens, [LENGTH])
    assert (on_cpu - expected).abs().max() < FLOAT32_TOLERANCE
    for chunks in CHUNKS:
        logits = DeviceHarness(model).run(family.tokens, chunks)
        assert (logits - expected).abs().max() < FLOAT32_TOLERANCE, f"chunks {chunks}"


def test_mixed_batches_in_float32(family: Family) -> None:
    expected = family.transformers_logits(torch.float32)
    tokens = family.tokens
    harness = DeviceHarness(_load(family.folder, torch.float32), num_rows=4)
    harness.step({1: tokens[:40], 3: tokens[:7]})
    logits = harness.step({0: tokens[:50], 1: tokens[40:41], 2: tokens[:1], 3: tokens[7:33]})
    wanted = torch.cat((expected[:50], expected[40:41], expected[:1], expected[7:33]))
    assert logits is not None
    assert (logits - wanted).abs().max() < FLOAT32_TOLERANCE


@pytest.mark.parametrize("dtype", HALF_TYPES, ids=str)
def test_half_types_stay_close_to_transformers(family: Family, dtype: torch.dtype) -> None:
    exact = PagedHarness(_load(family.folder, torch.float32, device="cpu")).run(family.tokens, [LENGTH])
    theirs = family.transformers_logits(dtype)
    model = _load(family.folder, dtype)
    for chunks in ([LENGTH], [64, 1]):
        logits = DeviceHarness(model).run(family.tokens, chunks)
        assert bool(logits.isfinite().all())
        assert _relative(logits, theirs) < RELATIVE_TOLERANCE, f"chunks {chunks}"
        # Not further from the exact logits than transformers' own rounding takes it.
        assert _relative(logits, exact) < max(1.5 * _relative(theirs, exact), 0.5 * RELATIVE_TOLERANCE)


def test_the_torch_backend_agrees_in_bfloat16(family: Family) -> None:
    logits = [
        DeviceHarness(_load(family.folder, torch.bfloat16, backend=backend)).run(family.tokens, [50, 20, 1])
        for backend in ("triton", "sdpa")
    ]
    assert _relative(logits[0], logits[1]) < RELATIVE_TOLERANCE
