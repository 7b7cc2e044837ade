"""Bias, min-p, minimum length, permitted tokens and raw log-probabilities, against transformers and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import MinPLogitsWarper, TopPLogitsWarper

from serving.kernels import reference
from serving.sampling import warpers
from serving.sampling.adjustments import ban
from serving.sampling.logprobs import top_tokens, top_tokens_of_rows
from serving.sampling.sampler import Sampler, SamplingRow
from serving.sampling.token_mask import TokenMasks
from serving.sampling_params import Grammar, SamplingParams

EOS = (6, 1)
GRAMMAR = Grammar(kind="regex", source="a")


def _row(params: SamplingParams, *, row: int = 0, seed: int = 1, num_output: int = 0) -> SamplingRow:
    return SamplingRow(
        row=row, params=params, seed=seed, token_ids=[1, 2, 3] + [4] * num_output, num_prompt_tokens=3
    )


def _logits(rows: int, vocab: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def _bits(permitted: list[list[int]], vocab: int) -> torch.Tensor:
    rows = np.zeros((len(permitted), -(-vocab // 32) * 32), dtype=np.uint8)
    for row, ids in zip(rows, permitted, strict=True):
        row[ids] = 1
    return torch.from_numpy(np.packbits(rows, axis=1, bitorder="little").view(np.int32))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
def test_min_p_is_transformers(share: float) -> None:
    logits = _logits(8)
    assert torch.equal(warpers.min_p(logits, torch.full((8,), share)), MinPLogitsWarper(share)(None, logits))


def test_min_p_follows_temperature_and_top_p() -> None:
    params = SamplingParams(temperature=1.7, top_p=0.9, min_p=0.2)
    for seed in range(40):
        logits = _logits(1, seed=seed)
        result = Sampler().sample(logits.clone(), [_row(params, seed=seed)])[0]
        expected = MinPLogitsWarper(0.2)(None, TopPLogitsWarper(0.9)(None, logits / 1.7))
        logprob = torch.log_softmax(expected, -1)[0, result.token_id].item()
        assert math.isfinite(logprob) and result.logprob == pytest.approx(logprob, abs=1e-5)


def test_bias_is_added_first_and_reaches_the_penalties() -> None:
    logits = torch.tensor([[1.0, 2.0, -1.0, 0.5, 0.0]])
    params = SamplingParams(
        temperature=0.0, logit_bias=((2, 5.0), (4, -100.0)), repetition_penalty=2.0, top_n_tokens=5
    )
    result = Sampler().sample(logits.clone(), [_row(params)])[0]
    # Seen: 1, 2, 3. Token 2 is positive only because the bias came first, so the penalty divides it.
    expected = torch.log_softmax(torch.tensor([1.0, 1.0, 2.0, 0.25, -100.0]), -1)
    assert result.token_id == 2
    assert dict(zip(result.top_ids, result.top_logprobs, strict=True)) == pytest.approx(
        dict(enumerate(expected.tolist())), abs=1e-5
    )


def test_no_end_before_the_minimum_and_none_is_missed_after_it() -> None:
    logits = torch.zeros(1, 10)
    logits[0, 6], logits[0, 5], logits[0, 9] = 9.0, 8.0, 7.0
    sampler = Sampler(EOS)
    for params in (SamplingParams(temperature=0.0), SamplingParams(temperature=0.01, seed=1)):
        early = SamplingParams(temperature=params.temperature, min_new_tokens=2, stop_token_ids=(5,))
        assert sampler.sample(logits.clone(), [_row(params)])[0].token_id == 6
        assert [
            sampler.sample(logits.clone(), [_row(early, num_output=n)])[0].token_id for n in range(3)
        ] == [9, 9, 6]


def test_a_grammar_that_permits_only_the_end_has_the_last_word() -> None:
    params = SamplingParams(temperature=0.0, min_new_tokens=5, ignore_eos=True, grammar=GRAMMAR)
    logits = torch.zeros(2, 10)
    logits[:, 6] = 5.0
    masks = TokenMasks(rows=[0, 1], bits=_bits([[6], [6, 3]], 10))
    chosen = Sampler(EOS).sample(logits, [_row(params), _row(params, row=1)], masks)
    assert [token.token_id for token in chosen] == [6, 3]
    unmasked = torch.zeros(1, 10)
    unmasked[0, 6] = 5.0
    without_grammar = SamplingParams(temperature=0.0, ignore_eos=True)
    assert Sampler(EOS).sample(unmasked, [_row(without_grammar)])[0].token_id == 6


def test_rows_are_banned_one_by_one() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [float("-inf"), 2.0, float("-inf")]])
    ban(logits, [0, 0, 2], [1, 2, 1])
    none = float("-inf")
    assert logits.tolist() == [[1.0, none, none], [1.0, 2.0, 3.0], [none, 2.0, none]]


@pytest.mark.parametrize("vocab", [10, 32, 40, 100])
def test_only_permitted_tokens_are_left_in_masked_rows(vocab: int) -> None:
    permitted = [[0, 7, vocab - 1], [3]]
    for rows, count in (([0, 1], 2), ([0, 2], 4)):
        logits = _logits(count, vocab)
        expected = logits.clone()
        for row, ids in zip(rows, permitted, strict=True):
            removed = torch.ones(vocab, dtype=torch.bool)
            removed[ids] = False
            expected[row, removed] = float("-inf")
        reference.mask_tokens(logits, _bits(permitted, vocab), rows)
        assert torch.equal(logits, expected)


def test_tokens_beyond_the_mask_are_not_permitted() -> None:
    logits = torch.zeros(1, 70)
    reference.mask_tokens(logits, _bits([[5]], 32), [0])
    assert torch.isfinite(logits).nonzero().tolist() == [[0, 5]]


def test_raw_logprobs_are_the_models_own_whatever_was_done_to_the_row() -> None:
    logits = _logits(2)
    changed = SamplingParams(
        temperature=0.3,
        top_k=2,
        logit_bias=((7, 4.0),),
        repetition_penalty=1.5,
        raw_logprobs=True,
        top_n_tokens=3,
    )
    rows = [_row(changed, seed=5), _row(SamplingParams(temperature=0.3, top_k=2), row=1)]
    raw, final = Sampler().sample(logits.clone(), rows)
    model = torch.log_softmax(logits, -1)
    assert raw.logprob == pytest.approx(model[0, raw.token_id].item(), abs=1e-5)
    assert raw.top_ids == model[0].topk(3).indices.tolist()
    assert raw.top_logprobs == pytest.approx(model[0].topk(3).values.tolist(), abs=1e-5)
    assert final.logprob != pytest.approx(model[1, final.token_id].item(), abs=1e-3)


def test_raw_logprobs_do_not_change_what_is_chosen() -> None:
    logits = _logits(30)
    rows = [_row(SamplingParams(temperature=0.8, raw_logprobs=True), row=i, seed=i) for i in range(30)]
    plain = [_row(SamplingParams(temperature=0.8), row=i, seed=i) for i in range(30)]
    chosen = [token.token_id for token in Sampler().sample(logits.clone(), rows)]
    assert chosen == [token.token_id for token in Sampler().sample(logits.clone(), plain)]


def test_top_tokens_of_many_rows_are_those_of_each() -> None:
    logits = _logits(6).round()  # whole numbers: ties
    logprobs = torch.log_softmax(logits, -1)
    for count in (0, 1, 4, 40):
        for row, (ids, values) in enumerate(top_tokens_of_rows(logprobs, count)):
            expected_ids, expected = top_tokens(logits[row], logits[row].logsumexp(-1), count)
            assert ids == expected_ids and values == pytest.approx(expected, abs=1e-6)
