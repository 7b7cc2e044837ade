from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from serving.models.registry import Model
from tests.models.checkpoints import VOCAB_SIZE, configs, write_checkpoint
from tests.models.harness import PagedHarness, load, random_tokens

LENGTH = 90
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=sorted(configs()))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Model, Tensor, list[int]]:
    """Our model, and transformers' logits of one random prompt."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    reference = write_checkpoint(request.param, folder)
    tokens = random_tokens(LENGTH, VOCAB_SIZE, seed=3)
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens])).logits[0]
    return load(folder), expected, tokens


def test_logits_are_not_degenerate(pair: tuple[Model, Tensor, list[int]]) -> None:
    _, expected, _ = pair
    assert expected.std() > 0.3
    assert len(set(expected.argmax(-1).tolist())) > LENGTH // 6


@pytest.mark.parametrize("chunks", [[LENGTH], [37], [1], [64, 1], [5, 30, 1, 1, 17, 16]], ids=str)
def test_whole_chunked_and_decoded(pair: tuple[Model, Tensor, list[int]], chunks: list[int]) -> None:
    model, expected, tokens = pair
    logits = PagedHarness(model).run(tokens, chunks)
    assert (logits - expected).abs().max() < TOLERANCE


def test_mixed_batches(pair: tuple[Model, Tensor, list[int]]) -> None:
    model, expected, tokens = pair
    harness = PagedHarness(model, num_rows=4)
    harness.step({1: tokens[:40], 3: tokens[:7]})
    logits = harness.step({0: tokens[:50], 1: tokens[40:41], 2: tokens[:1], 3: tokens[7:33]})
    assert logits is not None
    wanted = torch.cat((expected[:50], expected[40:41], expected[:1], expected[7:33]))
    assert (logits - wanted).abs().max() < TOLERANCE
    logits = harness.step({0: tokens[50:51], 1: tokens[41:42], 2: tokens[1:2], 3: tokens[33:34]})
    assert logits is not None
    assert (logits - expected[[50, 41, 1, 33]]).abs().max() < TOLERANCE


def test_only_wanted_tokens(pair: tuple[Model, Tensor, list[int]]) -> None:
    """What nobody wants is not computed to its end, and is in the cache for those who come later."""
    model, expected, tokens = pair
    harness = PagedHarness(model, num_rows=4)
    harness.step({0: tokens[:40]}, wanted=[0])
    logits = harness.step({0: tokens[40:60], 1: tokens[:30], 2: tokens[:1]}, wanted=[19, 49, 50])
    assert logits is not None
    assert logits.shape == (3, VOCAB_SIZE)
    assert (logits - expected[[59, 29, 0]]).abs().max() < TOLERANCE
    logits = harness.step({0: tokens[60:], 1: tokens[30:31]})
    assert logits is not None
    assert (logits - torch.cat((expected[60:], expected[30:31]))).abs().max() < TOLERANCE
