"""Rows for the compiled sampler: what it has to know of each is written once, and then only what a new token changes."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

from serving.batch import SampledToken
from serving.kernels.cpu.native.sampling import NativeSampler, RowPlan
from serving.sampling.adjustments import Adjustments
from serving.sampling.token_mask import TokenMasks
from serving.sampling_params import SamplingParams

if TYPE_CHECKING:
    from serving.sampling.sampler import SamplingRow


class TokenCounts:
    """How often each token occurs in a growing sequence: three parallel arrays, one entry per distinct token."""

    def __init__(self, *, first: int, num_prompt_tokens: int) -> None:
        self.ids, self.everywhere, self.in_output = array("i"), array("i"), array("i")
        self._num_prompt_tokens = num_prompt_tokens
        self._counted = first
        self._places: dict[int, int] = {}

    def read(self, token_ids: list[int]) -> bool:
        """Count what is new in `token_ids`. True if the arrays may have moved."""
        before = len(self.ids)
        if self._counted < self._num_prompt_tokens:
            for token_id, count in Counter(token_ids[self._counted : self._num_prompt_tokens]).items():
                self.everywhere[self._place(token_id)] += count
            self._counted = self._num_prompt_tokens
        for token_id in token_ids[self._counted :]:
            place = self._place(token_id)
            self.everywhere[place] += 1
            self.in_output[place] += 1
        self._counted = len(token_ids)
        return len(self.ids) != before

    def _place(self, token_id: int) -> int:
        place = self._places.setdefault(token_id, len(self.ids))
        if place == len(self.ids):
            self.ids.append(token_id)
            self.everywhere.append(0)
            self.in_output.append(0)
        return place


class CompiledRow:
    """One row's plan and the arrays that it points to."""

    def __init__(self, row: SamplingRow, adjustments: Adjustments) -> None:
        params = row.params
        self._row = row
        self._adjustments = adjustments
        self.plan = RowPlan(
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=math.log(params.min_p) if params.min_p > 0.0 else -math.inf,
            typical_p=params.typical_p,
            repetition=params.repetition_penalty,
            relative=params.relative_frequency_penalty,
            frequency=params.frequency_penalty,
            presence=params.presence_penalty,
            seed=row.seed,
            top_n=params.top_n_tokens,
            min_new_tokens=params.min_new_tokens,
        )
        # A row that nothing changes has raw log-probabilities anyway.
        changes = row.adjusts or row.bans or (params.raw_logprobs and params.grammar is not None)
        self.plan.raw = params.raw_logprobs
        self.plan.plain = params.greedy and not changes and params.top_n_tokens == 0
        self.grows = not params.greedy or row.adjusts or row.bans
        """True if the plan depends on the tokens so far."""
        self._biases = self._bias(params)
        self._bans = self._ban(row) if row.bans else None
        self._counts = _counts_for(row) if params.penalized else None
        self._green: Tensor | None = None

    def advance(self, vocab_size: int) -> None:
        """Bring the plan to the row's tokens."""
        token_ids = self._row.token_ids
        plan = self.plan
        plan.position = len(token_ids) - self._row.num_prompt_tokens
        if self._counts is not None:
            if self._counts.read(token_ids):
                plan.seen_ids = _address(self._counts.ids)
                plan.seen_counts = _address(self._counts.everywhere)
                plan.output_counts = _address(self._counts.in_output)
                plan.num_seen = len(self._counts.ids)
            plan.length = len(token_ids)
        if (watermark := self._row.params.watermark) is not None:
            self._green = self._adjustments.green(watermark, token_ids[-1], vocab_size)
            plan.green, plan.delta = self._green.data_ptr(), watermark.delta

    def _bias(self, params: SamplingParams) -> tuple[array[int], array[float]]:
        ids = array("i", [token_id for token_id, _ in params.logit_bias])
        biases = array("f", [bias for _, bias in params.logit_bias])
        self.plan.bias_ids, self.plan.biases = _address(ids), _address(biases)
        self.plan.num_biases = len(ids)
        return ids, biases

    def _ban(self, row: SamplingRow) -> tuple[array[int], array[int]]:
        early, late = (
            _distinct(self._adjustments.banned(row.params, num_output_tokens=count))
            for count in (0, row.params.min_new_tokens)
        )
        self.plan.early_bans, self.plan.num_early_bans = _address(early), len(early)
        self.plan.late_bans, self.plan.num_late_bans = _address(late), len(late)
        return early, late


class CompiledSampler:
    """`Sampler.sample` by the compiled kernel. Rows that stay from step to step cost next to nothing in Python."""

    def __init__(self, native: NativeSampler, adjustments: Adjustments) -> None:
        self._native = native
        self._adjustments = adjustments
        self._rows: list[SamplingRow] = []
        self._names: list[int] = []
        self._growing: list[CompiledRow] = []

    def covers(self, logits: Tensor) -> bool:
        return self._native.covers(logits)

    def sample(
        self, logits: Tensor, rows: list[SamplingRow], masks: TokenMasks | None = None
    ) -> list[SampledToken]:
        """As `Sampler.sample`; `logits` stay as they are."""
        if rows != self._rows:
            self._use(rows)
        for row in self._growing:
            row.advance(logits.shape[1])
        if masks is None:
            chosen = self._native.sample(logits)
        else:
            chosen = self._native.sample(logits, masks.bits, masks.rows)
        tokens = zip(self._names, chosen.ids, chosen.logprobs, strict=True)
        if not chosen.tops:
            return [SampledToken(row=row, token_id=i, logprob=logprob) for row, i, logprob in tokens]
        tops = [chosen.tops.get(index, ([], [])) for index in range(len(rows))]
        return [
            SampledToken(row=row, token_id=i, logprob=logprob, top_ids=top_ids, top_logprobs=top_logprobs)
            for (row, i, logprob), (top_ids, top_logprobs) in zip(tokens, tops, strict=True)
        ]

    def score(
        self, logits: Tensor, targets: list[int], num_top: int
    ) -> tuple[list[float], list[tuple[list[int], list[float]]]]:
        return self._native.score(logits, targets, num_top)

    def _use(self, rows: list[SamplingRow]) -> None:
        compiled = []
        for row in rows:
            if row.compiled is None:
                row.compiled = CompiledRow(row, self._adjustments)
            compiled.append(row.compiled)
        self._native.use([row.plan for row in compiled])
        self._growing = [row for row in compiled if row.grows]
        self._names = [row.row for row in rows]
        self._rows = list(rows)


def _counts_for(row: SamplingRow) -> TokenCounts:
    params = row.params
    of_prompt = params.repetition_penalty != 1.0 or params.relative_frequency_penalty != 0.0
    return TokenCounts(
        first=0 if of_prompt else row.num_prompt_tokens, num_prompt_tokens=row.num_prompt_tokens
    )


def _distinct(token_ids: Iterable[int]) -> array[int]:
    return array("i", dict.fromkeys(token_ids))


def _address(values: array[int] | array[float]) -> int | None:
    address, length = values.buffer_info()
    return address if length else None
