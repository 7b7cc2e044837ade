"""Log-probabilities as they are reported: the likeliest tokens of a distribution. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

TopOfRow = tuple[list[int], list[float]]


def top_tokens(logits: Tensor, normalizer: Tensor, count: int) -> TopOfRow:
    """The `count` most likely tokens of one row [V], all that tie with the last one, none that was filtered out."""
    if count == 0:
        return [], []
    least = torch.topk(logits, min(count, logits.shape[-1])).values[-1]
    ids = torch.nonzero((logits >= least) & torch.isfinite(logits)).squeeze(-1)
    values, order = torch.sort(logits[ids], descending=True, stable=True)
    return ids[order].tolist(), [min(value, 0.0) for value in (values - normalizer).tolist()]


def top_tokens_of_rows(logprobs: Tensor, count: int) -> list[TopOfRow]:
    """`top_tokens` of every row of log-probabilities [R, V]."""
    if count == 0:
        return [([], []) for _ in range(len(logprobs))]
    least = torch.topk(logprobs, min(count, logprobs.shape[-1]), dim=-1).values[:, -1:]
    rows, ids = torch.nonzero((logprobs >= least) & torch.isfinite(logprobs), as_tuple=True)
    found: list[list[tuple[float, int]]] = [[] for _ in range(len(logprobs))]
    for row, token_id, value in zip(rows.tolist(), ids.tolist(), logprobs[rows, ids].tolist(), strict=True):
        found[row].append((-min(value, 0.0), token_id))
    return [([i for _, i in tops], [-value for value, _ in tops]) for tops in map(sorted, found)]
