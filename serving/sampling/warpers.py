"""Filters that keep part of a distribution: top-k, top-p, min-p, typical. Each takes and returns logits [R, V] with removed
tokens at -inf, and at least one token per row survives.

They decide in float64. Where the border runs then depends on rounding at 1e-16 of a probability, so implementations that
add in another order keep the same tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

_REMOVED = float("-inf")


def top_k(logits: Tensor, k: Tensor) -> Tensor:
    """Keep the k [R] highest logits of each row, ties at the k-th place included."""
    limit = int(k.max())
    highest = torch.topk(logits, min(limit, logits.shape[-1]), dim=-1).values
    threshold = highest.gather(-1, (k - 1).clamp(max=highest.shape[-1] - 1).unsqueeze(-1))
    return logits.masked_fill(logits < threshold, _REMOVED)


def top_p(logits: Tensor, p: Tensor) -> Tensor:
    """Keep the smallest set of most likely tokens whose probability reaches p [R] (Holtzman et al., arXiv 1904.09751)."""
    ordered, order = torch.sort(logits, dim=-1, descending=True, stable=True)
    probabilities = torch.softmax(ordered.double(), dim=-1)
    return _scatter_removed(logits, order, _before(probabilities) >= p.unsqueeze(-1))


def min_p(logits: Tensor, share: Tensor) -> Tensor:
    """Keep the tokens at least `share` [R] times as likely as the likeliest one (Nguyen et al., arXiv 2407.01082)."""
    wide = logits.double()
    least = wide.amax(-1, keepdim=True) + share.double().log().unsqueeze(-1)
    return logits.masked_fill(wide < least, _REMOVED)


def typical(logits: Tensor, mass: Tensor) -> Tensor:
    """Keep the tokens whose surprise is nearest to the entropy, up to `mass` [R] (Meister et al., arXiv 2202.00666)."""
    log_probabilities = torch.log_softmax(logits.double(), dim=-1)
    probabilities = log_probabilities.exp()
    entropy = -torch.where(probabilities > 0, probabilities * log_probabilities, 0.0).sum(-1, keepdim=True)
    distance = torch.where(probabilities > 0, (-log_probabilities - entropy).abs(), float("inf"))
    _, order = torch.sort(distance, dim=-1, stable=True)
    ordered = probabilities.gather(-1, order)
    return _scatter_removed(logits, order, _before(ordered) >= mass.unsqueeze(-1))


def _before(probabilities: Tensor) -> Tensor:
    """The sum of the entries before each one, along the last dimension."""
    return torch.nn.functional.pad(probabilities.cumsum(-1)[..., :-1], (1, 0))


def _scatter_removed(logits: Tensor, order: Tensor, removed: Tensor) -> Tensor:
    removed[..., 0] = False
    return logits.masked_fill(torch.zeros_like(removed).scatter_(-1, order, removed), _REMOVED)
