"""What every layer is built with: type, device, ranks, kernels, quantization. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from serving.contracts import AttentionBackend, QuantMethod
from serving.distributed import ParallelContext
from serving.kernels.dispatch import Kernels


@dataclass(slots=True, frozen=True)
class LayerEnvironment:
    dtype: torch.dtype
    device: torch.device
    parallel: ParallelContext
    kernels: Kernels
    quantization: QuantMethod
    attention: AttentionBackend
    max_positions: int
    kv_cache_dtype: torch.dtype | None = None
    """None: `dtype`."""


@dataclass(slots=True, frozen=True)
class Shard:
    """A rank's part `start:stop` of `total` rows or columns; every rank stores `padded` of them, zeros at the end."""

    total: int
    start: int
    stop: int
    padded: int

    @classmethod
    def of(cls, total: int, parallel: ParallelContext, *, multiple: int = 1) -> Shard:
        """`padded` is a multiple of `multiple`."""
        padded = -(-total // (parallel.size * multiple)) * multiple
        start = min(total, parallel.rank * padded)
        return cls(total=total, start=start, stop=min(total, start + padded), padded=padded)

    @property
    def length(self) -> int:
        return self.stop - self.start
