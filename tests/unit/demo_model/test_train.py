"""The training code on a tiny model: bits repeat, the loss falls, and what it writes is a model folder."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from local_mode.demo_model import demo_model_path
from local_mode.demo_model.muon import orthogonalised
from local_mode.demo_model.tokenizer import VOCAB_SIZE, train_tokenizer
from local_mode.demo_model.train import (
    WINDOW_LENGTHS,
    learning_rate_factor,
    llama_config,
    save_model,
    train,
    windows,
)

TOKENIZER = Tokenizer.from_file(str(demo_model_path() / "tokenizer.json"))
STEPS = 3


def trained(seed: int) -> tuple[LlamaForCausalLM, float]:
    torch.manual_seed(seed)
    config = llama_config(TOKENIZER)
    config.hidden_size = config.intermediate_size = 32
    config.num_hidden_layers = 1
    config.head_dim = 4
    model = LlamaForCausalLM(config)
    return model, train(model, windows(TOKENIZER, seed), steps=STEPS)


@pytest.fixture(scope="module")
def model_and_loss() -> tuple[LlamaForCausalLM, float]:
    return trained(3)


def test_the_same_seed_gives_the_same_bits_and_learns(model_and_loss: tuple[LlamaForCausalLM, float]) -> None:
    first, loss = model_and_loss
    second, _ = trained(3)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    # The smoothed loss starts at that of guessing.
    assert loss < torch.tensor(float(VOCAB_SIZE)).log()


def test_what_is_saved_loads_again(model_and_loss: tuple[LlamaForCausalLM, float], tmp_path: Path) -> None:
    model = model_and_loss[0]
    save_model(model, TOKENIZER, tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.bfloat16().float(), again.state_dict()[name]), name
    written = {path.name for path in tmp_path.iterdir()}
    embedded = {path.name for path in demo_model_path().iterdir() if path.suffix in {".json", ".safetensors"}}
    assert written == embedded
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_each_window_starts_a_document_and_has_its_length() -> None:
    for length, batch in zip(WINDOW_LENGTHS, islice(windows(TOKENIZER, 1), len(WINDOW_LENGTHS)), strict=True):
        assert batch.shape[1] == length + 1
        assert (batch[:, 0] == 0).all()


def test_the_learning_rate_rises_stays_and_falls_to_almost_nothing() -> None:
    factors = [learning_rate_factor(step, 100) for step in range(100)]
    assert factors[0] == 0.25 and factors[4:51] == [1.0] * 47
    assert factors[-1] == pytest.approx(0.02)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 24, 8), (2, 8, 24)])
def test_orthogonalised_updates_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.linalg.svdvals(orthogonalised(torch.randn(shape, generator=generator)))
    assert values.max() < 1.3 and values.median() > 0.6


def test_too_little_text_for_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="train on more documents"):
        train_tokenizer(["only a few words"])
