"""A seed means the same tokens alone, in any batch, and after a restart."""

from __future__ import annotations

import random

import pytest

from serving import LLM, SamplingParams

WAYS = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 20},
    {"temperature": 1.3, "top_p": 0.9},
    {"temperature": 1.0, "typical_p": 0.8},
    {"temperature": 0.9, "repetition_penalty": 1.2, "relative_frequency_penalty": 0.3},
    {"temperature": 1.1, "top_k": 50, "top_p": 0.95},
]


def _params(seed: int) -> SamplingParams:
    return SamplingParams(max_new_tokens=24, seed=seed, **WAYS[seed % len(WAYS)])


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_same_tokens_alone_in_a_batch_and_after_a_restart(full: bool, prefix_caching: bool) -> None:
    count = 1000 if full else 48
    rng = random.Random(1)
    prompts = [
        rng.choice(["Once upon a time", "The old fox", "7 + 5 =", "One morning"]) for _ in range(count)
    ]
    params = [_params(seed) for seed in range(count)]
    with LLM("demo", device="cpu", num_threads=1, prefix_caching=prefix_caching) as llm:
        together = [output.token_ids for output in llm.generate(prompts, params, progress=False)]
    with LLM("demo", device="cpu", num_threads=1, max_batch_prefill_tokens=16) as restarted:
        for index in range(0, count, 1 if full else 6):
            alone = restarted.generate([prompts[index]], params[index], progress=False)[0]
            assert alone.token_ids == together[index], (prompts[index], params[index])
    assert len({tuple(tokens) for tokens in together}) > count // 3, "seeds do not matter"


def test_a_group_draws_different_sequences_and_repeats_them() -> None:
    params = SamplingParams(temperature=1.2, max_new_tokens=16, seed=5, n=4)
    with LLM("demo", device="cpu", num_threads=1) as llm:
        first, second = (llm.generate("The old", params, progress=False)[0] for _ in range(2))
    texts = [sequence.text for sequence in first.sequences]
    assert texts == [sequence.text for sequence in second.sequences]
    assert len(set(texts)) > 1
    assert first.sequences[0].seed == 5 and len({sequence.seed for sequence in first.sequences}) == 4
