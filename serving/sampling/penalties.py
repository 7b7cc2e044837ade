"""Penalties on tokens already seen. Pure functions on one row of logits."""

from __future__ import annotations

import torch
from torch import Tensor

from serving.sampling_params import SamplingParams


def apply_penalties(
    logits: Tensor, params: SamplingParams, *, prompt_ids: list[int], output_ids: list[int]
) -> None:
    """Change `logits` [V] in place.

    Order as TGI (repetition before frequency):
    * repetition, CTRL style (arXiv 1909.05858): seen positive logits divided, negative multiplied; prompt and output;
    * relative frequency, TGI's: minus penalty x count / length; prompt and output;
    * frequency and presence, OpenAI's: minus penalty x count, minus penalty if seen; output only.
    """
    vocab_size = logits.shape[0]
    device = logits.device
    if params.repetition_penalty != 1.0 or params.relative_frequency_penalty != 0.0:
        seen = torch.tensor(prompt_ids + output_ids, dtype=torch.int64, device=device)
        counts = torch.bincount(seen, minlength=vocab_size)
        if params.repetition_penalty != 1.0:
            scaled = torch.where(
                logits > 0, logits / params.repetition_penalty, logits * params.repetition_penalty
            )
            torch.where(counts > 0, scaled, logits, out=logits)
        if params.relative_frequency_penalty != 0.0:
            logits -= params.relative_frequency_penalty * counts / len(seen)
    if params.frequency_penalty != 0.0 or params.presence_penalty != 0.0:
        counts = torch.bincount(
            torch.tensor(output_ids, dtype=torch.int64, device=device), minlength=vocab_size
        )
        logits -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
