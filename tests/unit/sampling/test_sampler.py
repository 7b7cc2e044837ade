"""Sampler against transformers' logits processors and against the distributions it claims to draw from."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from serving.kernels.dispatch import select_kernels
from serving.sampling import warpers
from serving.sampling.logprobs import top_tokens
from serving.sampling.sampler import Sampler, SamplingRow
from serving.sampling.uniform import Purpose, uniform
from serving.sampling_params import SamplingParams


def _row(
    params: SamplingParams, *, row: int = 0, seed: int = 1, token_ids: list[int] | None = None
) -> SamplingRow:
    ids = token_ids if token_ids is not None else [1, 2, 3]
    return SamplingRow(row=row, params=params, seed=seed, token_ids=ids, num_prompt_tokens=min(3, len(ids)))


def _logits(rows: int, vocab: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def test_greedy_takes_the_highest_logit_and_its_logprob() -> None:
    logits = _logits(3)
    expected = torch.log_softmax(logits, -1).max(-1)
    results = Sampler().sample(
        logits.clone(), [_row(SamplingParams(temperature=0.0), row=r) for r in range(3)]
    )
    assert [result.token_id for result in results] == expected.indices.tolist()
    assert [result.logprob for result in results] == pytest.approx(expected.values.tolist(), abs=1e-6)


@pytest.mark.parametrize("k", [1, 3, 40])
def test_top_k_is_transformers(k: int) -> None:
    logits = _logits(4)
    assert torch.equal(warpers.top_k(logits, torch.full((4,), k)), TopKLogitsWarper(k)(None, logits))


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.999])
def test_top_p_is_transformers(p: float) -> None:
    logits = _logits(8)
    assert torch.equal(warpers.top_p(logits, torch.full((8,), p)), TopPLogitsWarper(p)(None, logits))


@pytest.mark.parametrize("mass", [0.05, 0.5, 0.9, 0.99])
def test_typical_is_transformers(mass: float) -> None:
    logits = _logits(8)
    assert torch.equal(
        warpers.typical(logits, torch.full((8,), mass)), TypicalLogitsWarper(mass)(None, logits)
    )


def test_filters_compose_as_in_transformers_and_rows_do_not_mix() -> None:
    params = [
        SamplingParams(temperature=0.7, top_k=10, top_p=0.8, repetition_penalty=1.3),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=2.0, typical_p=0.6),
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.0, top_k=5),
    ]
    logits = _logits(5)
    ids = [5, 6, 7, 8, 9]
    rows = [_row(p, row=i, seed=i, token_ids=ids) for i, p in enumerate(params)]
    together = Sampler().sample(logits.clone(), rows)
    for index, param in enumerate(params):
        alone = Sampler().sample(logits[index : index + 1].clone(), [rows[index]])[0]
        assert alone.token_id == together[index].token_id
        expected = logits[index : index + 1].clone()
        if param.repetition_penalty != 1.0:
            expected = RepetitionPenaltyLogitsProcessor(param.repetition_penalty)(
                torch.tensor([ids]), expected
            )
        if not param.greedy:
            expected = TemperatureLogitsWarper(param.temperature)(None, expected)
        if param.top_k:
            expected = TopKLogitsWarper(param.top_k)(None, expected)
        if param.top_p < 1:
            expected = TopPLogitsWarper(param.top_p)(None, expected)
        if param.typical_p < 1:
            expected = TypicalLogitsWarper(param.typical_p)(None, expected)
        logprob = torch.log_softmax(expected, -1)[0, alone.token_id].item()
        assert math.isfinite(logprob), "drew a token that the filters remove"
        assert alone.logprob == pytest.approx(logprob, abs=1e-5)


@pytest.mark.parametrize(
    "params",
    [SamplingParams(temperature=0.8), SamplingParams(temperature=1.5, top_k=6), SamplingParams(top_p=0.7)],
)
def test_drawn_frequencies_follow_the_distribution(params: SamplingParams) -> None:
    """Chi-square over 4,000 draws, at 1e-6: a wrong CDF fails, chance does not."""
    vocab, draws = 12, 4000
    logits = _logits(1, vocab)
    rows = [_row(params, row=i, seed=i) for i in range(draws)]
    results = Sampler().sample(logits.repeat(draws, 1), rows)
    counts = torch.bincount(torch.tensor([result.token_id for result in results]), minlength=vocab).double()
    warped = logits / params.temperature
    if params.top_k:
        warped = TopKLogitsWarper(params.top_k)(None, warped)
    if params.top_p < 1:
        warped = TopPLogitsWarper(params.top_p)(None, warped)
    expected = torch.softmax(warped[0].double(), -1) * draws
    kept = expected > 0
    assert counts[~kept].sum() == 0
    statistic = ((counts - expected)[kept] ** 2 / expected[kept]).sum().item()
    freedom = int(kept.sum()) - 1
    assert statistic < freedom + 7 * math.sqrt(2 * freedom) + 10


def test_penalty_formulas() -> None:
    ids = [1, 1, 2, 3, 3, 3]  # prompt 1 1 2, output 3 3 3
    logits = torch.tensor([[0.5, 1.0, -1.0, 2.0, 0.1]])
    params = SamplingParams(temperature=0.0, frequency_penalty=0.5, presence_penalty=0.25, top_n_tokens=5)
    result = Sampler().sample(logits.clone(), [_row(params, token_ids=ids)])[0]
    expected = torch.log_softmax(torch.tensor([0.5, 1.0, -1.0, 2.0 - 1.5 - 0.25, 0.1]), -1)
    assert result.token_id == 1
    assert dict(zip(result.top_ids, result.top_logprobs, strict=True)) == pytest.approx(
        dict(enumerate(expected.tolist())), abs=1e-6
    )
    relative = SamplingParams(temperature=0.0, relative_frequency_penalty=1.0, top_n_tokens=5)
    result = Sampler().sample(logits.clone(), [_row(relative, token_ids=ids)])[0]
    shifted = torch.tensor([0.5, 1.0 - 2 / 6, -1.0 - 1 / 6, 2.0 - 3 / 6, 0.1])
    assert dict(zip(result.top_ids, result.top_logprobs, strict=True)) == pytest.approx(
        dict(enumerate(torch.log_softmax(shifted, -1).tolist())), abs=1e-6
    )


def test_top_tokens_return_ties_and_no_filtered_tokens() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0, float("-inf")])
    ids, values = top_tokens(logits, logits.logsumexp(-1), 2)
    assert ids == [1, 2, 3] and values == sorted(values, reverse=True)
    assert 5 not in top_tokens(logits, logits.logsumexp(-1), 6)[0]


def test_uniforms_are_uniform_and_independent_of_everything_else() -> None:
    values = [uniform(seed, position) for seed in range(40) for position in range(100)]
    assert all(0.0 <= value < 1.0 for value in values)
    assert len(set(values)) == len(values)
    buckets = [0] * 20
    for value in values:
        buckets[int(value * 20)] += 1
    assert sum((count - 200) ** 2 / 200 for count in buckets) < 60
    assert uniform(1, 0) != uniform(1, 0, Purpose.RECOVERY)
    assert uniform(2**64 - 1, 10**6) == uniform(2**64 - 1, 10**6)


def test_deterministic_logprobs_have_the_same_bits_alone() -> None:
    """With several threads torch cuts the sum of a lone row up, and those of several rows not."""
    logits = _logits(64, vocab=151_936)
    sampler = Sampler.of(select_kernels(torch.device("cpu"), deterministic=True), ())
    rows = [_row(SamplingParams(temperature=0.0), row=r) for r in range(len(logits))]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        together = sampler.sample(logits.clone(), rows)
        alone = [sampler.sample(logits[r : r + 1].clone(), [row])[0] for r, row in enumerate(rows)]
        scored = sampler.score(logits, [token.token_id for token in together])[0]
        scored_alone = [
            sampler.score(logits[r : r + 1], [token.token_id])[0][0] for r, token in enumerate(together)
        ]
    finally:
        torch.set_num_threads(threads)
    assert [token.logprob for token in alone] == [token.logprob for token in together]
    assert scored_alone == scored
