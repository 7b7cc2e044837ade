"""The device role and how one is obtained. Knows nothing of models or batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy.typing as npt
import torch

from serving.contracts import PeerMemory


class Device(Protocol):
    """One accelerator, or the host's processors, as one rank sees it."""

    @property
    def name(self) -> Literal["cpu", "cuda"]: ...

    @property
    def torch_device(self) -> torch.device: ...

    @property
    def default_dtype(self) -> torch.dtype:
        """Compute type when the model's own is not usable here."""
        ...

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability of a GPU; (0, 0) for the host."""
        ...

    @property
    def default_attention_backend(self) -> str:
        """Name in `serving.attention.registry`."""
        ...

    @property
    def distributed_backend(self) -> Literal["gloo", "nccl"]: ...

    @property
    def description(self) -> str:
        """For logs and `/info`."""
        ...

    def total_bytes(self) -> int:
        """Memory of the device that this process may address."""
        ...

    def free_bytes(self) -> int: ...

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A new zeroed tensor."""
        ...

    def growing_zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A new zeroed tensor that will be written over time, from its beginning on."""
        ...

    @property
    def is_host(self) -> bool:
        """Is the device's memory the host's, so that an array and its tensor are the same bytes?"""
        ...

    def mirror(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """A tensor like the array: on the host the very same memory, elsewhere a copy of what it holds now."""
        ...

    def stage(self, arrays: Sequence[npt.NDArray[Any]]) -> list[torch.Tensor]:
        """The arrays on the device, in one transfer that nobody waits for. They must not be written to afterwards where the
        device is the host; elsewhere they may be."""
        ...

    def fetch(self, tensors: Sequence[torch.Tensor]) -> Callable[[], list[npt.NDArray[Any]]]:
        """Begin to bring over what the tensors hold when the work that was launched so far is done; the call that is
        returned waits for it and gives new arrays. Work that is launched from now on may overwrite the tensors."""
        ...

    def peer_memory(self) -> PeerMemory:
        """How processes on this machine share memory of devices of this kind. Raises DeviceError where they do not."""
        ...

    def synchronize(self) -> None: ...

    def reset_peak(self) -> None:
        """Start a new measurement for `peak_bytes`."""
        ...

    def peak_bytes(self) -> int:
        """Most memory held by tensors of this process since `reset_peak`; 0 where it is not measured."""
        ...

    def empty_cache(self) -> None:
        """Give memory that the allocator holds and no tensor uses back to the device."""
        ...


def get_device(name: Literal["cpu", "cuda"], index: int = 0) -> Device:
    """Raises DeviceError when the named device is not usable."""
    if name == "cpu":
        from serving.platform.cpu import CpuDevice

        return CpuDevice()
    from serving.platform.cuda import CudaDevice

    return CudaDevice(index)


def visible_gpus() -> int:
    """GPUs that this process may use."""
    from serving.platform import cuda

    return cuda.device_count()


def gpu_driver() -> str:
    """The GPU driver that was found, for error messages."""
    from serving.platform import cuda

    return cuda.driver()


def num_cores() -> int:
    """Processor cores that this process may use."""
    from serving.platform import cpu

    return cpu.num_cores()
