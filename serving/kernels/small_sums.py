"""Which way small sums over the ranks go, and the memory the short way needs. Knows the kernel by what it takes."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from serving import logs
from serving.contracts import PeerMemory, SmallSums
from serving.distributed import ParallelContext, share_memory
from serving.errors import DeviceError

logger = logging.getLogger(__name__)

HALF_BYTES = 512 * 1024
"""The longest sum. A rank's memory holds two such parts, then a row of `MAX_PROGRAMS` signals (int64) for each rank."""
TILE_BYTES = 4096
MAX_PROGRAMS = HALF_BYTES // TILE_BYTES
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MULTIPLE = 16
"""Numbers of elements that are multiples of it share one compiled kernel, whose reads are as wide as the machine's."""
_MAX_RANKS = 8
_FEW_RANKS = 4


def choose_small_sums(
    make_memory: Callable[[], PeerMemory], parallel: ParallelContext, device: torch.device
) -> SmallSums | None:
    """One launch per sum, or None where a rank cannot map the memory of the others. All ranks call it together."""
    try:
        chosen = OneShotSums(make_memory, parallel, device)
    except DeviceError as error:
        logs.event(logger, logging.INFO, "small sums over the ranks", by="process group", reason=str(error))
        return None
    why = f"up to {chosen.max_bytes // 1024} KiB; each rank reads the memory of all others"
    logs.event(logger, logging.INFO, "small sums over the ranks", by="one launch", reason=why)
    return chosen


class OneShotSums:
    """A role of `contracts.SmallSums`, by `kernels.triton.one_shot`. Raises `DeviceError` where memory cannot be shared.

    It is left where vLLM's own all-reduce leaves the one-shot way between linked GPUs (csrc/custom_all_reduce.cuh): above
    512 KiB for up to four ranks, above 256 KiB for more. Not yet measured here.
    """

    def __init__(
        self, make_memory: Callable[[], PeerMemory], parallel: ParallelContext, device: torch.device
    ) -> None:
        def make() -> PeerMemory:
            if parallel.size > _MAX_RANKS:
                raise DeviceError(f"{parallel.size} ranks, it is made for at most {_MAX_RANKS}")
            try:
                from serving.kernels.triton import one_shot
            except ImportError as error:
                raise DeviceError(f"triton cannot be imported: {error}") from error
            self._sum = one_shot.one_shot_sum
            return make_memory()

        signals_bytes = 8 * parallel.size * MAX_PROGRAMS
        addresses = share_memory(make, 2 * HALF_BYTES + signals_bytes, parallel, device)
        self._rank, self._num_ranks = parallel.rank, parallel.size
        self._parts = torch.tensor(addresses, dtype=torch.int64, device=device)
        self._signals = self._parts + 2 * HALF_BYTES
        self._turns = torch.zeros(MAX_PROGRAMS, dtype=torch.int64, device=device)
        self.max_bytes = HALF_BYTES if parallel.size <= _FEW_RANKS else HALF_BYTES // 2

    def accepts(self, x: Tensor) -> bool:
        small = x.numel() * x.element_size() <= self.max_bytes
        return small and x.dtype in DTYPES and x.numel() % MULTIPLE == 0

    def add(self, x: Tensor) -> Tensor:
        return self._sum(
            x, self._parts, self._signals, self._turns, rank=self._rank, num_ranks=self._num_ranks
        )
