"""Everything a request may do to its row of logits before a token is chosen. Changes one row [V] at a time, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from serving.sampling.penalties import apply_penalties
from serving.sampling.watermark import Watermarker
from serving.sampling_params import SamplingParams, Watermark

_REMOVED = float("-inf")


def adjusts(params: SamplingParams) -> bool:
    """False for rows that `Adjustments.apply` would leave as they are."""
    return bool(params.logit_bias) or params.watermark is not None or params.penalized


def bans(params: SamplingParams) -> bool:
    """False for rows that `Adjustments.banned` has nothing for."""
    return params.min_new_tokens > 0 or (params.ignore_eos and params.grammar is not None)


class Adjustments:
    def __init__(self, eos_token_ids: Sequence[int]) -> None:
        self._eos_token_ids = tuple(eos_token_ids)
        self._watermarker = Watermarker()

    def apply(
        self, logits: Tensor, params: SamplingParams, *, token_ids: list[int], num_prompt_tokens: int
    ) -> None:
        """Bias and watermark, then the penalties."""
        if params.logit_bias:
            ids, biases = zip(*params.logit_bias, strict=True)
            index = torch.tensor(ids, device=logits.device)
            logits.index_add_(0, index, torch.tensor(biases, dtype=logits.dtype, device=logits.device))
        if params.watermark is not None:
            self._watermarker.apply(logits, params.watermark, token_ids[-1])
        if params.penalized:
            apply_penalties(
                logits,
                params,
                prompt_ids=token_ids[:num_prompt_tokens],
                output_ids=token_ids[num_prompt_tokens:],
            )

    def green(self, watermark: Watermark, previous_token_id: int, vocab_size: int) -> Tensor:
        """The tokens that the watermark favours next, as booleans [V] on the CPU."""
        return self._watermarker.green(watermark, previous_token_id, vocab_size)

    def banned(self, params: SamplingParams, *, num_output_tokens: int) -> tuple[int, ...]:
        """The tokens that would end a row which may not end yet."""
        if num_output_tokens < params.min_new_tokens:
            return (*self._eos_token_ids, *params.stop_token_ids)
        if params.ignore_eos and params.grammar is not None:
            return self._eos_token_ids
        return ()


def ban(logits: Tensor, rows: list[int], token_ids: list[int]) -> None:
    """Take `token_ids[i]` away from row `rows[i]` of `logits` [R, V], in place; a row may be named several times.

    A row keeps what is its only choice: a grammar that permits only the end has the last word.
    """
    row_index = torch.tensor(rows, device=logits.device)
    token_index = torch.tensor(token_ids, device=logits.device)
    before = logits[row_index, token_index]
    logits[row_index, token_index] = _REMOVED
    dead = logits.amax(dim=-1)[row_index] == _REMOVED
    logits[row_index, token_index] = torch.where(dead, before, _REMOVED)
