"""Everything a request may do to its row of logits before a token is chosen. Changes one row [V] at a time, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from serving.sampling.penalties import apply_penalties
from serving.sampling.watermark import Watermarker
from serving.sampling_params import SamplingParams


def adjusts(params: SamplingParams) -> bool:
    """False for rows that `Adjustments.apply` would leave as they are."""
    return bool(params.logit_bias) or params.watermark is not None or params.penalized


def bans(params: SamplingParams) -> bool:
    """False for rows that `Adjustments.ban` would leave as they are."""
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

    def ban(self, logits: Tensor, params: SamplingParams, *, num_output_tokens: int) -> None:
        """Take away the tokens that would end the row before it may end, unless nothing else is left: a grammar that
        permits only the end has the last word."""
        banned: tuple[int, ...] = ()
        if num_output_tokens < params.min_new_tokens:
            banned = (*self._eos_token_ids, *params.stop_token_ids)
        elif params.ignore_eos and params.grammar is not None:
            banned = self._eos_token_ids
        if not banned:
            return
        index = torch.tensor(sorted(set(banned)), device=logits.device)
        kept = logits[index]
        logits[index] = float("-inf")
        if not bool(torch.isfinite(logits).any()):
            logits[index] = kept
