"""Chooses the next token of every sampling row. Knows logits and parameters; neither requests nor the model.

In this order, per row: repetition, relative frequency, frequency and presence penalties; temperature; top-k; top-p;
typical-p; choice. Greedy rows stop after the penalties and take the highest logit. Sampled rows draw by inverse CDF, in
token-id order and float64, from one counter-based uniform per (seed, output position): the same on every device, in every
batch, after every restart. Log-probabilities are those of the final, filtered distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from serving.batch import SampledToken
from serving.sampling import warpers
from serving.sampling.penalties import apply_penalties
from serving.sampling.uniform import uniform
from serving.sampling_params import SamplingParams


@dataclass(slots=True, frozen=True)
class SamplingRow:
    """What the sampler needs to know of one row. `token_ids` is the whole sequence so far."""

    row: int
    params: SamplingParams
    seed: int
    token_ids: list[int]
    num_prompt_tokens: int


class Sampler:
    def sample(self, logits: Tensor, rows: list[SamplingRow]) -> list[SampledToken]:
        """logits [R, V] float32, changed in place; one result per row, in order."""
        for index, row in enumerate(rows):
            if row.params.penalized:
                apply_penalties(
                    logits[index],
                    row.params,
                    prompt_ids=row.token_ids[: row.num_prompt_tokens],
                    output_ids=row.token_ids[row.num_prompt_tokens :],
                )
        ids = logits.argmax(dim=-1)
        sampled = [index for index, row in enumerate(rows) if not row.params.greedy]
        if sampled:
            chosen = torch.tensor(sampled, device=logits.device)
            chosen_rows = [rows[index] for index in sampled]
            warped = _warp(logits[chosen], chosen_rows)
            logits[chosen] = warped
            ids[chosen] = _draw(warped, chosen_rows)
        normalizer = logits.logsumexp(dim=-1)
        logprobs = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - normalizer
        results = zip(rows, ids.tolist(), logprobs.tolist(), strict=True)
        return [
            _result(row, token_id, logprob, logits[index], normalizer[index])
            for index, (row, token_id, logprob) in enumerate(results)
        ]


def _warp(logits: Tensor, rows: list[SamplingRow]) -> Tensor:
    """Temperature and filters; rows that do not ask for a filter pass it unchanged."""
    vocab_size = logits.shape[-1]
    temperature = _column(logits, [row.params.temperature for row in rows])
    logits = logits / temperature.unsqueeze(-1)
    if any(0 < row.params.top_k < vocab_size for row in rows):
        k = [row.params.top_k if 0 < row.params.top_k < vocab_size else vocab_size for row in rows]
        logits = warpers.top_k(logits, torch.tensor(k, device=logits.device))
    for value, warp in (
        ([row.params.top_p for row in rows], warpers.top_p),
        ([row.params.typical_p for row in rows], warpers.typical),
    ):
        active = [index for index, share in enumerate(value) if share < 1.0]
        if active:
            index = torch.tensor(active, device=logits.device)
            logits[index] = warp(logits[index], _column(logits, [value[i] for i in active]))
    return logits


def _draw(logits: Tensor, rows: list[SamplingRow]) -> Tensor:
    """Inverse CDF: the first token, in id order, whose cumulative probability exceeds the row's uniform."""
    uniforms = [uniform(row.seed, len(row.token_ids) - row.num_prompt_tokens) for row in rows]
    cumulative = torch.softmax(logits.double(), dim=-1).cumsum(dim=-1)
    target = torch.tensor(uniforms, dtype=torch.float64, device=logits.device) * cumulative[:, -1]
    return (
        torch.searchsorted(cumulative, target.unsqueeze(-1), right=True)
        .squeeze(-1)
        .clamp_(max=logits.shape[-1] - 1)
    )


def _column(logits: Tensor, values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=logits.device)


def _result(
    row: SamplingRow, token_id: int, logprob: float, logits: Tensor, normalizer: Tensor
) -> SampledToken:
    top_ids, top_logprobs = top_tokens(logits, normalizer, row.params.top_n_tokens)
    return SampledToken(
        row=row.row, token_id=token_id, logprob=min(logprob, 0.0), top_ids=top_ids, top_logprobs=top_logprobs
    )


def top_tokens(logits: Tensor, normalizer: Tensor, count: int) -> tuple[list[int], list[float]]:
    """The `count` most likely tokens of one row [V], all that tie with the last one, none that was filtered out."""
    if count == 0:
        return [], []
    least = torch.topk(logits, min(count, logits.shape[-1])).values[-1]
    ids = torch.nonzero((logits >= least) & torch.isfinite(logits)).squeeze(-1)
    values, order = torch.sort(logits[ids], descending=True, stable=True)
    return ids[order].tolist(), [min(value, 0.0) for value in (values - normalizer).tolist()]
