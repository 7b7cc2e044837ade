"""Where a checkpoint tensor goes. A layer composes shard and fuse into slices here; the loader only copies."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True, frozen=True)
class WeightTarget:
    """`index` of a checkpoint tensor whose full shape is `shape` is copied to `destination` (a view of a parameter)."""

    destination: Tensor
    shape: tuple[int, ...]
    index: tuple[slice, ...]


WeightMap = dict[str, list[WeightTarget]]
"""Checkpoint name -> the places that its parts go to on this rank."""


def whole(destination: Tensor) -> WeightTarget:
    """A tensor that every rank holds completely."""
    shape = tuple(destination.shape)
    return WeightTarget(destination, shape, tuple(slice(0, size) for size in shape))
