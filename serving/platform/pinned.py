"""Transfers that nobody waits for, through pinned memory: to the device all arrays of a step in one copy, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_ALIGNMENT = 16
_NUM_BUFFERS = 4
"""A step fills two, for its inputs and for the choice of tokens, while the device may still read those of the one before."""
_FIRST_BYTES = 1 << 16


def layout(arrays: Sequence[npt.NDArray[Any] | torch.Tensor]) -> tuple[list[int], int]:
    """Where each array begins when they stand one after the other, aligned; and the bytes of all."""
    starts: list[int] = []
    end = 0
    for array in arrays:
        starts.append(end)
        end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    return starts, end


def fill(buffer: npt.NDArray[np.uint8], arrays: Sequence[npt.NDArray[Any]], starts: Sequence[int]) -> None:
    for array, start in zip(arrays, starts, strict=True):
        target = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        np.copyto(target, array)


def views(
    memory: torch.Tensor, arrays: Sequence[npt.NDArray[Any]], starts: Sequence[int]
) -> list[torch.Tensor]:
    """The arrays' tensors in memory [bytes] uint8 that was filled like `fill` does."""
    return [
        memory[start : start + array.nbytes].view(getattr(torch, array.dtype.name)).view(tuple(array.shape))
        for array, start in zip(arrays, starts, strict=True)
    ]


class _Buffer:
    """Pinned memory, and the event after which the device has done with it."""

    def __init__(self, num_bytes: int) -> None:
        self.host = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        self.array = self.host.numpy()
        self.is_done = torch.cuda.Event()


class PinnedRing:
    """Pinned buffers that take turns, so that the host can fill one while the device still reads another."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: list[_Buffer] = []
        self._next = 0

    def stage(self, arrays: Sequence[npt.NDArray[Any]]) -> list[torch.Tensor]:
        """New tensors on the device; valid for whatever the current stream does next."""
        starts, num_bytes = layout(arrays)
        buffer = self._free_buffer(num_bytes)
        fill(buffer.array, arrays, starts)
        memory = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        memory.copy_(buffer.host[:num_bytes], non_blocking=True)
        buffer.is_done.record()
        return views(memory, arrays, starts)

    def _free_buffer(self, num_bytes: int) -> _Buffer:
        index, self._next = self._next, (self._next + 1) % _NUM_BUFFERS
        if index == len(self._buffers):
            self._buffers.append(_Buffer(max(num_bytes, _FIRST_BYTES)))
        buffer = self._buffers[index]
        buffer.is_done.synchronize()
        if len(buffer.array) < num_bytes:
            buffer = self._buffers[index] = _Buffer(2 * num_bytes)
        return buffer


class PinnedFetches:
    """Pinned buffers that the device writes to and the host reads later, each used again once it was read."""

    def __init__(self) -> None:
        self._free: list[_Buffer] = []

    def fetch(self, tensors: Sequence[torch.Tensor]) -> Callable[[], list[npt.NDArray[Any]]]:
        """`Device.fetch`, on the current stream."""
        starts, num_bytes = layout(tensors)
        buffer = self._free.pop() if self._free else _Buffer(max(num_bytes, _FIRST_BYTES))
        if len(buffer.array) < num_bytes:
            buffer = _Buffer(2 * num_bytes)
        places = [
            buffer.host[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for tensor, start in zip(tensors, starts, strict=True)
        ]
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor, non_blocking=True)
        buffer.is_done.record()

        def wait() -> list[npt.NDArray[Any]]:
            buffer.is_done.synchronize()
            arrays = [place.numpy().copy() for place in places]
            self._free.append(buffer)
            return arrays

        return wait
