"""The group of tensor-parallel ranks. Knows no layer and no message; ranks meet through a file, never a TCP store."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch.distributed

from serving.contracts import SmallSums
from serving.platform import Device

_LOOPBACK = "127.0.0.1"
_c10d: Any = torch.distributed
"""Untyped: the stubs lack the stores and the options of the groups."""


class RankGroup(Protocol):
    """What both of torch's process groups offer, used directly: the process keeps no global default group."""

    def allreduce(self, tensors: list[Any]) -> Any: ...

    def allgather(self, outputs: list[list[Any]], inputs: list[Any]) -> Any: ...

    def gather(self, outputs: list[list[Any]], inputs: list[Any], options: Any) -> Any: ...

    def broadcast(self, tensors: list[Any], options: Any) -> Any: ...

    def shutdown(self) -> None: ...


@dataclass(slots=True, frozen=True)
class ParallelContext:
    """This process's place among the ranks. `group` is None exactly when `size` is 1.

    With `fixed_order`, sums over the ranks are taken in rank order for every element, whatever the shape. `small_sums` takes
    the others that it accepts off the group.
    """

    rank: int
    size: int
    group: RankGroup | None = None
    fixed_order: bool = False
    small_sums: SmallSums | None = None

    @classmethod
    def single(cls) -> ParallelContext:
        return cls(rank=0, size=1)

    def close(self) -> None:
        """Leave the group; peers that still wait for this rank get an error."""
        if self.group is not None:
            self.group.shutdown()


def init_parallel(
    rank: int, size: int, device: Device, store_path: str | Path, *, timeout_s: float = 600.0
) -> ParallelContext:
    """Blocks until all `size` ranks called it with the same `store_path`: a file in a private folder, not reused.

    A collective that waits longer than `timeout_s` for a peer raises RuntimeError.
    """
    if size == 1:
        return ParallelContext.single()
    store = _c10d.FileStore(str(store_path), size)
    create = _nccl_group if device.distributed_backend == "nccl" else _gloo_group
    group = create(store, rank, size, timedelta(seconds=timeout_s))
    return ParallelContext(rank=rank, size=size, group=group)


def _gloo_group(store: Any, rank: int, size: int, timeout: timedelta) -> RankGroup:
    """Gloo would listen on the address of the host name; the ranks share one machine, so only loopback may."""
    gloo = _c10d.ProcessGroupGloo
    options = gloo._Options()
    options._timeout = timeout
    options._devices = [gloo.create_device(hostname=_LOOPBACK)]
    group: RankGroup = gloo(store, rank, size, options)
    return group


def _nccl_group(store: Any, rank: int, size: int, timeout: timedelta) -> RankGroup:
    nccl = _c10d.ProcessGroupNCCL
    options = nccl.Options()
    options._timeout = timeout
    group: RankGroup = nccl(store, rank, size, options)
    return group
