"""Chooses the next token of every sampling row. Knows logits and parameters; neither requests nor the model.

In this order, per row: logit bias and watermark; repetition, relative frequency, frequency and presence penalties;
permitted tokens; tokens that may not come yet; temperature; top-k; top-p; min-p; typical-p; choice. Greedy rows skip what
comes after the permitted tokens and take the highest logit. Sampled rows draw by inverse CDF, in token-id order and
float64, from one counter-based uniform per (seed, output position): the same on every device, in every batch, after every
restart. Log-probabilities are those of the final, filtered distribution or, with `raw_logprobs`, of the logits as they came.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from serving.batch import SampledToken
from serving.kernels import reference
from serving.kernels.cpu.native.sampling import NativeSampler
from serving.kernels.dispatch import Kernels
from serving.sampling import warpers
from serving.sampling.adjustments import Adjustments, adjusts, ban, bans
from serving.sampling.compiled import CompiledRow, CompiledSampler
from serving.sampling.logprobs import TopOfRow, top_tokens, top_tokens_of_rows
from serving.sampling.token_mask import TokenMasks
from serving.sampling.uniform import uniform
from serving.sampling_params import SamplingParams


@dataclass(slots=True, eq=False)
class SamplingRow:
    """What the sampler needs to know of one row. `token_ids` is the whole sequence so far, kept by its owner, who only
    ever appends to it."""

    row: int
    params: SamplingParams
    seed: int
    token_ids: list[int]
    num_prompt_tokens: int
    adjusts: bool = field(init=False)
    bans: bool = field(init=False)
    compiled: CompiledRow | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        self.adjusts = adjusts(self.params)
        self.bans = bans(self.params)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens


class Sampler:
    def __init__(
        self,
        eos_token_ids: Sequence[int] = (),
        *,
        mask_tokens: Callable[[Tensor, Tensor, list[int]], None] = reference.mask_tokens,
        normalizers: Callable[[Tensor], Tensor] = reference.normalizers,
        native: Callable[[], NativeSampler] | None = None,
    ) -> None:
        self._adjustments = Adjustments(eos_token_ids)
        self._mask_tokens = mask_tokens
        self._normalizers = normalizers
        self._compiled = None if native is None else CompiledSampler(native(), self._adjustments)

    @classmethod
    def of(cls, kernels: Kernels, eos_token_ids: Sequence[int]) -> Sampler:
        return cls(
            eos_token_ids,
            mask_tokens=kernels.mask_tokens,
            normalizers=kernels.normalizers,
            native=kernels.sampler,
        )

    def sample(
        self, logits: Tensor, rows: list[SamplingRow], masks: TokenMasks | None = None
    ) -> list[SampledToken]:
        """logits [R, V] float32, may be changed in place; one result per row, in order."""
        if self._compiled is not None and self._compiled.covers(logits):
            return self._compiled.sample(logits, rows, masks)
        raw = _raw_logits(logits, rows)
        self._adjust(logits, rows, masks)
        ids = logits.argmax(dim=-1)
        sampled = [index for index, row in enumerate(rows) if not row.params.greedy]
        if sampled:
            chosen = torch.tensor(sampled, device=logits.device)
            chosen_rows = [rows[index] for index in sampled]
            warped = _warp(logits[chosen], chosen_rows)
            logits[chosen] = warped
            ids[chosen] = _draw(warped, chosen_rows)
        if raw is not None:
            index, values = raw
            logits[index] = values
        normalizer = self._normalizers(logits)
        logprobs = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - normalizer
        results = zip(rows, ids.tolist(), logprobs.tolist(), strict=True)
        return [
            _result(row, token_id, logprob, logits[index], normalizer[index])
            for index, (row, token_id, logprob) in enumerate(results)
        ]

    def score(
        self, logits: Tensor, targets: list[int], num_top: int = 0
    ) -> tuple[list[float], list[TopOfRow]]:
        """The log-probability of token `targets[r]` in row r of logits [R, V] float32, as the model has it, and each row's
        `num_top` likeliest tokens with those that tie with the last."""
        if self._compiled is not None and self._compiled.covers(logits):
            return self._compiled.score(logits, targets, num_top)
        normalizer = self._normalizers(logits).unsqueeze(-1)
        chosen = torch.tensor(targets, device=logits.device)
        values = (logits.gather(-1, chosen.unsqueeze(-1)) - normalizer).clamp_(max=0.0).squeeze(-1)
        tops = top_tokens_of_rows(logits - normalizer, num_top) if num_top else top_tokens_of_rows(logits, 0)
        return values.tolist(), tops

    def _adjust(self, logits: Tensor, rows: list[SamplingRow], masks: TokenMasks | None) -> None:
        for index, row in enumerate(rows):
            if row.adjusts:
                self._adjustments.apply(
                    logits[index],
                    row.params,
                    token_ids=row.token_ids,
                    num_prompt_tokens=row.num_prompt_tokens,
                )
        if masks is not None:
            self._mask_tokens(logits, masks.bits, masks.rows)
        banned = [
            (index, token_id)
            for index, row in enumerate(rows)
            if row.bans
            for token_id in self._adjustments.banned(row.params, num_output_tokens=row.num_output_tokens)
        ]
        if banned:
            ban(logits, [index for index, _ in banned], [token_id for _, token_id in banned])


def _raw_logits(logits: Tensor, rows: list[SamplingRow]) -> tuple[Tensor, Tensor] | None:
    """The rows whose log-probabilities are the model's own, as they came."""
    wanted = [index for index, row in enumerate(rows) if row.params.raw_logprobs]
    if not wanted:
        return None
    index = torch.tensor(wanted, device=logits.device)
    return index, logits[index]


