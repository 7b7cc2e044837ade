"""What the model thinks of the prompts it was given, for the rows that ask."""

from __future__ import annotations

from torch import Tensor

from serving.batch import StepResult
from serving.models.registry import Model
from serving.sampling.logprobs import TopOfRow
from serving.sampling.sampler import Sampler
from serving.worker.input_batch import InputBatch, StepInputs

_LOGIT_ROWS = 256
"""Rows of logits made at once: bounds the memory of prompt_length x vocabulary."""


class PromptScores:
    def __init__(self, model: Model, inputs: InputBatch, sampler: Sampler) -> None:
        self._model = model
        self._inputs = inputs
        self._sampler = sampler

    def are_wanted(self, inputs: StepInputs) -> bool:
        """Does a row of the step ask? Then `score` needs the hidden states of all tokens."""
        return any(self._inputs[scheduled.row].params.prompt_logprobs for scheduled in inputs.rows)

    def score(self, hidden: Tensor, inputs: StepInputs, result: StepResult) -> None:
        """Note in `result` the log-probability of the prompt token after each prompt token of this step; hidden [T, H]."""
        start = 0
        for scheduled in inputs.rows:
            row = self._inputs[scheduled.row]
            first = self._inputs.num_computed_tokens(scheduled.row) - scheduled.num_tokens
            count = min(scheduled.num_tokens, row.num_prompt_tokens - 1 - first)
            if row.params.prompt_logprobs and count > 0:
                targets = row.token_ids[first + 1 : first + 1 + count]
                values, tops = self._scores_of(
                    hidden[start : start + count], targets, row.params.top_n_tokens
                )
                result.prompt_logprobs[scheduled.row] = values
                if row.params.top_n_tokens:
                    result.prompt_top_tokens[scheduled.row] = tops
            start += scheduled.num_tokens

    def _scores_of(
        self, hidden: Tensor, targets: list[int], num_top: int
    ) -> tuple[list[float], list[TopOfRow]]:
        values: list[float] = []
        tops: list[TopOfRow] = []
        for first in range(0, len(targets), _LOGIT_ROWS):
            logits = self._model.compute_logits(hidden[first : first + _LOGIT_ROWS])
            if logits is not None:
                found, likeliest = self._sampler.score(logits, targets[first : first + _LOGIT_ROWS], num_top)
                values += found
                tops += likeliest
        return values, tops
