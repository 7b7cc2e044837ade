"""The sampler's kernels on the GPU against the torch sampler on the CPU, at the vocabularies that models have."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from serving.contracts import SamplerSteps
from serving.kernels.triton.sampler_launch import TritonSampler
from serving.sampling.device_params import DeviceParams
from serving.sampling_params import SamplingParams
from tests.gpu.sampler_cases import Case, run, worst_score

pytestmark = pytest.mark.gpu

CASES = [
    Case(vocab, rows, seed=seed, ties=seed % 2 == 1, spread=spread)
    for seed, (vocab, rows, spread) in enumerate(
        [(2048, 64, 3.0), (8192, 64, 1.0), (32_000, 64, 3.0), (128_256, 33, 3.0), (151_936, 16, 12.0), (262_144, 8, 3.0)]
    )
]  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [*CASES, Case(128_256, 64, greedy=True), Case(32_000, 16, seed=9, coarse=True)],
    ids=str,
)
def test_choices_are_those_of_the_torch_sampler(case: Case) -> None:
    assert run(case, "cuda") == []


@pytest.mark.parametrize("vocab", [2048, 128_256, 262_144])
def test_scores(vocab: int) -> None:
    assert worst_score(vocab, "cuda") < 3e-6


def test_a_captured_launch_follows_its_tensors() -> None:
    device = torch.device("cuda")
    rows, vocab = 4, 32_000
    sampler = TritonSampler(rows, vocab, device)
    params = DeviceParams(rows)
    for row in range(rows):
        params.write(row, SamplingParams(temperature=0.9, top_k=40, top_p=0.9), seed=row)
    table = torch.from_numpy(params.lines(np.arange(rows), [0] * rows)).to(device)
    logits = torch.randn(rows, vocab, device=device)
    steps = SamplerSteps(draws=True, top_k=True, top_p=True)
    sampler.launch(logits, table, steps)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sampler.launch(logits, table, steps)
    for position in range(3):
        logits.copy_(torch.randn(rows, vocab, device=device))
        table.copy_(torch.from_numpy(params.lines(np.arange(rows), [position] * rows)))
        graph.replay()
        replayed = captured.ids.clone()
        assert torch.equal(sampler.launch(logits, table, steps).ids, replayed)
