"""Parallel shells around a matrix product. How a weight is stored and multiplied is the `QuantMethod`'s business."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from serving.contracts import LoraSlot
from serving.distributed import all_reduce_sum
from serving.errors import ConfigError
from serving.layers.environment import LayerEnvironment, Shard
from serving.weights.target import WeightMap, WeightTarget


@dataclass(slots=True, frozen=True)
class _Rows:
    """Checkpoint rows start:stop of the `total` of tensor `name` become the rows from `offset` of the fused weight."""

    name: str
    total: int
    start: int
    stop: int
    offset: int


class ColumnParallelLinear:
    """Several checkpoint matrices stacked into one, each rank holding a part of their output features."""

    def __init__(
        self,
        rows: list[_Rows],
        out_features: int,
        in_features: int,
        *,
        bias: bool,
        environment: LayerEnvironment,
    ) -> None:
        self._rows = rows
        self._method = environment.quantization
        self._in_features = in_features
        self._parameters = self._method.create(
            out_features, in_features, dtype=environment.dtype, device=environment.device
        )
        self._bias = (
            torch.zeros(out_features, dtype=environment.dtype, device=environment.device) if bias else None
        )
        self.lora: LoraSlot | None = None

    def weight_map(self, prefix: str) -> WeightMap:
        """Targets under `prefix` (`model.layers.0.mlp.`)."""
        targets: WeightMap = {}
        columns = slice(0, self._in_features)
        weight = self._parameters["weight"]
        for part in self._rows:
            index, stop = slice(part.start, part.stop), part.offset + part.stop - part.start
            targets.setdefault(f"{prefix}{part.name}.weight", []).append(
                WeightTarget(weight[part.offset : stop], (part.total, self._in_features), (index, columns))
            )
            if self._bias is not None:
                targets.setdefault(f"{prefix}{part.name}.bias", []).append(
                    WeightTarget(self._bias[part.offset : stop], (part.total,), (index,))
                )
        return targets

    def finalize(self) -> None:
        self._method.finalize(self._parameters)

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, in], equal on all ranks -> this rank's [T, out]."""
        output = self._method.apply(self._parameters, x, self._bias)
        if self.lora is not None:
            self.lora.add(x, output)
        return output


class RowParallelLinear:
    """One checkpoint matrix, each rank holding a part of its input features; the outputs are summed over the ranks."""

    def __init__(
        self, name: str, out_features: int, columns: Shard, *, bias: bool, environment: LayerEnvironment
    ) -> None:
        self._name = name
        self._columns = columns
        self._out_features = out_features
        self._parallel = environment.parallel
        self._method = environment.quantization
        self._parameters = self._method.create(
            out_features, columns.padded, dtype=environment.dtype, device=environment.device
        )
        self._bias = (
            torch.zeros(out_features, dtype=environment.dtype, device=environment.device) if bias else None
        )
        self.lora: LoraSlot | None = None

    def weight_map(self, prefix: str) -> WeightMap:
        columns = self._columns
        targets = {
            f"{prefix}{self._name}.weight": [
                WeightTarget(
                    self._parameters["weight"][:, : columns.length],
                    (self._out_features, columns.total),
                    (slice(0, self._out_features), slice(columns.start, columns.stop)),
                )
            ]
        }
        if self._bias is not None:
            rows = (slice(0, self._out_features),)
            targets[f"{prefix}{self._name}.bias"] = [WeightTarget(self._bias, (self._out_features,), rows)]
        return targets

    def finalize(self) -> None:
        self._method.finalize(self._parameters)

    def __call__(self, x: Tensor) -> Tensor:
        """x: this rank's [T, in] -> [T, out], equal on all ranks. The bias is added once, by rank 0."""
        bias = self._bias if self._parallel.rank == 0 else None
        output = self._method.apply(self._parameters, x, bias)
        if self.lora is not None:
            self.lora.add(x, output)
        return all_reduce_sum(output, self._parallel)


@dataclass(slots=True, frozen=True)
class HeadShard:
    """This rank's attention heads. `kv_heads` are the checkpoint's heads behind the local ones, repeats allowed."""

    total_heads: int
    total_kv_heads: int
    head_dim: int
    first_head: int
    num_heads: int
    kv_heads: tuple[int, ...]

    @classmethod
    def of(cls, num_heads: int, num_kv_heads: int, head_dim: int, rank: int, size: int) -> HeadShard:
        """A KV head is repeated as often as it takes for every local KV head to serve equally many query heads."""
        if num_heads % size:
            raise ConfigError(
                f"{num_heads} query heads cannot be divided over {size} ranks; choose a divisor"
            )
        local = num_heads // size
        group = num_heads // num_kv_heads
        local_group = math.gcd(group, local)
        first = rank * local
        kv_heads = tuple((first + head) // group for head in range(0, local, local_group))
        return cls(num_heads, num_kv_heads, head_dim, first, local, kv_heads)

    @property
    def num_kv_heads(self) -> int:
        return len(self.kv_heads)


def qkv_linear(
    heads: HeadShard, in_features: int, *, bias: bool, environment: LayerEnvironment
) -> ColumnParallelLinear:
    """Query, key and value projections as one product: [T, (Hq + 2 Hkv) * D]."""
    dim = heads.head_dim
    rows = [
        _Rows(
            "q_proj",
            heads.total_heads * dim,
            heads.first_head * dim,
            (heads.first_head + heads.num_heads) * dim,
            0,
        )
    ]
    offset = heads.num_heads * dim
    for name in ("k_proj", "v_proj"):
        for head in heads.kv_heads:
            rows.append(_Rows(name, heads.total_kv_heads * dim, head * dim, (head + 1) * dim, offset))
            offset += dim
    return ColumnParallelLinear(rows, offset, in_features, bias=bias, environment=environment)


def gate_up_linear(
    columns: Shard, in_features: int, *, bias: bool, environment: LayerEnvironment
) -> ColumnParallelLinear:
    """Gate and up projections as one product: [T, 2 * columns.padded], gate first."""
    rows = [
        _Rows(name, columns.total, columns.start, columns.stop, offset)
        for name, offset in (("gate_proj", 0), ("up_proj", columns.padded))
    ]
    return ColumnParallelLinear(rows, 2 * columns.padded, in_features, bias=bias, environment=environment)
