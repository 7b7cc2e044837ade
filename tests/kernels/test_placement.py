"""Compute threads on cores of their own: who is held where, and who is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from serving.kernels.cpu.native.placement import cores_of

_LOOK = """
import json, os, torch
from serving.kernels.cpu.native import library
from serving.kernels.cpu.native.operations import NativeKernels
from serving.kernels.cpu.native.placement import main_core, place_threads

torch.set_num_threads(len(os.sched_getaffinity(0)))
cores = place_threads(torch.get_num_threads(), rank=0, num_ranks=1)
kernels = NativeKernels(library.load())
x, weight = torch.randn(64, 512), kernels.pack(torch.randn(1024, 512))
for _ in range(20):
    kernels.linear(x, weight, None)
held = [sorted(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")]
print(json.dumps({"cores": cores, "main_core": main_core(), "main": sorted(os.sched_getaffinity(0)), "held": held}))
"""


@pytest.mark.parametrize(
    ("allowed", "num_threads", "rank", "num_ranks", "cores"),
    [
        ([0, 1], 2, 0, 1, [0, 1]),
        ([3, 4, 8, 9], 2, 1, 2, [8, 9]),
        ([0, 1, 2, 3], 2, 0, 1, []),  # fewer threads than cores
        ([0, 1], 2, 0, 2, []),  # more
        ([5], 1, 0, 1, []),
    ],
)
def test_ranks_that_fill_the_machine_share_its_cores(
    allowed: list[int], num_threads: int, rank: int, num_ranks: int, cores: list[int]
) -> None:
    assert cores_of(allowed, num_threads, rank=rank, num_ranks=num_ranks) == cores


def test_helpers_are_held_and_the_caller_is_not() -> None:
    """Threads and processes that the calling thread starts may run anywhere."""
    done = subprocess.run([sys.executable, "-c", _LOOK], capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    allowed = sorted(os.sched_getaffinity(0))
    assert seen["main"] == allowed
    assert seen["cores"] == (allowed if len(allowed) > 1 else [])
    assert seen["main_core"] == (allowed[0] if len(allowed) > 1 else None)
    assert [core for core in seen["cores"][1:] if [core] not in seen["held"]] == []
