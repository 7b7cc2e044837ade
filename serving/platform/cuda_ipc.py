"""Memory of a GPU that other processes can map, by CUDA's interprocess handles. Knows addresses, not ranks or tensors.

Through NVIDIA's bindings of its runtime, a requirement of torch's CUDA builds. Not torch's own sharing of tensors: that
counts references in files, and keeps the owner from freeing what a reader has not let go.
https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__DEVICE.html
"""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any

from serving.errors import DeviceError

_HANDLE_BYTES = 64


class CudaPeerMemory:
    """A role of `contracts.PeerMemory` on GPU `index`. What it allocates and maps stays until the process ends: memory
    must not be freed while another process has it mapped, and the ranks end in no order."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._cuda = _bindings()

    def allocate(self, num_bytes: int) -> int:
        (address,) = self._call("cudaMalloc", num_bytes)
        self._call("cudaMemset", address, 0, num_bytes)
        self._call("cudaDeviceSynchronize")
        return int(address)

    def export(self, address: int) -> bytes:
        """For `open` in another process; begins with the index of the GPU."""
        (handle,) = self._call("cudaIpcGetMemHandle", address)
        return self._index.to_bytes(4, "little") + ctypes.string_at(handle.getPtr(), _HANDLE_BYTES)

    def open(self, exported: bytes) -> int:
        """The other process's memory at an address that this GPU reads and writes, with atomic operations that both see."""
        owner = int.from_bytes(exported[:4], "little")
        if owner != self._index:
            attribute = self._cuda.cudaDeviceP2PAttr.cudaDevP2PAttrNativeAtomicSupported
            (linked,) = self._call("cudaDeviceGetP2PAttribute", attribute, self._index, owner)
            if not linked:
                raise DeviceError(f"no NVLink between GPU {self._index} and GPU {owner}")
        handle = self._cuda.cudaIpcMemHandle_t()
        ctypes.memmove(handle.getPtr(), exported[4:], _HANDLE_BYTES)
        (address,) = self._call("cudaIpcOpenMemHandle", handle, self._cuda.cudaIpcMemLazyEnablePeerAccess)
        return int(address)

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        # The bindings may hold a current device of their own beside torch's.
        for function, values in (
            (self._cuda.cudaSetDevice, (self._index,)),
            (getattr(self._cuda, name), arguments),
        ):
            status, *results = function(*values)
            if status != self._cuda.cudaError_t.cudaSuccess:
                reason = self._cuda.cudaGetErrorString(status)[1].decode()
                raise DeviceError(f"{name} failed on GPU {self._index}: {reason}")
        return tuple(results)


def _bindings() -> ModuleType:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise DeviceError(f"the package cuda-bindings cannot be imported: {error}") from error
    bindings: ModuleType = runtime
    return bindings
