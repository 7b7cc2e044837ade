"""Promise (a): in fp32 on CPU, greedy output is that of transformers, token for token, whatever happens around it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import LLM, RequestOutput, SamplingParams
from tests.promises.conftest import NUM_TOKENS, Expected

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=NUM_TOKENS)


def _generate(llm: LLM, expected: list[Expected]) -> list[RequestOutput]:
    return llm.generate([one.prompt for one in expected], GREEDY, progress=False)


def _assert_equal(outputs: list[RequestOutput], expected: list[Expected]) -> None:
    for output, one in zip(outputs, expected, strict=True):
        assert output.prompt_token_ids == one.prompt_ids, one.prompt
        assert output.token_ids == one.token_ids, one.prompt


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    """With the defaults, for what asks for nothing else."""
    with LLM("demo", device="cpu", num_threads=1) as llm:
        yield llm


def test_every_top_2_gap_is_wide_enough_to_compare(expected: list[Expected]) -> None:
    """Below a gap of 1e-3 two right implementations may differ; then the prompt, not the engine, must change."""
    assert {one.prompt: one.smallest_gap for one in expected if one.smallest_gap < 1e-3} == {}


def test_equals_transformers_with_logprobs(llm: LLM, expected: list[Expected]) -> None:
    outputs = _generate(llm, expected)
    _assert_equal(outputs, expected)
    for output, one in zip(outputs, expected, strict=True):
        assert output.logprobs == pytest.approx(one.logprobs, abs=1e-4), one.prompt


def test_prompt_logprobs_equal_transformers(expected: list[Expected]) -> None:
    params = SamplingParams(temperature=0.0, max_new_tokens=2, prompt_logprobs=True)
    with LLM("demo", device="cpu", num_threads=1, max_batch_prefill_tokens=7) as llm:
        for one in expected[:10]:
            output = llm.generate(one.prompt, params, progress=False)[0]
            assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
            assert output.prompt_logprobs[1:] == pytest.approx(one.prompt_logprobs, abs=1e-4), one.prompt


@pytest.mark.parametrize("max_batch_prefill_tokens", [1, 7, 64, 2048])
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_chunk_size_and_prefix_cache_change_nothing(
    expected: list[Expected], max_batch_prefill_tokens: int, prefix_caching: bool
) -> None:
    options = {
        "max_batch_prefill_tokens": max_batch_prefill_tokens,
        "prefix_caching": prefix_caching,
        "block_size": 4,
    }
    with LLM("demo", device="cpu", num_threads=1, **options) as llm:
        _assert_equal(_generate(llm, expected), expected)
        again = _generate(llm, expected)
        _assert_equal(again, expected)
        hits = sum(output.num_cached_tokens for output in again)
        assert (hits > 0) == prefix_caching


def test_neighbours_change_nothing(llm: LLM, expected: list[Expected], full: bool) -> None:
    """Each prompt alone, and each among 32 others of random tokens, lengths and ways of sampling."""
    rng = random.Random(7)
    for one in expected if full else expected[::2]:
        alone = llm.generate(one.prompt, GREEDY, progress=False)
        _assert_equal(alone, [one])
        neighbours = [[rng.randrange(10, 500) for _ in range(rng.randrange(1, 90))] for _ in range(32)]
        ways = [
            SamplingParams(
                temperature=rng.choice([0.0, 1.2]), max_new_tokens=rng.randrange(1, 24), seed=index
            )
            for index in range(32)
        ]
        place = rng.randrange(33)
        prompts = [*neighbours[:place], one.prompt_ids, *neighbours[place:]]
        together = llm.generate(prompts, [*ways[:place], GREEDY, *ways[place:]], progress=False)
        _assert_equal([together[place]], [one])


def test_preemption_changes_nothing(expected: list[Expected]) -> None:
    longest = max(len(one.prompt_ids) for one in expected) + NUM_TOKENS
    options = {"max_batch_total_tokens": 2 * longest, "max_total_tokens": longest, "block_size": 4}
    with LLM("demo", device="cpu", num_threads=1, prefix_caching=False, **options) as llm:
        _assert_equal(_generate(llm, expected), expected)
        assert llm.stats().num_preemptions > 0


def test_two_ranks_change_nothing(expected: list[Expected]) -> None:
    with LLM("demo", device="cpu", num_threads=1, num_ranks=2) as llm:
        assert llm.ready.num_ranks == 2
        outputs = _generate(llm, expected)
    _assert_equal(outputs, expected)
    for output, one in zip(outputs, expected, strict=True):
        assert output.logprobs == pytest.approx(one.logprobs, abs=1e-4), one.prompt


@pytest.mark.parametrize("options", [{"decode_graphs": False}, {"async_scheduling": "on"}], ids=str)
def test_captured_and_overlapped_steps_change_nothing(
    expected: list[Expected], options: dict[str, object]
) -> None:
    with LLM("demo", device="cpu", num_threads=1, **options) as llm:  # type: ignore[arg-type]
        _assert_equal(_generate(llm, expected), expected)


def test_streaming_changes_nothing(llm: LLM, expected: list[Expected]) -> None:
    for one, whole in zip(expected, _generate(llm, expected), strict=True):
        assert "".join(llm.stream(one.prompt, GREEDY)) == whole.text


def test_a_restart_changes_nothing(expected: list[Expected], demo_model_dir: Path) -> None:
    outputs = []
    for _ in range(2):
        with LLM(demo_model_dir, device="cpu", num_threads=1) as llm:
            outputs.append([(one.token_ids, one.logprobs) for one in _generate(llm, expected)])
    assert outputs[0] == outputs[1]
