"""Moves pieces of files into parameters with several threads, through few buffers. Knows no names and no formats."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from serving.weights.pieces import PIECE_BYTES, Piece

_MIN_THREADS, _MAX_THREADS = 4, 16


class Staging(Protocol):
    """Buffers between a file and parameters that its bytes cannot be read to directly."""

    def take(self) -> Tensor:
        """A buffer [PIECE_BYTES] uint8 whose last content has reached its place."""
        ...

    def store(self, values: Tensor, rows: Tensor, buffer: Tensor) -> None:
        """Make `rows` equal `values`, a view of `buffer`, which is free again afterwards."""
        ...

    def finish(self) -> None:
        """Everything that was stored is in its place."""
        ...


class HostStaging:
    """For parameters in host memory."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self) -> Tensor:
        return self._free.pop() if self._free else torch.empty(PIECE_BYTES, dtype=torch.uint8)

    def store(self, values: Tensor, rows: Tensor, buffer: Tensor) -> None:
        rows.copy_(values)
        self._free.append(buffer)

    def finish(self) -> None:
        return None


class CudaStaging:
    """For parameters on a GPU: pinned buffers, copied while the next ones are read."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))  # on which the parameters were zeroed
        self._free: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def take(self) -> Tensor:
        if not self._free:
            return torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=True)
        buffer, copied = self._free.popleft()
        if copied is not None:
            copied.synchronize()
        return buffer

    def store(self, values: Tensor, rows: Tensor, buffer: Tensor) -> None:
        with torch.cuda.stream(self._stream):
            if values.dtype is rows.dtype and values.is_contiguous() and rows.is_contiguous():
                rows.copy_(values, non_blocking=True)
            else:
                # A copy that also converts or strides would do that on the host, one thread, waiting.
                size = (len(values) - 1) * values.stride(0) + values.shape[1]
                span = values.as_strided((size,), (1,)).to(self._device, non_blocking=True)
                rows.copy_(span.as_strided(values.shape, values.stride()))
            copied = torch.cuda.Event()
            copied.record(self._stream)
        self._free.append((buffer, copied))

    def finish(self) -> None:
        self._stream.synchronize()


@dataclass(slots=True, frozen=True)
class _Flight:
    piece: Piece
    future: Future[Tensor | None]
    buffer: Tensor | None


def transfer(
    pieces: Sequence[Piece], progress: Callable[[int, int], None], *, num_threads: int | None = None
) -> None:
    """Fill every piece's rows. `progress(done, total)` counts bytes. Raises ModelError for a file that ends early.

    Takes at most twice as many buffers of `PIECE_BYTES` as threads, and none for pieces that are read directly.
    """
    threads = num_threads or min(_MAX_THREADS, max(_MIN_THREADS, len(os.sched_getaffinity(0))))
    total, done = sum(piece.num_bytes for piece in pieces), 0
    staging = _staging(pieces)
    flights: deque[_Flight] = deque()
    progress(done, total)
    with contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="weights")
        stack.callback(pool.shutdown, cancel_futures=True)
        for piece in pieces:
            if len(flights) == 2 * threads:
                done += _land(flights.popleft(), staging)
                progress(done, total)
            flights.append(_start(piece, pool, staging))
        while flights:
            done += _land(flights.popleft(), staging)
            progress(done, total)
    staging.finish()


def _staging(pieces: Sequence[Piece]) -> Staging:
    device = pieces[0].rows.device if pieces else torch.device("cpu")
    return CudaStaging(device) if device.type == "cuda" else HostStaging()


def _start(piece: Piece, pool: ThreadPoolExecutor, staging: Staging) -> _Flight:
    if piece.is_direct:
        return _Flight(piece, pool.submit(piece.read), None)
    buffer = staging.take()
    return _Flight(piece, pool.submit(piece.read_to, buffer), buffer)


def _land(flight: _Flight, staging: Staging) -> int:
    """The bytes that have arrived."""
    values = flight.future.result()
    if values is not None and flight.buffer is not None:
        staging.store(values, flight.piece.rows, flight.buffer)
    return flight.piece.num_bytes
