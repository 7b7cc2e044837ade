"""Loads the C kernels: compiled for this machine's processor, once, or without a compiler the build that came with the
installation. Knows files, not tensors."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import stat
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

from serving import logs
from serving.kernels.cpu.native import prebuilt
from serving.kernels.cpu.native.prebuilt import Unavailable

logger = logging.getLogger(__name__)

_MARCH = "-march=native"
_PACKAGE = Path(__file__).parent
_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
_SIGNATURES = {
    "run_operations": [ctypes.c_char_p, _LONG, _INT],
    "place_threads": [_POINTER, _LONG],
    "mask_tokens_f32": [_POINTER, _LONG, _POINTER, _LONG, _POINTER] + [_LONG] * 2,
}


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL | None:
    """The loaded library, or None, with the reason in the log."""
    try:
        library, origin = _load()
    except (Unavailable, OSError) as reason:
        logs.event(logger, logging.INFO, "cpu kernels", kernels="torch", reason=str(reason))
        return None
    logs.event(logger, logging.INFO, "cpu kernels", kernels="native", reason=origin)
    return library


def _load() -> tuple[ctypes.CDLL, str]:
    try:
        return open_library(_built(prebuilt.find_compiler())), "compiled for this processor"
    except (Unavailable, OSError) as reason:
        try:
            path = prebuilt.find()
        except Unavailable as none:
            raise Unavailable(f"{reason}; {none}") from none
        return open_library(path), f"{path.name}, which came with the installation: {reason}"


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


def _built(compiler: str) -> Path:
    """A build of the current source for this processor; made now unless an earlier start left it."""
    name = f"kernels-{_fingerprint(compiler)}.so"
    folder = _folder()
    if (folder / name).exists():
        return folder / name
    prebuilt.compile_into(folder / name, compiler=compiler, march=_MARCH)
    return folder / name


def _fingerprint(compiler: str) -> str:
    """Of everything the build depends on: source, options, compiler, and what the processor can do."""
    digest = hashlib.sha256(" ".join([compiler, *prebuilt.COMPILE, _MARCH]).encode())
    for file in (*prebuilt.SOURCES, *prebuilt.HEADERS):
        digest.update(file.read_bytes())
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


def _folder() -> Path:
    """Where builds are kept: with Python's compiled modules, which processes with temporary folders of their own share;
    among the temporary files where that is not for this user alone to write. What is loaded runs in the engine."""
    if os.access(_PACKAGE, os.W_OK) and _is_written_by_us_alone(_PACKAGE):
        beside = _PACKAGE / "__pycache__"
        beside.mkdir(exist_ok=True)
        if _is_written_by_us_alone(beside):
            return beside
    folder = Path(tempfile.gettempdir()) / f"textgen-endpoint-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if not _is_written_by_us_alone(folder):
        raise Unavailable(f"{folder} is not a private folder of this user")
    return folder


def _is_written_by_us_alone(folder: Path) -> bool:
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
