"""CUDA's interprocess handles, with stand-ins for NVIDIA's bindings: which calls are made, and what a failure says."""

from __future__ import annotations

import ctypes
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from serving.errors import DeviceError
from serving.platform.cuda_ipc import CudaPeerMemory

OK, REFUSED = 0, 217


class Handle:
    def __init__(self) -> None:
        self.bytes = ctypes.create_string_buffer(64)

    def getPtr(self) -> int:
        return ctypes.addressof(self.bytes)


class Runtime:
    """As `cuda.bindings.runtime` answers: tuples that begin with a status."""

    cudaIpcMemHandle_t = Handle
    cudaIpcMemLazyEnablePeerAccess = 1
    cudaError_t = SimpleNamespace(cudaSuccess=OK)
    cudaDeviceP2PAttr = SimpleNamespace(cudaDevP2PAttrNativeAtomicSupported=3)

    def __init__(self, *, linked: int = 1, open_status: int = OK) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._linked, self._open_status = linked, open_status

    def cudaSetDevice(self, index: int) -> tuple[int]:
        self.calls.append(("device", index))
        return (OK,)

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        return OK, 0x7000 + size

    def cudaMemset(self, address: int, value: int, size: int) -> tuple[int]:
        self.calls.append(("memset", address, value, size))
        return (OK,)

    def cudaDeviceSynchronize(self) -> tuple[int]:
        return (OK,)

    def cudaIpcGetMemHandle(self, address: int) -> tuple[int, Handle]:
        handle = Handle()
        handle.bytes.raw = address.to_bytes(8, "little") * 8
        return OK, handle

    def cudaDeviceGetP2PAttribute(self, attribute: int, source: int, target: int) -> tuple[int, int]:
        self.calls.append(("linked", attribute, source, target))
        return OK, self._linked

    def cudaIpcOpenMemHandle(self, handle: Handle, flags: int) -> tuple[int, int | None]:
        self.calls.append(("open", handle.bytes.raw[:8], flags))
        return self._open_status, 0x9000

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:
        return OK, b"peer access is not supported between these two devices"


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(runtime: Runtime) -> Runtime:
        package: Any = ModuleType("cuda.bindings")
        package.runtime = runtime
        monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
        monkeypatch.setitem(sys.modules, "cuda.bindings", package)
        return runtime

    return put


def test_zeroed_memory_is_exported_and_opened_on_a_linked_gpu(install: Any) -> None:
    runtime = install(Runtime())
    owner, reader = CudaPeerMemory(2), CudaPeerMemory(1)
    address = owner.allocate(100)
    assert ("memset", address, 0, 100) in runtime.calls
    exported = owner.export(address)
    assert len(exported) <= 256
    assert reader.open(exported) == 0x9000
    assert runtime.calls[-4:] == [
        ("device", 1), ("linked", 3, 1, 2), ("device", 1), ("open", address.to_bytes(8, "little"), 1),
    ]  # fmt: skip


def test_processes_on_one_gpu_need_no_link(install: Any) -> None:
    install(Runtime(linked=0))
    memory = CudaPeerMemory(0)
    assert memory.open(CudaPeerMemory(0).export(memory.allocate(10))) == 0x9000


def test_gpus_without_nvlink_are_named(install: Any) -> None:
    install(Runtime(linked=0))
    with pytest.raises(DeviceError, match="no NVLink between GPU 1 and GPU 0"):
        CudaPeerMemory(1).open(CudaPeerMemory(0).export(1))


def test_a_call_that_fails_is_named_with_cudas_reason(install: Any) -> None:
    install(Runtime(open_status=REFUSED))
    with pytest.raises(
        DeviceError, match="cudaIpcOpenMemHandle failed on GPU 0: peer access is not supported"
    ):
        CudaPeerMemory(0).open(CudaPeerMemory(0).export(1))


def test_without_the_bindings_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(DeviceError, match="cuda-bindings cannot be imported"):
        CudaPeerMemory(0)
