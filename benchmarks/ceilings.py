"""The two rates of this machine that bound every engine: reading memory, and a large float32 product.

    python -m benchmarks.ceilings --threads 2        # one JSON object, in about two seconds

A process of its own, so that its threads and its memory are gone before anything else is measured.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.floor import Ceilings

_READ_BYTES = 256 * 2**20  # per thread; far beyond any cache
_PRODUCT_SIZE = 2048
_LIMIT_S = 1.0  # per rate
_READER = r"""
#include <stddef.h>
typedef float lanes __attribute__((vector_size(32), aligned(4)));
float read_all(const float *data, size_t count) {
    lanes sums[8] = {{0}};
    for (size_t at = 0; at + 64 <= count; at += 64) {
        __builtin_prefetch(data + at + 512);
        __builtin_prefetch(data + at + 528);
        __builtin_prefetch(data + at + 544);
        __builtin_prefetch(data + at + 560);
        for (int lane = 0; lane < 8; lane++) sums[lane] += *(const lanes *)(data + at + 8 * lane);
    }
    float total = 0;
    for (int lane = 0; lane < 8; lane++) for (int one = 0; one < 8; one++) total += sums[lane][one];
    return total;
}
"""

Reader = Callable[["np.ndarray[tuple[int], np.dtype[np.float32]]"], object]


def measure(num_threads: int) -> Ceilings:
    """In a process of its own. Raises `subprocess.CalledProcessError`."""
    command = [sys.executable, "-m", "benchmarks.ceilings", "--threads", str(num_threads)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return Ceilings(**json.loads(printed))


def _read_rate(num_threads: int) -> float:
    """Bytes per second, the best of a compiled loop (where there is a compiler) and numpy's dot product."""
    arrays = [np.ones(_READ_BYTES // 4, dtype=np.float32) for _ in range(num_threads)]
    readers: list[Reader] = [lambda array: np.dot(array, array)]
    if compiled := _compiled_reader():
        readers.append(compiled)
    return max(_best_rate(reader, arrays) for reader in readers)


def _best_rate(reader: Reader, arrays: list[np.ndarray[tuple[int], np.dtype[np.float32]]]) -> float:
    best_s, until_s = float("inf"), time.perf_counter() + _LIMIT_S / 2
    while time.perf_counter() < until_s:
        threads = [threading.Thread(target=reader, args=(array,)) for array in arrays]
        started_s = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best_s = min(best_s, time.perf_counter() - started_s)
    return sum(array.nbytes for array in arrays) / best_s


def _compiled_reader() -> Reader | None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory(prefix="textgen-read-") as folder:
        source, library = Path(folder) / "read.c", Path(folder) / "read.so"
        source.write_text(_READER)
        command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", "-o", str(library), str(source)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        function = ctypes.CDLL(str(library)).read_all  # stays loaded after the file is gone
    function.restype = ctypes.c_float
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return lambda array: function(array.ctypes.data, array.size)


def _product_rate(num_threads: int) -> float:
    """Operations per second of a float32 product of random matrices, the best of a second."""
    torch.set_num_threads(num_threads)
    left, right = (torch.randn(_PRODUCT_SIZE, _PRODUCT_SIZE) for _ in range(2))
    best_s, until_s = float("inf"), time.perf_counter() + _LIMIT_S
    while time.perf_counter() < until_s:
        started_s = time.perf_counter()
        torch.mm(left, right)
        best_s = min(best_s, time.perf_counter() - started_s)
    return 2.0 * _PRODUCT_SIZE**3 / best_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    num_threads = parser.parse_args().threads
    print(json.dumps({"bytes_per_s": _read_rate(num_threads), "flop_per_s": _product_rate(num_threads)}))


if __name__ == "__main__":
    main()
