"""What a record says of the machine, and who used its processors while something was measured.

Reads `/proc`; where there is none (macOS) the description is shorter and the use of processors is unknown.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Only these of the hundred flags decide what a kernel can do.
_FLAGS = ("avx", "avx2", "avx512", "amx", "fma", "f16c", "neon", "asimd", "sve", "bf16", "vnni")


class Machine(msgspec.Struct, frozen=True):
    cpu: str
    num_cores: int
    flags: list[str]
    memory_bytes: int
    kernel: str
    python: str


@dataclass(slots=True, frozen=True)
class ProcessorTime:
    """Seconds since boot, summed over the cores: at work, and taken by other guests of the host."""

    busy_s: float
    stolen_s: float


def into_page_cache(folder: Path) -> None:
    """Read every file below it, once; a folder that is not there has none."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def describe() -> Machine:
    fields = _cpu_fields()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return Machine(
        cpu=fields.get("model name") or platform.processor() or platform.machine(),
        num_cores=os.cpu_count() or 1,
        flags=[flag for flag in flags if flag.startswith(_FLAGS)],
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
    )


def commit() -> str:
    """The checkout's commit, with `-dirty` where files differ from it; empty outside of one."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        root = Path(__file__).parent
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def available_bytes() -> int | None:
    """Memory that a new process may take; None where it is not told."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0].split()[1]) if found else None


def processor_time() -> ProcessorTime | None:
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return None
    user, nice, system, _, _, interrupts, soft_interrupts, stolen = fields
    busy = user + nice + system + interrupts + soft_interrupts
    return ProcessorTime(busy_s=busy / _TICKS_PER_S, stolen_s=stolen / _TICKS_PER_S)


def busy_share(seconds: float = 0.25) -> float | None:
    """Share of all cores that is at work just now, looked at for so long; None where it is not told."""
    before, started_s = processor_time(), time.perf_counter()
    time.sleep(seconds)
    after, wall_s = processor_time(), time.perf_counter() - started_s
    if before is None or after is None:
        return None
    used_s = after.busy_s - before.busy_s + after.stolen_s - before.stolen_s
    return used_s / (wall_s * (os.cpu_count() or 1))


def _cpu_fields() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}
