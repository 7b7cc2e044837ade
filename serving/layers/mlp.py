"""The gated feed-forward block."""

from __future__ import annotations

from torch import Tensor

from serving.layers.environment import LayerEnvironment, Shard
from serving.layers.linear import RowParallelLinear, gate_up_linear
from serving.weights.target import WeightMap


class GatedMLP:
    """down(silu(gate(x)) * up(x)). The inner features need not divide the ranks: padding computes zeros."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, *, bias: bool, environment: LayerEnvironment
    ) -> None:
        shard = Shard.of(intermediate_size, environment.parallel)
        self.gate_up = gate_up_linear(shard, hidden_size, bias=bias, environment=environment)
        self.down = RowParallelLinear("down_proj", hidden_size, shard, bias=bias, environment=environment)
        self._silu_mul = environment.kernels.silu_mul

    def weight_map(self, prefix: str) -> WeightMap:
        return self.gate_up.weight_map(prefix) | self.down.weight_map(prefix)

    def finalize(self) -> None:
        self.gate_up.finalize()
        self.down.finalize()

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self._silu_mul(self.gate_up(x)))
