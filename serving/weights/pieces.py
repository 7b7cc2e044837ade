"""Cuts what a parameter needs of a file into pieces: which bytes, and where they go. Opens and reads nothing by itself."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from serving.weights.safetensors_file import SafetensorsFile, StoredTensor
from serving.weights.target import WeightTarget

PIECE_BYTES = 4 * 2**20
"""What one thread reads at a time, and the size of a buffer: large enough that a read costs more than its call, small
enough that all threads have work and progress moves."""

FLOATING = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Types that load as they are, in safetensors' spelling."""

_WORTH_A_CALL_BYTES = 4096
"""Shorter runs are read together with what lies between them: a system call costs as much as copying this many bytes."""


@dataclass(slots=True, frozen=True)
class Piece:
    """Runs of `run_bytes`, `stride_bytes` from start to start, the first at byte `offset` of the file; each becomes a row
    of `rows` [runs, elements], a view of a parameter."""

    file: SafetensorsFile
    offset: int
    stride_bytes: int
    run_bytes: int
    dtype: torch.dtype
    rows: Tensor

    @property
    def num_bytes(self) -> int:
        """Of the parameter's share; what lies between the runs is not counted."""
        return self.rows.shape[0] * self.run_bytes

    @property
    def is_direct(self) -> bool:
        """Can the file's bytes be read to where they stay?"""
        rows = self.rows
        adjoining = rows.stride(1) == 1 or rows.shape[1] == 1
        return rows.device.type == "cpu" and rows.dtype is self.dtype and adjoining and self._run_by_run

    @property
    def _run_by_run(self) -> bool:
        return self.rows.shape[0] == 1 or self.run_bytes >= _WORTH_A_CALL_BYTES

    def read(self) -> None:
        """Read into the parameter itself; only where `is_direct`."""
        count, size = self.rows.shape
        pitch = self.rows.stride(0) * self.dtype.itemsize if count > 1 else 0
        place = memory_of(self.rows.data_ptr(), (count - 1) * pitch + size * self.dtype.itemsize)
        for run in range(count):
            start = run * pitch
            self.file.read_into(place[start : start + self.run_bytes], self.offset + run * self.stride_bytes)

    def read_to(self, buffer: Tensor) -> Tensor:
        """Read into `buffer` [PIECE_BYTES] uint8; returns the view [runs, elements] of it that `rows` is to equal."""
        count, size = self.rows.shape
        place = memory_of(buffer.data_ptr(), buffer.shape[0])
        pitch = self.run_bytes
        if self._run_by_run:
            for run in range(count):
                self.file.read_into(
                    place[run * pitch : (run + 1) * pitch], self.offset + run * self.stride_bytes
                )
        else:
            pitch = self.stride_bytes
            self.file.read_into(place[: (count - 1) * pitch + self.run_bytes], self.offset)
        elements = buffer[: (count - 1) * pitch + self.run_bytes].view(self.dtype)
        return elements.as_strided((count, size), (pitch // self.dtype.itemsize, 1))


def memory_of(address: int, num_bytes: int) -> memoryview:
    """The memory of a tensor, to be read into; whoever holds it keeps the tensor."""
    return memoryview((ctypes.c_char * num_bytes).from_address(address)).cast("B")


def pieces_of(file: SafetensorsFile, stored: StoredTensor, target: WeightTarget) -> Iterator[Piece]:
    """All of `target`, in pieces of at most `PIECE_BYTES`. The shapes agree, and the type is one of `FLOATING`."""
    dtype = FLOATING[stored.dtype]
    for offset, stride, rows in _runs(target.destination, target.shape, target.index, 0):
        whole = Piece(
            file,
            stored.start + offset * dtype.itemsize,
            stride * dtype.itemsize,
            rows.shape[1] * dtype.itemsize,
            dtype,
            rows,
        )
        yield from _cut(whole)


def _runs(
    destination: Tensor, shape: tuple[int, ...], index: tuple[slice, ...], offset: int
) -> Iterator[tuple[int, int, Tensor]]:
    """`offset` and stride, in elements of the tensor, of runs that become the rows of a view of `destination`."""
    if destination.numel() == 0:
        return
    split = len(shape)
    while split > 0 and (index[split - 1].start, index[split - 1].stop) == (0, shape[split - 1]):
        split -= 1  # trailing dimensions that are taken whole
    inner = math.prod(shape[1:])
    if split < 2:
        rows = _as_rows(destination, 1)
        first = index[0].start * inner if split else 0
    else:
        rows = _as_rows(destination, destination.shape[0]) if split == 2 else None
        first = index[0].start * inner + index[1].start * math.prod(shape[2:])
    if rows is not None:
        yield offset + first, inner, rows
        return
    for number, part in enumerate(destination):
        yield from _runs(part, shape[1:], index[1:], offset + (index[0].start + number) * inner)


def _as_rows(destination: Tensor, count: int) -> Tensor | None:
    try:
        return destination.view(count, destination.numel() // count)
    except RuntimeError:  # its strides do not allow it
        return None


def _cut(whole: Piece) -> Iterator[Piece]:
    rows = whole.rows
    if len(rows) > 1 and whole.stride_bytes <= PIECE_BYTES:
        step = max(1, PIECE_BYTES // whole.stride_bytes)
        for first in range(0, len(rows), step):
            offset = whole.offset + first * whole.stride_bytes
            yield Piece(
                whole.file,
                offset,
                whole.stride_bytes,
                whole.run_bytes,
                whole.dtype,
                rows[first : first + step],
            )
        return
    step = PIECE_BYTES // whole.dtype.itemsize
    for number in range(len(rows)):
        for first in range(0, rows.shape[1], step):
            part = rows[number : number + 1, first : first + step]
            num_bytes = part.shape[1] * whole.dtype.itemsize
            offset = whole.offset + number * whole.stride_bytes + first * whole.dtype.itemsize
            yield Piece(whole.file, offset, num_bytes, num_bytes, whole.dtype, part)
