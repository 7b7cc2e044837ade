"""The NVIDIA GPUs that this container can see, from the driver's own files; no library of ours is loaded for it."""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.config import ServerConfig
from serving.errors import ConfigError
from serving.logs import event

_log = logging.getLogger("container")

_DRIVER = Path("/proc/driver/nvidia")
_DEVICE_FILE = re.compile(r"nvidia[0-9]+")


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """What the NVIDIA driver says without a library of ours. `visible` counts what CUDA programs here may use."""

    driver: str
    cuda: str
    models: tuple[str, ...]
    visible: int


def find_gpus(
    environ: Mapping[str, str], *, driver: Path = _DRIVER, devices: Path = Path("/dev")
) -> GpuFacts | None:
    """None where there is no NVIDIA driver."""
    try:
        version = (driver / "version").read_text()
    except OSError:
        return None
    found = re.search(r"\b[0-9]{3,}\.[0-9.]+\b", version)
    models = tuple(_model(path) for path in sorted(driver.glob("gpus/*/information")))
    usable = sum(1 for path in devices.iterdir() if _DEVICE_FILE.fullmatch(path.name))
    return GpuFacts(
        driver=found[0] if found else version.splitlines()[0].strip(),
        cuda=_cuda_version(),
        models=models,
        visible=_visible(usable, environ),
    )


def log_gpus(facts: GpuFacts | None) -> None:
    """Nothing where there is no driver."""
    if facts is not None:
        event(
            _log,
            logging.INFO,
            "gpus",
            driver=facts.driver,
            driver_cuda=facts.cuda,
            visible=facts.visible,
            models=", ".join(facts.models),
        )


def _model(information: Path) -> str:
    try:
        found = re.search(r"^Model:\s*(.+)$", information.read_text(), re.MULTILINE)
    except OSError:
        return "unknown"
    return found[1].strip() if found else "unknown"


def _visible(usable: int, environ: Mapping[str, str]) -> int:
    """CUDA_VISIBLE_DEVICES ends at its first entry that names no device."""
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return usable
    entries = [entry.strip() for entry in chosen.split(",")]
    count = 0
    for entry in entries:
        if not entry or (entry.lstrip("-").isdigit() and not 0 <= int(entry) < usable):
            break
        count += 1
    return min(count, usable)


def _cuda_version() -> str:
    """The newest CUDA that the driver serves; cuDriverGetVersion makes no context."""
    version = ctypes.c_int(0)
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) != 0:
            return "unknown"
    except OSError:
        return "unknown"
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def require_gpus(config: ServerConfig, sources: Mapping[str, str], facts: GpuFacts | None) -> None:
    """Raises `ConfigError` with both numbers when more GPUs are asked for than there are. One rank without a GPU is no
    error: it runs on the CPU unless DEVICE forbids it."""
    asked, visible = config.parallel.num_ranks or 1, facts.visible if facts else 0
    if config.runtime.device == "cpu" or asked <= max(visible, 1):
        return
    name = sources.get("parallel.num_ranks", "SM_NUM_GPUS")
    fix = "unset it to use all of them" if visible else "set DEVICE=cpu to run ranks on processor cores"
    raise ConfigError(f"{name}={asked} asks for {asked} GPUs, {visible} are visible; lower it, or {fix}")
