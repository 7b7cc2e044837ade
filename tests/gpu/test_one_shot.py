"""Sums over the ranks in one launch: processes on one GPU, which need no link, and whole engines where there are two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from serving import LLM, SamplingParams
from tests.kernels.test_one_shot import run_ranks

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("size", [2, 4])
def test_processes_on_one_gpu_get_the_sum_in_the_order_of_ranks(size: int, tmp_path: Path) -> None:
    """CUDA's handles, the compiled kernel and its memory order; the GPU runs the processes in turns."""
    for result in run_ranks(size, tmp_path, "cuda", 200, {}):
        assert result["wrong"] == []
        assert result["refused"]
        assert result["longest"] == size


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_give_the_tokens_of_one() -> None:
    """Greedy tokens of the demo model in float32, with captures, by NCCL and in one launch."""
    prompts = ["Once upon a time", "The cat", "A very small house"]
    params = SamplingParams(temperature=0.0, max_new_tokens=40)

    def tokens(num_ranks: int, one_shot: bool) -> list[list[int]]:
        options = {"num_ranks": num_ranks, "one_shot_all_reduce": one_shot}
        with LLM("demo", device="cuda", dtype="float32", **options) as llm:
            return [list(output.token_ids) for output in llm.generate(prompts, params, progress=False)]

    alone = tokens(1, False)
    assert tokens(2, False) == alone
    assert tokens(2, True) == alone
