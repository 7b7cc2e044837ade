"""CUDA graphs: one launch for all kernels of a captured run.

Follows https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs: warm-up on a side stream, then capture, with one
memory pool for all graphs, since they never run at the same time.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.cuda.memory import _cuda_endAllocateToPool, _cuda_releasePool  # type: ignore[attr-defined]

from serving import logs
from serving.contracts import StepGraph

logger = logging.getLogger(__name__)

MAX_ROWS = 512
_SMALLEST = (1, 2, 4, 8)
_STEP_ROWS = 8
_STEP_SHARE = 8
"""Above the smallest, a size is at most 8 rows or one eighth larger than the one before."""


def padded_sizes(max_rows: int) -> list[int]:
    """Few sizes up to `max_rows` that waste little: above 64 rows at most one row in nine is padding."""
    sizes = [size for size in _SMALLEST if size < max_rows]
    while not sizes or sizes[-1] < max_rows:
        last = sizes[-1] if sizes else 0
        step = max(_STEP_ROWS, last // _STEP_SHARE // _STEP_ROWS * _STEP_ROWS)
        sizes.append(min(max_rows, last + step))
    return sizes


@functools.cache
def _capture_stream(device: int) -> torch.cuda.Stream:
    """One for all engines of the process: cuBLAS keeps a workspace of 32 MiB and more for every stream that it has seen."""
    return torch.cuda.Stream(device)


class CudaGraphBackend:
    """Captures on the current device. What the run allocates stays in the pool of this backend."""

    def __init__(self, max_rows: int = MAX_ROWS) -> None:
        sizes = padded_sizes(min(max_rows, MAX_ROWS))
        self._padded = [next(size for size in sizes if size >= count) for count in range(1, sizes[-1] + 1)]
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = _capture_stream(torch.cuda.current_device())
        self._failed: list[torch.cuda.CUDAGraph] = []

    def padded_rows(self, num_rows: int) -> int | None:
        return self._padded[num_rows - 1] if num_rows <= len(self._padded) else None

    def capture(self, run: Callable[[], Tensor]) -> tuple[StepGraph, Tensor] | None:
        """Afterwards the result is that of the run."""
        main = torch.cuda.current_stream()
        self._stream.wait_stream(main)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream), _no_collection():
            run()  # compiles kernels and makes the libraries' workspaces: none of that can be captured
            self._stream.synchronize()
            try:
                output = self._record(graph, run)
            except RuntimeError as error:
                logs.event(logger, logging.WARNING, "decode step cannot be captured", reason=str(error))
                self._abandon(graph)
                return None
        main.wait_stream(self._stream)
        graph.replay()
        return graph, weak(output)

    def _record(self, graph: torch.cuda.CUDAGraph, run: Callable[[], Tensor]) -> Tensor:
        """`torch.cuda.graph` would collect garbage and empty the allocator every time, which takes longer than this. The
        watcher thread of NCCL asks the driver while we capture, so only this thread is held to what may be captured."""
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            return run()
        finally:
            graph.capture_end()

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """torch leaves its allocator in the middle of a capture that failed, and would refuse the next one in this pool."""
        self._failed.append(graph)  # which torch may still ask whether it is the one that captures
        with contextlib.suppress(RuntimeError):  # the allocator had come to the end
            _cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)
            _cuda_releasePool(torch.cuda.current_device(), self._pool)
        self._pool = torch.cuda.graph_pool_handle()


class _Place:
    """Bytes on a device, without holding them (numba.readthedocs.io, "CUDA Array Interface", version 2)."""

    def __init__(self, address: int, num_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (num_bytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 2,
        }


def weak(tensor: Tensor) -> Tensor:
    """The same elements, without keeping their memory from others. What a graph left stays until another graph of its pool
    runs, while results that hold their memory would take one for every size: gigabytes, with large vocabularies."""
    if not tensor.is_cuda:
        return tensor
    span = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    place = _Place(tensor.data_ptr(), span * tensor.itemsize)
    elements = torch.as_tensor(place, device=tensor.device).view(tensor.dtype)
    return elements.as_strided(tensor.shape, tensor.stride())


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """A collection that frees a tensor of another pool would break a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
