"""The oracle: greedy continuations of the fixed prompts by transformers, with their log-probabilities and top-2 gaps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from serving.text.tokenizer import Tokenizer
from tests.promises.prompts import PROMPTS

NUM_TOKENS = 32


@dataclass(frozen=True)
class Expected:
    prompt: str
    prompt_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    prompt_logprobs: list[float]
    smallest_gap: float


@pytest.fixture(scope="session")
def num_prompts(full: bool) -> int:
    return 50 if full else 10


@pytest.fixture(scope="session")
def expected(demo_model_dir: Path, num_prompts: int) -> list[Expected]:
    """Spread over all kinds of prompts when there are fewer than all."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(demo_model_dir, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_dir(demo_model_dir)
    chosen = [PROMPTS[index * len(PROMPTS) // num_prompts] for index in range(num_prompts)]
    return [_continue(model, tokenizer, prompt) for prompt in chosen]


@torch.inference_mode()
def _continue(model: torch.nn.Module, tokenizer: Tokenizer, prompt: str) -> Expected:
    ids = tokenizer.encode(prompt)
    inputs = torch.tensor([ids])
    output = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    token_ids = output.sequences[0, len(ids) :].tolist()
    logits = torch.cat(output.logits).float()
    top = logits.topk(2, dim=-1).values
    logprobs = torch.log_softmax(logits, -1).gather(-1, torch.tensor(token_ids).unsqueeze(-1)).squeeze(-1)
    prompt_logits = torch.log_softmax(model(inputs).logits[0, :-1].float(), -1)
    prompt_logprobs = prompt_logits.gather(-1, inputs[0, 1:].unsqueeze(-1)).squeeze(-1)
    return Expected(
        prompt=prompt,
        prompt_ids=ids,
        token_ids=token_ids,
        logprobs=logprobs.tolist(),
        prompt_logprobs=prompt_logprobs.tolist(),
        smallest_gap=float((top[:, 0] - top[:, 1]).min()),
    )
