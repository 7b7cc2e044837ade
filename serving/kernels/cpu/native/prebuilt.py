"""Builds of the C kernels for whole families of processors, for machines without a compiler: makes and finds them. A wheel
has them (setup.py). Knows compilers and files, not tensors, and imports nothing that is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = tuple(sorted(Path(__file__).parent.glob("*.c")))
HEADERS = tuple(sorted(Path(__file__).parent.glob("*.h")))
FOLDER = Path(__file__).with_name("prebuilt")
_ROUND_ONCE = "avoid-fma-max-bits"
"""For some processors GCC, from 8 on, multiplies, rounds and adds where a loop has one sum, and rounds once where it has
several: the bits of a row would depend on how many there are. At 0 of this it always rounds once."""
COMPILE = ("-O3", "-fopenmp", "-fPIC", "-std=gnu11", f"--param={_ROUND_ONCE}=0", "-c")
_COMPILERS = ("cc", "gcc", "clang")
_COMPILE_LIMIT_S = 60.0


class Unavailable(Exception):
    """Why the kernels cannot be used here, in words."""


@dataclass(frozen=True, slots=True)
class Family:
    """Processors that one build runs on. `needs` are flags of /proc/cpuinfo, all of them."""

    machine: str
    option: str
    needs: frozenset[str]

    @property
    def file_name(self) -> str:
        return f"kernels-{self.option.removeprefix('-march=')}.so"


_V3 = frozenset({"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"})
_V4 = frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})
# The best first. The levels are those of the x86-64 psABI; every 64-bit Arm server has what armv8-a names.
FAMILIES = (
    Family("x86_64", "-march=x86-64-v4", _V3 | _V4),
    Family("x86_64", "-march=x86-64-v3", _V3),
    Family("aarch64", "-march=armv8-a", frozenset({"asimd"})),
)


def find(folder: Path = FOLDER, *, cpuinfo: str | None = None, machine: str | None = None) -> Path:
    """The best build in `folder` for this processor. Raises `Unavailable`."""
    flags = _flags(Path("/proc/cpuinfo").read_text() if cpuinfo is None else cpuinfo)
    for family in FAMILIES:
        path = folder / family.file_name
        if family.machine == (machine or os.uname().machine) and family.needs <= flags and path.is_file():
            return path
    raise Unavailable("no build for this processor came with the installation")


def find_compiler() -> str:
    """Raises `Unavailable`."""
    for name in _COMPILERS:
        if found := shutil.which(name):
            return found
    raise Unavailable(f"no C compiler: none of {', '.join(_COMPILERS)} is installed")


def compile_into(target: Path, *, compiler: str, march: str) -> None:
    """Build the shared library `target`, whole or not at all. Raises `Unavailable`."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        objects = [str(Path(scratch) / f"{source.stem}.o") for source in SOURCES]
        commands = [
            [compiler, *COMPILE, march, str(source), "-o", compiled]
            for source, compiled in zip(SOURCES, objects, strict=True)
        ]
        with ThreadPoolExecutor() as pool:
            list(pool.map(_compile, commands))
        # Linked without -fopenmp: that would bring the system's OpenMP runtime along.
        linked = Path(scratch) / "kernels.so"
        _run([compiler, "-shared", *objects, "-o", str(linked), "-lm"])
        linked.replace(target)


def _compile(command: list[str]) -> None:
    try:
        _run(command)
    except Unavailable as error:
        if _ROUND_ONCE not in str(error):
            raise
        # A GCC before 8 does not know it and has no need of it; Clang takes no offence.
        _run([word for word in command if _ROUND_ONCE not in word])


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_LIMIT_S, check=False)
    except subprocess.TimeoutExpired as expired:
        raise Unavailable(f"{command[0]} did not end within {_COMPILE_LIMIT_S:g} s") from expired
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        errors = [line for line in said if "error" in line]
        raise Unavailable(f"{command[0]} failed: {(errors or said)[:1]}")


def _flags(cpuinfo: str) -> set[str]:
    names = ("flags", "Features")
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return {flag for name, _, value in lines if name.strip() in names for flag in value.split()}


def build_all(folder: Path) -> list[Path]:
    """Builds for every family of this machine's kind of processor, in `folder`. Raises `Unavailable`."""
    compiler = find_compiler()
    folder.mkdir(parents=True, exist_ok=True)
    built = []
    for family in FAMILIES:
        if family.machine == os.uname().machine:
            compile_into(folder / family.file_name, compiler=compiler, march=family.option)
            built.append(folder / family.file_name)
    return built
