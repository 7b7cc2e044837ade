"""The group of tensor-parallel ranks. Knows no layer and no message; ranks meet through a file, never a TCP store."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from serving.platform import Device

_LOOPBACK = "127.0.0.1"


@dataclass(slots=True, frozen=True)
class ParallelContext:
    """This process's place among the ranks. `group` is None exactly when `size` is 1."""

    rank: int
    size: int
    group: dist.distributed_c10d.Backend | None = None

    @classmethod
    def single(cls) -> ParallelContext:
        return cls(rank=0, size=1)


def init_parallel(
    rank: int, size: int, device: Device, store_path: str | Path, *, timeout_s: float = 600.0
) -> ParallelContext:
    """Blocks until all `size` ranks called it with the same `store_path` (a file in a private folder, not reused).

    A collective that waits longer than `timeout_s` for a peer raises RuntimeError.
    """
    if size == 1:
        return ParallelContext.single()
    store = dist.FileStore(str(store_path), size)
    timeout = timedelta(seconds=timeout_s)
    if device.distributed_backend == "nccl":
        return ParallelContext(rank=rank, size=size, group=_nccl_group(store, rank, size, timeout))
    return ParallelContext(rank=rank, size=size, group=_gloo_group(store, rank, size, timeout))


def _gloo_group(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.distributed_c10d.Backend:
    """Gloo's default device listens on the address of the host name; ranks are one machine, so only loopback may."""
    from torch.distributed import ProcessGroupGloo

    options = ProcessGroupGloo._Options()
    options._timeout = timeout
    options._devices = [ProcessGroupGloo.create_device(hostname=_LOOPBACK)]
    return ProcessGroupGloo(store, rank, size, options)


def _nccl_group(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.distributed_c10d.Backend:
    from torch.distributed import ProcessGroupNCCL

    options = ProcessGroupNCCL.Options()
    options._timeout = timeout
    return ProcessGroupNCCL(store, rank, size, options)
