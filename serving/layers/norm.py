"""Root-mean-square norms."""

from __future__ import annotations

import torch
from torch import Tensor

from serving.layers.environment import LayerEnvironment
from serving.weights.target import WeightMap, whole


class RMSNorm:
    def __init__(self, size: int, eps: float, *, environment: LayerEnvironment) -> None:
        self._weight = torch.zeros(size, dtype=environment.dtype, device=environment.device)
        self._eps = eps
        self._norm = environment.kernels.rms_norm
        self._add_norm = environment.kernels.add_rms_norm

    def weight_map(self, name: str) -> WeightMap:
        return {name: [whole(self._weight)]}

    def __call__(self, x: Tensor) -> Tensor:
        return self._norm(x, self._weight, self._eps)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Adds `x` to `residual` in place; returns the norm of the sum."""
        return self._add_norm(x, residual, self._weight, self._eps)


class HeadNorm:
    """Norms of query and key heads, one weight for all query heads and one for all key heads, in one call."""

    def __init__(
        self, num_heads: int, num_kv_heads: int, head_dim: int, eps: float, *, environment: LayerEnvironment
    ) -> None:
        shape = (num_heads + num_kv_heads, head_dim)
        self._weight = torch.zeros(shape, dtype=environment.dtype, device=environment.device)
        self._num_heads = num_heads
        self._eps = eps
        self._norm = environment.kernels.rms_norm

    def weight_map(self, prefix: str) -> WeightMap:
        query, key = self._weight[: self._num_heads], self._weight[self._num_heads :]
        return {
            f"{prefix}q_norm.weight": [whole(head) for head in query],
            f"{prefix}k_norm.weight": [whole(head) for head in key],
        }

    def __call__(self, heads: Tensor) -> Tensor:
        """heads [T, Hq + Hkv, D], query heads first."""
        return self._norm(heads, self._weight, self._eps)
