"""Compiles kernels.c for this machine's processor, once, and loads it. Knows compilers and files, not tensors."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import stat
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

from serving import logs

logger = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("kernels.c")
_COMPILERS = ("cc", "gcc", "clang")
_COMPILE = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-std=gnu11", "-c")
_COMPILE_LIMIT_S = 60.0
_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_SIGNATURES = {
    "linear_f32": [_POINTER] * 4 + [_LONG] * 3 + [_INT],
    "write_kv_f32": [_POINTER, _LONG] * 2 + [_POINTER] * 3 + [_LONG] * 2,
    "decode_f32": [_POINTER, _LONG, _POINTER, _POINTER, _POINTER, _LONG] + [_POINTER] * 3
    + [_LONG] * 5 + [_FLOAT, _LONG, _POINTER, _INT],
    "rms_norm_f32": [_POINTER] * 4 + [_LONG] * 2 + [_FLOAT, _INT],
    "rotary_f32": [_POINTER, _LONG, _POINTER, _POINTER, _LONG, _POINTER] + [_LONG] * 3 + [_INT],
    "silu_mul_f32": [_POINTER] * 2 + [_LONG] * 2 + [_INT],
    "mask_tokens_f32": [_POINTER, _LONG, _POINTER, _LONG, _POINTER] + [_LONG] * 2,
}  # fmt: skip


class Unavailable(Exception):
    """Why the kernels cannot be used here, in words."""


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL | None:
    """The loaded library, or None, with the reason in the log."""
    try:
        library = open_library(_built(_compiler()))
    except (Unavailable, OSError) as reason:
        logs.event(logger, logging.INFO, "cpu kernels", kernels="torch", reason=str(reason))
        return None
    logs.event(logger, logging.INFO, "cpu kernels", kernels="native", reason="compiled for this processor")
    return library


def open_library(path: Path) -> ctypes.CDLL:
    """Load a build. Its OpenMP calls go to the runtime that torch has loaded: a second pool of threads would fight it."""
    runtimes = sorted((Path(torch.__file__).parent / "lib").glob("lib*omp*.so*"))
    runtimes += sorted((Path(torch.__file__).parent.parent / "torch.libs").glob("lib*omp*.so*"))
    if not runtimes:
        raise Unavailable("no OpenMP runtime next to torch")
    ctypes.CDLL(str(runtimes[0]), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(path))
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library


def _compiler() -> str:
    for name in _COMPILERS:
        if found := shutil.which(name):
            return found
    raise Unavailable(f"no C compiler: none of {', '.join(_COMPILERS)} is installed")


def _built(compiler: str) -> Path:
    """A build of the current source for this processor; made now unless an earlier start left it."""
    name = f"kernels-{_fingerprint(compiler)}.so"
    folder = _private_folder()
    if (folder / name).exists():
        return folder / name
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        compiled, linked = Path(scratch) / "kernels.o", Path(scratch) / "kernels.so"
        # Linked without -fopenmp: that would bring the system's OpenMP runtime along.
        for command in (
            [compiler, *_COMPILE, str(_SOURCE), "-o", str(compiled)],
            [compiler, "-shared", str(compiled), "-o", str(linked), "-lm"],
        ):
            _run(command)
        linked.replace(folder / name)
    return folder / name


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_LIMIT_S, check=False)
    except subprocess.TimeoutExpired as expired:
        raise Unavailable(f"{command[0]} did not end within {_COMPILE_LIMIT_S:g} s") from expired
    if done.returncode != 0:
        raise Unavailable(f"{command[0]} failed: {done.stderr.strip().splitlines()[:1]}")


def _fingerprint(compiler: str) -> str:
    """Of everything the build depends on: source, options, compiler, and what the processor can do."""
    digest = hashlib.sha256(_SOURCE.read_bytes() + " ".join([compiler, *_COMPILE]).encode())
    digest.update(str(os.stat(compiler).st_mtime_ns).encode())
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        digest.update(
            "".join(
                sorted({line for line in lines if line.startswith(("flags", "Features", "model"))})
            ).encode()
        )
    except OSError:
        digest.update(os.uname().machine.encode())
    return digest.hexdigest()[:24]


def _private_folder() -> Path:
    """A folder that only this user can write: what is loaded from it runs in the engine."""
    folder = Path(tempfile.gettempdir()) / f"textgen-endpoint-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise Unavailable(f"{folder} is not a private folder of this user")
    return folder
