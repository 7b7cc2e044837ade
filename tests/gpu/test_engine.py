"""The engine on the GPU: what it generates is what the CPU generates."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch

from serving import LLM, RequestOutput, SamplingParams
from tests.promises.prompts import PROMPTS

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
NUM_TOKENS = 32
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=NUM_TOKENS, top_n_tokens=2)
MIN_GAP = 1e-3
WAYS = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 20},
    {"temperature": 1.3, "top_p": 0.9},
    {"temperature": 1.0, "typical_p": 0.8},
    {"temperature": 0.9, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
]


@pytest.fixture(scope="module")
def on_cpu() -> list[RequestOutput]:
    with LLM("demo", device="cpu", dtype="float32") as llm:
        return llm.generate(PROMPTS, GREEDY, progress=False)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", device=DEVICE, dtype="float32", max_batch_total_tokens=32_768) as llm:
        yield llm


def _num_comparable(output: RequestOutput) -> int:
    """Tokens up to and without the first whose two best candidates are too close to call."""
    for index, top in enumerate(output.top_tokens):
        if len(top) < 2 or top[0].logprob - top[1].logprob < MIN_GAP:
            return index
    return len(output.token_ids)


def _assert_equal(outputs: list[RequestOutput], expected: list[RequestOutput]) -> None:
    compared = 0
    for output, wanted in zip(outputs, expected, strict=True):
        count = _num_comparable(wanted)
        assert output.token_ids[:count] == wanted.token_ids[:count], wanted.prompt_token_ids
        assert output.logprobs[:count] == pytest.approx(wanted.logprobs[:count], abs=1e-4)
        compared += count
    assert compared > 0.9 * sum(len(wanted.token_ids) for wanted in expected), "too many close calls"


def test_greedy_equals_the_cpu(llm: LLM, on_cpu: list[RequestOutput]) -> None:
    assert llm.ready.device == "cuda"
    _assert_equal(llm.generate(PROMPTS, GREEDY, progress=False), on_cpu)


def test_a_warm_prefix_cache_changes_nothing(llm: LLM, on_cpu: list[RequestOutput]) -> None:
    llm.generate(PROMPTS, GREEDY, progress=False)
    outputs = llm.generate(PROMPTS, GREEDY, progress=False)
    assert sum(output.num_cached_tokens for output in outputs) > 0
    _assert_equal(outputs, on_cpu)


def test_alone_equals_batched(llm: LLM, on_cpu: list[RequestOutput]) -> None:
    outputs = [llm.generate([prompt], GREEDY, progress=False)[0] for prompt in PROMPTS[::3]]
    _assert_equal(outputs, on_cpu[::3])


@pytest.mark.parametrize("options", [{"max_batch_prefill_tokens": 7}, {"prefix_caching": False}], ids=str)
def test_chunks_and_cache_change_nothing(on_cpu: list[RequestOutput], options: dict[str, int]) -> None:
    with LLM("demo", device=DEVICE, dtype="float32", **options) as llm:
        _assert_equal(llm.generate(PROMPTS, GREEDY, progress=False), on_cpu)


def test_preemption_changes_nothing(on_cpu: list[RequestOutput]) -> None:
    longest = max(len(output.prompt_token_ids) for output in on_cpu) + NUM_TOKENS
    capacity = {"max_batch_total_tokens": 2 * longest, "max_total_tokens": longest, "prefix_caching": False}
    with LLM("demo", device=DEVICE, dtype="float32", **capacity) as llm:
        outputs = llm.generate(PROMPTS, GREEDY, progress=False)
        assert llm.stats().num_preemptions > 0
    _assert_equal(outputs, on_cpu)


def test_a_seed_gives_the_tokens_of_the_cpu(llm: LLM) -> None:
    params = [
        SamplingParams(max_new_tokens=24, seed=seed, **WAYS[seed % len(WAYS)]) for seed in range(len(PROMPTS))
    ]
    with LLM("demo", device="cpu", dtype="float32") as cpu:
        expected = [output.token_ids for output in cpu.generate(PROMPTS, params, progress=False)]
    together = [output.token_ids for output in llm.generate(PROMPTS, params, progress=False)]
    assert together == expected
    for index in range(0, len(PROMPTS), 7):
        alone = llm.generate([PROMPTS[index]], params[index], progress=False)[0]
        assert alone.token_ids == expected[index]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_run_and_repeat(dtype: str, on_cpu: list[RequestOutput]) -> None:
    params = SamplingParams(temperature=0.0, max_new_tokens=64, ignore_eos=True)
    with LLM("demo", device=DEVICE, dtype=dtype) as llm:  # type: ignore[arg-type]
        first, second = (llm.generate(PROMPTS, params, progress=False) for _ in range(2))
    assert all(output.finish_reason == "length" and len(output.token_ids) == 64 for output in first)
    same = sum(a.token_ids == b.token_ids for a, b in zip(first, second, strict=True))
    agree = sum(a.token_ids[0] == b.token_ids[0] for a, b in zip(first, on_cpu, strict=True))
    assert same >= 0.8 * len(PROMPTS), "the second run meets a warm prefix cache, hence other chunks"
    assert agree >= 0.9 * len(PROMPTS), "first tokens rarely differ from float32's"


def test_a_float8_cache_holds_twice_as_much_and_answers_alike(on_cpu: list[RequestOutput]) -> None:
    params = SamplingParams(temperature=0.0, max_new_tokens=8, ignore_eos=True)
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    # So little that the caches are not what all running sequences could use: they would be the same.
    options = {"dtype": "bfloat16", "memory_fraction": 1.0 - (free_bytes - 0.8 * 2**30) / total_bytes}
    answers = []
    for mode in ("off", "on"):
        with LLM("demo", device=DEVICE, kv_cache_dtype="fp8_e4m3", async_scheduling=mode, **options) as llm:  # type: ignore[arg-type]
            answers.append([output.token_ids for output in llm.generate(PROMPTS, params, progress=False)])
            num_blocks = llm.ready.num_blocks
    with LLM("demo", device=DEVICE, **options) as llm:  # type: ignore[arg-type]
        assert num_blocks > 1.8 * llm.ready.num_blocks
    same = sum(a == b for a, b in zip(*answers, strict=True))
    agree = sum(ids[0] == wanted.token_ids[0] for ids, wanted in zip(answers[1], on_cpu, strict=True))
    assert same >= 0.9 * len(PROMPTS) and agree >= 0.8 * len(PROMPTS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deterministic_bits_do_not_depend_on_neighbours(dtype: str) -> None:
    rng = random.Random(2)
    prompts = [[rng.randrange(10, 500) for _ in range(rng.randrange(1, 60))] for _ in range(33)]
    params = SamplingParams(temperature=0.0, max_new_tokens=12, top_n_tokens=3)
    options = {"deterministic": True, "max_batch_prefill_tokens": 64}
    with LLM("demo", device=DEVICE, dtype=dtype, **options) as llm:  # type: ignore[arg-type]
        together = llm.generate(prompts, params, progress=False)
        for index in (0, 7, 20, 32):
            alone = llm.generate([prompts[index]], params, progress=False)[0]
            assert alone.token_ids == together[index].token_ids
            assert alone.logprobs == together[index].logprobs
