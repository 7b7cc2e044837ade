"""The host's processors as a device."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
import torch

from serving import huge_pages
from serving.contracts import PeerMemory
from serving.errors import DeviceError

_CGROUP_LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)
_CGROUP_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def _meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    values = {}
    for line in lines:
        key, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            values[key] = int(words[0]) * 1024
    return values


def _cgroup_memory() -> tuple[int, int] | None:
    """(limit, used) in bytes of the container this process runs in, when it has a limit."""
    for limit_file, used_file in _CGROUP_LIMITS:
        try:
            limit, used = limit_file.read_text().strip(), used_file.read_text().strip()
        except OSError:
            continue
        if limit.isdigit() and used.isdigit():
            return int(limit), int(used)
    return None


class CpuDevice:
    """Memory figures honour the container's limit."""

    name: Literal["cpu", "cuda"] = "cpu"
    torch_device = torch.device("cpu")
    default_dtype = torch.float32
    default_attention_backend = "native"
    capability = (0, 0)
    distributed_backend: Literal["gloo", "nccl"] = "gloo"
    is_host = True

    @property
    def description(self) -> str:
        return f"cpu {platform.machine()}, {num_cores()} cores"

    def total_bytes(self) -> int:
        total = _meminfo().get("MemTotal", 0) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limit = _cgroup_memory()
        return min(total, limit[0]) if limit else total

    def free_bytes(self) -> int:
        free = _meminfo().get("MemAvailable", 0) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
        limit = _cgroup_memory()
        return max(0, min(free, limit[0] - limit[1])) if limit else free

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Memory is taken when it is first written, not here (torch's own zeros writes every page at once)."""
        return _as_tensor(huge_pages.zeroed(math.prod(shape) * dtype.itemsize), shape, dtype)

    def growing_zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return _as_tensor(huge_pages.zeroed(math.prod(shape) * dtype.itemsize, grows=True), shape, dtype)

    def mirror(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array)

    def stage(self, arrays: Sequence[npt.NDArray[Any]]) -> list[torch.Tensor]:
        return [torch.from_numpy(array) for array in arrays]

    def fetch(self, tensors: Sequence[torch.Tensor]) -> Callable[[], list[npt.NDArray[Any]]]:
        arrays = [tensor.numpy().copy() for tensor in tensors]
        return lambda: arrays

    def peer_memory(self) -> PeerMemory:
        raise DeviceError("ranks on a host exchange tensors through gloo")

    def synchronize(self) -> None:
        return None

    def reset_peak(self) -> None:
        return None

    def peak_bytes(self) -> int:
        return 0

    def empty_cache(self) -> None:
        return None


def _as_tensor(pages: memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(pages, dtype=dtype, count=math.prod(shape)).view(shape)


def num_cores() -> int:
    """Cores this process may use: its affinity, and the container's quota rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CGROUP_CPU_QUOTA.read_text().split()
    except (OSError, ValueError):
        return cores
    return min(cores, -(-int(quota) // int(period))) if quota.isdigit() else cores
