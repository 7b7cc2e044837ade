"""Tensor parallelism below the layers: who the ranks are and how they exchange tensors."""

from __future__ import annotations

from serving.distributed.collectives import all_reduce_sum, broadcast_from_rank0, gather_to_rank0
from serving.distributed.parallel import ParallelContext, init_parallel
from serving.distributed.peer_memory import share_memory

__all__ = [
    "ParallelContext",
    "all_reduce_sum",
    "broadcast_from_rank0",
    "gather_to_rank0",
    "init_parallel",
    "share_memory",
]
