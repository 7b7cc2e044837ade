"""In deterministic runs a sequence has the same bits alone, beside any neighbours, and in any chunks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from serving.kernels.cpu.native import library
from serving.models.registry import Model
from tests.models.checkpoints import VOCAB_SIZE, write_checkpoint
from tests.models.harness import PagedHarness, load, random_tokens

PROMPT, STEPS = 37, 6
TOKENS = random_tokens(PROMPT + STEPS, VOCAB_SIZE, seed=11)


@pytest.fixture(scope="module", params=["compiled", "torch"])
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        if request.param == "torch":
            monkeypatch.setattr(library, "load", lambda: None)
        yield


@pytest.fixture(scope="module", params=["llama3", "mistral", "qwen3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kernels: None) -> Model:
    folder: Path = tmp_path_factory.mktemp(request.param)
    write_checkpoint(request.param, folder)
    return load(folder, deterministic=True)


@pytest.fixture(scope="module")
def alone(model: Model) -> Tensor:
    return PagedHarness(model).run(TOKENS, [PROMPT, 1])


@pytest.mark.parametrize("num_rows", [2, 5, 16, 33])
def test_neighbours(model: Model, alone: Tensor, num_rows: int) -> None:
    harness = PagedHarness(model, num_rows=num_rows, max_tokens=96)
    mine = num_rows // 2
    lens = {row: 1 + (7 * row) % 41 for row in range(num_rows)} | {mine: PROMPT}
    chunks = {row: random_tokens(length, VOCAB_SIZE, seed=row) for row, length in lens.items()}
    logits = harness.step(chunks | {mine: TOKENS[:PROMPT]})
    assert logits is not None
    start = sum(lens[row] for row in range(mine))
    assert torch.equal(logits[start : start + PROMPT], alone[:PROMPT])
    for step in range(STEPS):
        logits = harness.step({row: [step] for row in range(num_rows)} | {mine: [TOKENS[PROMPT + step]]})
        assert logits is not None
        assert torch.equal(logits[mine], alone[PROMPT + step])


@pytest.mark.parametrize("chunks", [[1], [7], [16], [PROMPT + STEPS]], ids=str)
def test_chunks(model: Model, alone: Tensor, chunks: list[int]) -> None:
    assert torch.equal(PagedHarness(model).run(TOKENS, chunks), alone)
