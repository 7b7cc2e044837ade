"""NVIDIA GPUs as a device. With `cuda_graphs` and `pinned` the only module that speaks to `torch.cuda`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
import torch

from serving.contracts import PeerMemory
from serving.errors import DeviceError
from serving.platform.cuda_ipc import CudaPeerMemory
from serving.platform.pinned import PinnedFetches, PinnedRing

_AMPERE = (8, 0)


def device_count() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def driver() -> str:
    """What is known about the installed driver, in words."""
    built_for = f"torch {torch.__version__} is built for CUDA {torch.version.cuda or 'none (CPU build)'}"
    try:
        first_line = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return f"no NVIDIA driver found; {built_for}"
    return f"{first_line.strip()}; {built_for}"


class CudaDevice:
    """GPU `index`; becomes the current device of the process."""

    name: Literal["cpu", "cuda"] = "cuda"
    default_dtype = torch.bfloat16
    distributed_backend: Literal["gloo", "nccl"] = "nccl"
    is_host = False

    def __init__(self, index: int = 0) -> None:
        found = device_count()
        if index >= found:
            raise DeviceError(f"GPU {index} was asked for, {found} are usable ({driver()})")
        self.torch_device = torch.device("cuda", index)
        torch.cuda.set_device(self.torch_device)
        self._pinned = PinnedRing(self.torch_device)
        self._fetches = PinnedFetches()

    @property
    def capability(self) -> tuple[int, int]:
        return torch.cuda.get_device_capability(self.torch_device)

    @property
    def default_attention_backend(self) -> str:
        """Our Triton kernels need an Ampere GPU; older ones take torch's own attention."""
        ampere = self.capability >= _AMPERE
        return "triton" if ampere and find_spec("triton") is not None else "sdpa"

    @property
    def description(self) -> str:
        properties = torch.cuda.get_device_properties(self.torch_device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"

    def total_bytes(self) -> int:
        return int(torch.cuda.mem_get_info(self.torch_device)[1])

    def free_bytes(self) -> int:
        return int(torch.cuda.mem_get_info(self.torch_device)[0])

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.torch_device)

    def growing_zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return self.zeros(shape, dtype)

    def mirror(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(self.torch_device, copy=True)

    def stage(self, arrays: Sequence[npt.NDArray[Any]]) -> list[torch.Tensor]:
        return self._pinned.stage(arrays)

    def fetch(self, tensors: Sequence[torch.Tensor]) -> Callable[[], list[npt.NDArray[Any]]]:
        return self._fetches.fetch(tensors)

    def peer_memory(self) -> PeerMemory:
        return CudaPeerMemory(self.torch_device.index)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch_device)

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.torch_device)

    def peak_bytes(self) -> int:
        return int(torch.cuda.max_memory_allocated(self.torch_device))

    def empty_cache(self) -> None:
        torch.cuda.empty_cache()
