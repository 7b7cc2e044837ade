"""Which core each compute thread runs on. Knows cores, not what is computed."""

from __future__ import annotations

import ctypes
import os

from serving.kernels.cpu.native import library

_main_core: int | None = None


def place_threads(num_threads: int, *, rank: int, num_ranks: int) -> list[int]:
    """Give the threads of this rank cores of their own, if all ranks together use every core that the process may run on.

    Returns the cores, in the order of the threads. Fewer threads than cores stay where the system puts them, as it knows
    what else runs there: then, with one thread, and without compiled kernels, the list is empty.
    """
    global _main_core
    loaded = library.load()
    if loaded is None:
        return []
    cores = cores_of(sorted(os.sched_getaffinity(0)), num_threads, rank=rank, num_ranks=num_ranks)
    loaded.place_threads((ctypes.c_int * len(cores))(*cores), len(cores))
    _main_core = cores[0] if cores else None
    return cores


def main_core() -> int | None:
    """The core of the thread that hands out the work of this process, if `place_threads` found one for it."""
    return _main_core


def cores_of(allowed: list[int], num_threads: int, *, rank: int, num_ranks: int) -> list[int]:
    """The share of `allowed` that rank `rank` has, or none of them."""
    if num_threads < 2 or num_threads * num_ranks != len(allowed):
        return []
    return allowed[rank * num_threads : (rank + 1) * num_threads]
