"""Triton's one C module for CUDA, built ahead for images without a compiler: makes it, and lets Triton find it.

    python -m serving.kernels.triton.prebuilt        # next to this file; needs a compiler, Python's headers, no GPU

TRITON_CACHE_MANAGER=serving.kernels.triton.prebuilt:PrebuiltModules makes Triton look there, after its own cache. Kernels
themselves are compiled at run time by ptxas, which comes with Triton. Knows files and Triton, not tensors.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import triton
from triton import knobs
from triton.backends.nvidia import driver
from triton.runtime.cache import FileCacheManager

from serving.kernels.cpu.native.prebuilt import Unavailable, find_compiler

FOLDER = Path(__file__).with_name("prebuilt")
_LIBCUDA = "libcuda.so.1"
_DRIVER_FUNCTION = re.compile(r"\bcu[A-Z]\w+(?=\s*\()")


class PrebuiltModules(FileCacheManager):  # type: ignore[misc]
    """Triton's cache of files, and below it what came with the installation, which is never written to.

    Not under Triton's own key: that depends on whether the program `file` is installed.
    """

    def get_file(self, filename: str) -> str | None:
        if (cached := super().get_file(filename)) is not None:
            return str(cached)
        prebuilt = FOLDER / triton.__version__ / filename
        return str(prebuilt) if prebuilt.is_file() else None


def build(folder: Path = FOLDER) -> Path:
    """Let Triton build its module into `folder` and load it. Raises `Unavailable`, `subprocess.CalledProcessError`.

    The module is linked against the driver's library, which is on GPU machines only. Here an empty library of that
    name takes its place; the loader of the machine that runs it puts the driver's there.
    """
    compiler = find_compiler()
    with tempfile.TemporaryDirectory() as scratch:
        stand_in = driver_stand_in(Path(scratch), compiler)
        # Under this name it is loaded already when the module asks for it.
        ctypes.CDLL(str(stand_in), mode=ctypes.RTLD_GLOBAL)
        cache = Path(scratch) / "cache"
        knobs.nvidia.libcuda_path, knobs.cache.dir, knobs.cache.manager_class = scratch, str(cache), None
        driver.CudaUtils()
        (built,) = cache.glob("*/cuda_utils*.so")
        target: Path = folder / triton.__version__ / built.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(built, target)
    return target


def driver_stand_in(folder: Path, compiler: str) -> Path:
    """A library called libcuda.so.1 that has the driver's functions by name, and nothing in them."""
    source = (Path(driver.__file__).parent / "driver.c").read_text()
    names = sorted(set(_DRIVER_FUNCTION.findall(source)))
    (folder / "stand_in.c").write_text("".join(f"int {name}(void) {{ return 999; }}\n" for name in names))
    target = folder / _LIBCUDA
    command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{_LIBCUDA}", str(folder / "stand_in.c")]
    subprocess.run([*command, "-o", str(target)], check=True)
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    if list(sys.argv[1:] if arguments is None else arguments):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(build())
    except (Unavailable, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
