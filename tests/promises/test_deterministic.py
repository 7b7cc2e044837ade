"""Promise (b): with DETERMINISTIC=1 the bits of a row depend on its own tokens only."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from serving import LLM, SamplingParams

PARAMS = SamplingParams(temperature=0.0, max_new_tokens=12, top_n_tokens=3)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", device="cpu", num_threads=1, deterministic=True, max_batch_prefill_tokens=64) as llm:
        yield llm


def _prompts(count: int, rng: random.Random) -> list[list[int]]:
    return [[rng.randrange(10, 500) for _ in range(rng.randrange(1, 60))] for _ in range(count)]


@pytest.mark.timeout(1800)
def test_bits_are_equal_alone_and_in_batches(llm: LLM, full: bool) -> None:
    """Log-probabilities are compared with ==: one different bit fails."""
    sizes = range(2, 65) if full else (2, 5, 17)
    for size in sizes:
        rng = random.Random(size)
        prompts = _prompts(size, rng)
        together = llm.generate(prompts, PARAMS, progress=False)
        for index in rng.sample(range(size), min(size, 4)):
            alone = llm.generate([prompts[index]], PARAMS, progress=False)[0]
            assert together[index].token_ids == alone.token_ids
            assert together[index].logprobs == alone.logprobs
            assert together[index].top_tokens == alone.top_tokens


def test_bits_do_not_depend_on_chunks_or_cache() -> None:
    prompt = _prompts(1, random.Random(3))[0] * 4
    results = []
    for options in (
        {"max_batch_prefill_tokens": 7},
        {"max_batch_prefill_tokens": 512},
        {"prefix_caching": False},
    ):
        with LLM("demo", device="cpu", num_threads=1, deterministic=True, **options) as llm:
            for _ in range(2):
                results.append(llm.generate([prompt], PARAMS, progress=False)[0].logprobs)
    assert all(result == results[0] for result in results)
