"""Exchanges between the ranks; each is a no-op for one rank. Knows tensors only."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.distributed import distributed_c10d

from serving.distributed.parallel import ParallelContext


def all_reduce_sum(x: Tensor, parallel: ParallelContext) -> Tensor:
    """Sum of `x` over the ranks, in the same tensor where its layout allows it."""
    if parallel.group is None:
        return x
    x = x.contiguous()
    if parallel.fixed_order:
        parts = [torch.empty_like(x) for _ in range(parallel.size)]
        parallel.group.allgather([parts], [x]).wait()
        return functools.reduce(torch.add, parts)
    if parallel.small_sums is not None and parallel.small_sums.accepts(x):
        return parallel.small_sums.add(x)
    parallel.group.allreduce([x]).wait()
    return x


def gather_to_rank0(x: Tensor, parallel: ParallelContext) -> Tensor | None:
    """The ranks' `x` side by side along the last dimension on rank 0, None elsewhere. All ranks pass equal shapes."""
    if parallel.group is None:
        return x
    x = x.contiguous()
    options = distributed_c10d.GatherOptions()
    options.rootRank = 0
    if parallel.rank != 0:
        parallel.group.gather([], [x], options).wait()
        return None
    parts = [torch.empty_like(x) for _ in range(parallel.size)]
    parallel.group.gather([parts], [x], options).wait()
    return torch.cat(parts, dim=-1)


def broadcast_from_rank0(x: Tensor, parallel: ParallelContext) -> Tensor:
    """Rank 0's `x` in every rank's `x`, which must be contiguous."""
    if parallel.group is None:
        return x
    options = distributed_c10d.BroadcastOptions()
    options.rootRank = 0
    options.rootTensor = 0
    parallel.group.broadcast([x], options).wait()
    return x