def _warp(logits: Tensor, rows: list[SamplingRow]) -> Tensor:
    """Temperature and filters; rows that do not ask for a filter pass it unchanged."""
    vocab_size = logits.shape[-1]
    temperature = torch.tensor(
        [row.params.temperature for row in rows], dtype=torch.float32, device=logits.device
    )
    logits = logits / temperature.unsqueeze(-1)
    if any(0 < row.params.top_k < vocab_size for row in rows):
        k = [row.params.top_k if 0 < row.params.top_k < vocab_size else vocab_size for row in rows]
        logits = warpers.top_k(logits, torch.tensor(k, device=logits.device))
    for value, off, warp in (
        ([row.params.top_p for row in rows], 1.0, warpers.top_p),
        ([row.params.min_p for row in rows], 0.0, warpers.min_p),
        ([row.params.typical_p for row in rows], 1.0, warpers.typical),
    ):
        active = [index for index, share in enumerate(value) if share != off]
        if active:
            index = torch.tensor(active, device=logits.device)
            shares = torch.tensor([value[i] for i in active], dtype=torch.float64, device=logits.device)
            logits[index] = warp(logits[index], shares)
    return logits


def _draw(logits: Tensor, rows: list[SamplingRow]) -> Tensor:
    """Inverse CDF: the first token, in id order, whose cumulative probability exceeds the row's uniform."""
    uniforms = [uniform(row.seed, row.num_output_tokens) for row in rows]
    cumulative = torch.softmax(logits.double(), dim=-1).cumsum(dim=-1)
    target = torch.tensor(uniforms, dtype=torch.float64, device=logits.device) * cumulative[:, -1]
    return (
        torch.searchsorted(cumulative, target.unsqueeze(-1), right=True)
        .squeeze(-1)
        .clamp_(max=logits.shape[-1] - 1)
    )


def _result(
    row: SamplingRow, token_id: int, logprob: float, logits: Tensor, normalizer: Tensor
) -> SampledToken:
    top_ids, top_logprobs = top_tokens(logits, normalizer, row.params.top_n_tokens)
    return SampledToken(
        row=row.row, token_id=token_id, logprob=min(logprob, 0.0), top_ids=top_ids, top_logprobs=top_logprobs
    )
