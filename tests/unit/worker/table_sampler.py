"""The device's sampler in torch: what it reads of rows is the lines of parameters alone, as on a GPU."""

from __future__ import annotations

import math
import struct
from dataclasses import replace

import torch
from torch import Tensor

from serving.contracts import MAX_LIKELIEST, DeviceSamples, SamplerSteps
from serving.kernels.dispatch import Kernels, select_kernels
from serving.sampling.sampler import Sampler, SamplingRow
from serving.sampling.token_mask import TokenMasks
from serving.sampling_params import SamplingParams


class TableSampler:
    """Results lie where the last ones lay, which are spoilt first."""

    num_launches = 0

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        self.max_rows, self.vocab_size = max_rows, vocab_size
        self._ids = torch.zeros(max_rows, dtype=torch.int64)
        self._logprobs = torch.zeros(max_rows)
        self._num_top = torch.zeros(max_rows, dtype=torch.int32)
        self._top_ids = torch.zeros((max_rows, MAX_LIKELIEST), dtype=torch.int64)
        self._top_logprobs = torch.zeros((max_rows, MAX_LIKELIEST))

    def launch(
        self, logits: Tensor, params: Tensor, steps: SamplerSteps, *, bits: Tensor | None = None
    ) -> DeviceSamples:
        self.num_launches += 1
        for results in (self._ids, self._logprobs, self._num_top, self._top_ids, self._top_logprobs):
            results.fill_(-7)
        lines = params.tolist()
        rows = [_row(index, line) for index, line in enumerate(lines)]
        _check(steps, [row.params for row in rows])
        masked = [(index, line[7]) for index, line in enumerate(lines) if line[7] >= 0]
        masks = None
        if bits is not None:
            masks = TokenMasks([index for index, _ in masked], bits[[mask for _, mask in masked]])
        before = logits.clone()
        for index, token in enumerate(Sampler().sample(logits.clone(), rows, masks)):
            self._ids[index], self._logprobs[index] = token.token_id, token.logprob
            self._num_top[index] = len(token.top_ids)
            shown = min(len(token.top_ids), MAX_LIKELIEST)
            self._top_ids[index, :shown] = torch.tensor(token.top_ids[:shown])
            self._top_logprobs[index, :shown] = torch.tensor(token.top_logprobs[:shown])
        assert torch.equal(before, logits)
        ids, logprobs = self._ids[: len(rows)], self._logprobs[: len(rows)]
        if not steps.likeliest:
            return DeviceSamples(ids, logprobs)
        tops = (self._num_top[: len(rows)], self._top_ids[: len(rows)], self._top_logprobs[: len(rows)])
        return DeviceSamples(ids, logprobs, *tops)


def kernels_with(sampler: TableSampler) -> Kernels:
    """Those of the CPU, with this sampler."""
    known = select_kernels(torch.device("cpu"), deterministic=False)
    return replace(known, device_sampler=lambda max_rows, vocab_size, device: sampler)


def _row(index: int, line: list[int]) -> SamplingRow:
    temperature, top_p, min_p = (struct.unpack("<d", struct.pack("<q", bits))[0] for bits in line[:3])
    params = SamplingParams(
        temperature=temperature,
        top_p=top_p,
        min_p=math.exp(min_p),
        top_k=line[3],
        raw_logprobs=bool(line[6]),
        top_n_tokens=line[8],
    )
    return SamplingRow(index, params, seed=line[4] % 2**64, token_ids=[0] * line[5], num_prompt_tokens=0)


def _check(steps: SamplerSteps, rows: list[SamplingParams]) -> None:
    """Does the step do what its rows ask for?"""
    drawn = [params for params in rows if not params.greedy]
    assert steps.draws == bool(drawn)
    assert steps.top_k == any(params.top_k for params in drawn)
    assert steps.top_p == any(params.top_p < 1.0 for params in drawn)
    assert steps.likeliest == any(params.top_n_tokens for params in rows)
    assert steps.raw or not any(params.raw_logprobs for params in drawn)
