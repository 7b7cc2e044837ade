"""The arithmetic of the GPU benchmark, which needs no GPU."""

from __future__ import annotations

import pytest

from benchmarks.floor import Ceilings, Job, decode_step_s, jobs_s, prefill_s
from benchmarks.gpu.models import SHAPES
from benchmarks.gpu.run import _outcomes
from benchmarks.gpu.summary import compare
from benchmarks.gpu.workloads import FULL, mix

LLAMA, QWEN = SHAPES["llama-3.1-8b"], SHAPES["qwen3-0.6b"]


def test_shapes_are_the_real_models() -> None:
    assert LLAMA.body_parameters + 2 * LLAMA.head_parameters == pytest.approx(8.03e9, rel=1e-3)
    assert QWEN.body_parameters + QWEN.head_parameters == pytest.approx(0.596e9, rel=1e-3)
    assert (LLAMA.kv_bytes_per_token, QWEN.kv_bytes_per_token) == (128 * 1024, 112 * 1024)


@pytest.mark.parametrize(
    ("batch", "context", "expected_ms"),
    [(1, 256, 5.01), (32, 1024, 6.43), (256, 256, 7.87), (256, 1024, 16.46)],
)
def test_decode_reads_weights_and_cache_once(batch: int, context: int, expected_ms: float) -> None:
    assert 1e3 * decode_step_s(LLAMA, Ceilings(), batch=batch, context=context) == pytest.approx(
        expected_ms, abs=0.01
    )


def test_prefill_is_bound_by_weights_or_by_arithmetic() -> None:
    assert 1e3 * prefill_s(LLAMA, Ceilings(), tokens=128) == pytest.approx(5.0, abs=0.01)
    assert 1e3 * prefill_s(LLAMA, Ceilings(), tokens=8192) == pytest.approx(164.9, abs=0.1)


def test_the_mix_has_the_token_counts_of_the_published_benchmark() -> None:
    prompts, outputs = mix(FULL)
    assert (sum(map(len, prompts)), sum(outputs)) == (142_827, 133_966)
    jobs = [Job(len(prompt), output) for prompt, output in zip(prompts, outputs, strict=True)]
    assert sum(outputs) / jobs_s(QWEN, Ceilings(), jobs) == pytest.approx(25_784, abs=10)


def test_ratios_say_how_much_faster_we_are() -> None:
    name = "qwen3-0.6b"
    parts = {
        f"engine.{name}": {"results": {"decode.1@128.step_ms": 1.0, "mix.tokens_per_s": 300.0}},
        f"transformers.{name}": {"results": {"decode.1@128.step_ms": 4.0, "mix.tokens_per_s": 100.0}},
    }
    rows = {row["measure"]: row for row in compare(parts)[name]}
    assert rows["decode.1@128.step_ms"]["ratio"] == 4.0
    assert rows["mix.tokens_per_s"]["ratio"] == 3.0
    assert 0.0 < rows["decode.1@128.step_ms"]["ours_share_of_floor"] < 1.0
    assert rows["decode.32@128.step_ms"]["ratio"] is None


def test_outcomes_are_read_from_a_log_that_was_cut_short() -> None:
    log = (
        "tests/gpu/test_a.py::test_x[1-2] PASSED   [ 10%]\n"
        "tests/gpu/test_a.py::test_y FAILED   [ 20%]\n"
        "[gw0] [ 30%] PASSED tests/gpu/test_b.py::test_z[a b] \n"
        "[gw1] [ 40%] ERROR tests/gpu/test_b.py::test_w \n"
        "tests/gpu/test_c.py::test_v "
    )
    assert _outcomes(log) == {
        "passed": 2,
        "failed": 1,
        "error": 1,
        "names": ["tests/gpu/test_a.py::test_y", "tests/gpu/test_b.py::test_w"],
    }
