"""The machine and its measured ceilings: `python -m benchmarks.gpu.machine RECORD`."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.gpu.measures import Record

_PACKAGES = ("torch", "triton", "transformers", "flash-attn", "msgspec", "tokenizers", "numpy")
_COPY_BYTES = 4 * 2**30
_PRODUCT_SIZE = 8192
_REPEATS = 10


def main() -> None:
    record = Record(Path(sys.argv[1]))
    record.add("python", platform.python_version())
    record.add("processor", f"{platform.machine()}, {torch.get_num_threads()} threads")
    for package in _PACKAGES:
        record.add(f"version.{package}", _version(package))
    record.add("version.cuda", torch.version.cuda)
    if not torch.cuda.is_available():
        return
    properties = torch.cuda.get_device_properties(0)
    record.add("device", properties.name)
    record.add("device.gib", properties.total_memory / 2**30)
    record.add("device.capability", f"{properties.major}.{properties.minor}")
    record.add("device.driver", _driver())
    record.add("ceiling.bytes_per_s", _copy_rate())
    record.add("ceiling.flop_per_s", _product_rate())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _copy_rate() -> float:
    """Bytes read plus bytes written per second of a large copy on the device."""
    source = torch.empty(_COPY_BYTES // 4, dtype=torch.float32, device="cuda").normal_()
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / _seconds(lambda: target.copy_(source))


def _product_rate() -> float:
    """Operations per second of a large bfloat16 product of random data."""
    left, right = (
        torch.randn(_PRODUCT_SIZE, _PRODUCT_SIZE, dtype=torch.bfloat16, device="cuda") for _ in range(2)
    )
    return 2 * _PRODUCT_SIZE**3 / _seconds(lambda: left @ right)


def _seconds(action) -> float:  # type: ignore[no-untyped-def]
    for _ in range(3):
        action()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(_REPEATS):
        action()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / _REPEATS


if __name__ == "__main__":
    main()
