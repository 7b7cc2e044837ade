"""Token embedding and output head with the vocabulary split over the ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from serving.distributed import all_reduce_sum, gather_to_rank0
from serving.layers.environment import LayerEnvironment, Shard
from serving.weights.target import WeightMap, WeightTarget

_ROW_MULTIPLE = 16
"""Kernels take the rows of a weight by so many."""


class VocabParallelEmbedding:
    """Each rank holds a run of rows, padded to equal length; ids of other ranks contribute zeros to the sum."""

    def __init__(self, vocab_size: int, hidden_size: int, *, environment: LayerEnvironment) -> None:
        self.shard = Shard.of(vocab_size, environment.parallel, multiple=_ROW_MULTIPLE)
        self.weight = torch.zeros(
            self.shard.padded, hidden_size, dtype=environment.dtype, device=environment.device
        )
        self._embed = environment.kernels.embed
        self._parallel = environment.parallel

    def weight_map(self, name: str) -> WeightMap:
        shard, hidden_size = self.shard, self.weight.shape[1]
        index = (slice(shard.start, shard.stop), slice(0, hidden_size))
        return {name: [WeightTarget(self.weight[: shard.length], (shard.total, hidden_size), index)]}

    def __call__(self, token_ids: Tensor) -> Tensor:
        """token_ids [T] -> [T, H], freshly allocated."""
        if self._parallel.size == 1:
            return self._embed(token_ids, self.weight)
        local = token_ids - self.shard.start
        foreign = (local < 0) | (local >= self.shard.length)
        output = self._embed(local.masked_fill_(foreign, 0), self.weight)
        return all_reduce_sum(output.masked_fill_(foreign.unsqueeze(1), 0.0), self._parallel)


class ParallelLMHead:
    """The output projection; logits are put together on rank 0 only, without the padding of the vocabulary."""

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        *,
        environment: LayerEnvironment,
        tied_to: VocabParallelEmbedding | None,
    ) -> None:
        self.shard = Shard.of(vocab_size, environment.parallel, multiple=_ROW_MULTIPLE)
        self._tied_to = tied_to
        self.weight = (
            tied_to.weight
            if tied_to is not None
            else torch.zeros(
                self.shard.padded, hidden_size, dtype=environment.dtype, device=environment.device
            )
        )
        self._linear, self._pack = environment.kernels.linear, environment.kernels.pack
        self._parallel = environment.parallel

    def weight_map(self, name: str) -> WeightMap:
        if self._tied_to is not None:
            return {}
        shard, hidden_size = self.shard, self.weight.shape[1]
        index = (slice(shard.start, shard.stop), slice(0, hidden_size))
        return {name: [WeightTarget(self.weight[: shard.length], (shard.total, hidden_size), index)]}

    def finalize(self) -> None:
        """A tied embedding takes the form that the product reads fastest: it reads a few rows, the product all of them."""
        self.weight = self._pack(self.weight)
        if self._tied_to is not None:
            self._tied_to.weight = self.weight

    def __call__(self, hidden: Tensor) -> Tensor | None:
        """hidden [R, H] -> float32 [R, vocab_size], rows contiguous, on rank 0; None on the others."""
        logits = gather_to_rank0(self._linear(hidden, self.weight, None), self._parallel)
        return None if logits is None else logits.contiguous()[:, : self.shard.total].float()
