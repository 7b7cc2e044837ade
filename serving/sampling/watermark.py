"""A soft green-list watermark (Kirchenbauer et al., arXiv 2301.10226, algorithm 2) with a context of one token, and its
detector. Knows token ids and logits only.

Is this text, tokenized by the model's own tokenizer, marked?

    detect(token_ids, vocab_size=model_vocab_size, gamma=0.5).p_value < 1e-4

`token_ids` may be a part of the marked text: each token is judged by the one before it. Tokens that were certain anyway
(code, quotations, forced JSON) carry no mark; a few hundred sampled tokens suffice.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock

import torch
from torch import Tensor

from serving.sampling_params import Watermark
from serving.torch_import import load_meta_kernels

_HASH_KEY = 15485863  # the paper's, and TGI's
_CACHE_BYTES = 32 * 1024 * 1024


@dataclass(slots=True, frozen=True)
class Detection:
    """`num_green` of `num_scored` distinct token pairs end on their green list. `z_score` is how many standard deviations
    that is above chance, `p_value` the probability of at least so many in unmarked text."""

    num_scored: int
    num_green: int
    z_score: float
    p_value: float


class GreenLists:
    """The green list of each previous token, as booleans [V] on the CPU; the last used ones are kept.

    The permutation comes from a CPU generator whatever device the model is on, so that every machine marks alike.
    """

    def __init__(self, vocab_size: int, *, cache_bytes: int = _CACHE_BYTES) -> None:
        self._vocab_size = vocab_size
        self._capacity = max(1, cache_bytes // vocab_size)
        self._lists: OrderedDict[tuple[int, float], Tensor] = OrderedDict()
        self._lock = Lock()

    @property
    def num_kept(self) -> int:
        return len(self._lists)

    def after(self, token_id: int, gamma: float) -> Tensor:
        """True for the tokens favoured behind `token_id`: the first `gamma` x V of a permutation of the vocabulary."""
        key = (token_id, gamma)
        with self._lock:
            if (found := self._lists.get(key)) is not None:
                self._lists.move_to_end(key)
                return found
        load_meta_kernels()  # in torch 2.13 a generator asks for what they bring
        generator = torch.Generator(device="cpu").manual_seed(_HASH_KEY * token_id)
        order = torch.randperm(self._vocab_size, generator=generator, device="cpu")
        green = torch.zeros(self._vocab_size, dtype=torch.bool)
        green[order[: int(gamma * self._vocab_size)]] = True
        with self._lock:
            self._lists[key] = green
            while len(self._lists) > self._capacity:
                self._lists.popitem(last=False)
        return green


class Watermarker:
    """Marks rows of logits; one per model."""

    def __init__(self) -> None:
        self._lists: GreenLists | None = None

    def apply(self, logits: Tensor, watermark: Watermark, previous_token_id: int) -> None:
        """Add `delta` to the green tokens of `logits` [V], in place."""
        green = self.green(watermark, previous_token_id, logits.shape[0])
        logits += green.to(logits.device, logits.dtype) * watermark.delta

    def green(self, watermark: Watermark, previous_token_id: int, vocab_size: int) -> Tensor:
        """The green list behind `previous_token_id`, as booleans [V] on the CPU."""
        if self._lists is None:
            self._lists = GreenLists(vocab_size)
        return self._lists.after(previous_token_id, watermark.gamma)


def detect(token_ids: Sequence[int], *, vocab_size: int, gamma: float = 0.5) -> Detection:
    """Test the tokens for the mark. `vocab_size` is the model's (`EngineReady.vocab_size`), `gamma` the mark's.

    Each distinct pair of neighbours counts once: a repeated phrase is no further evidence (the paper, section 4.1).
    The p-value is exact (binomial tail). Raises `ValueError` for ids outside the vocabulary.
    """
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        raise ValueError(f"token ids must be in [0, {vocab_size}), got {min(token_ids)} to {max(token_ids)}")
    lists = GreenLists(vocab_size)
    share = int(gamma * vocab_size) / vocab_size
    pairs = sorted(set(pairwise(token_ids)))
    num_green = sum(bool(lists.after(previous, gamma)[token_id]) for previous, token_id in pairs)
    deviation = math.sqrt(len(pairs) * share * (1 - share))
    z_score = (num_green - len(pairs) * share) / deviation if deviation > 0 else 0.0
    return Detection(
        num_scored=len(pairs),
        num_green=num_green,
        z_score=z_score,
        p_value=_binomial_tail(num_green, len(pairs), share),
    )


def _binomial_tail(least: int, trials: int, share: float) -> float:
    """P(X >= least) for X ~ Binomial(trials, share)."""
    if least <= 0:
        return 1.0
    log_share, log_rest = math.log(share), math.log1p(-share)
    total = math.lgamma(trials + 1)
    terms = (
        total - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * log_share + (trials - k) * log_rest
        for k in range(least, trials + 1)
    )
    return min(1.0, math.fsum(math.exp(term) for term in terms))
