"""Captures on a stand-in for torch's graphs and allocator, which keeps the rules that a failed capture meets there."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from serving.platform import cuda_graphs
from serving.platform.cuda_graphs import CudaGraphBackend

Pool = tuple[int, int]


@dataclass
class Allocator:
    """c10/cuda/CUDACachingAllocator.cpp: beginAllocateToPool, endAllocateToPool, releasePool."""

    recording: set[Pool] = field(default_factory=set)
    uses: Counter[Pool] = field(default_factory=Counter)
    seen: set[Pool] = field(default_factory=set)
    is_invalid: bool = False

    def begin(self, pool: Pool) -> None:
        assert pool not in self.seen or self.uses[pool] > 0, "the pool was given back"
        self.seen.add(pool)
        self.uses[pool] += 1
        if pool in self.recording:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        self.recording.add(pool)

    def end(self, device: int, pool: Pool) -> None:
        if pool not in self.recording:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.recording.remove(pool)

    def release(self, device: int, pool: Pool) -> None:
        self.uses[pool] -= 1


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Allocator]:
    found = Allocator()

    class Graph:
        def capture_begin(self, *, pool: Pool, capture_error_mode: str) -> None:
            self.pool = pool
            found.begin(pool)

        def capture_end(self) -> None:
            if found.is_invalid:
                found.is_invalid = False
                raise RuntimeError("operation failed due to a previous error during capture")
            found.end(0, self.pool)

        def replay(self) -> None:
            pass

    class Stream:
        def __init__(self, device: int = 0) -> None:
            pass

        def wait_stream(self, other: Stream) -> None:
            pass

        def synchronize(self) -> None:
            pass

    numbers = itertools.count(1)
    for name, stand_in in {
        "CUDAGraph": Graph,
        "Stream": Stream,
        "current_stream": Stream,
        "current_device": lambda: 0,
        "graph_pool_handle": lambda: (0, next(numbers)),
        "stream": lambda stream: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(cuda_graphs, "_cuda_endAllocateToPool", found.end)
    monkeypatch.setattr(cuda_graphs, "_cuda_releasePool", found.release)
    cuda_graphs._capture_stream.cache_clear()
    yield found
    cuda_graphs._capture_stream.cache_clear()


def test_a_capture_that_failed_is_in_nobodys_way(allocator: Allocator) -> None:
    runs: list[int] = []

    def waits() -> Tensor:
        """Once for itself, and then in a capture, which torch does not allow."""
        runs.append(len(runs))
        if len(runs) == 2:
            allocator.is_invalid = True
            raise RuntimeError("operation not permitted when stream is capturing")
        return torch.zeros(1)

    backend = CudaGraphBackend(8)
    assert backend.capture(lambda: torch.ones(2)) is not None
    assert backend.capture(waits) is None
    assert allocator.recording == set(), "every later allocation would go to that pool"
    made = [backend.capture(lambda: torch.ones(3)) for _ in range(2)]
    assert all(made)
    assert sorted(allocator.uses.values()) == [1, 2], "the failed one still holds its pool"


def test_engines_after_each_other_capture_on_one_stream(allocator: Allocator) -> None:
    assert CudaGraphBackend(8)._stream is CudaGraphBackend(4)._stream
