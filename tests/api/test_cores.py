"""A front on the cores that the engine leaves it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

_LOOK = """
import json, os, sys, threading
from serving.api.cores import keep_off

os.sched_setaffinity(0, json.loads(sys.argv[1]))
waiting = threading.Event()
thread = threading.Thread(target=waiting.wait)
thread.start()
if sys.argv[3] == "forbidden":
    def refuse(task, cores):
        raise PermissionError(1, "Operation not permitted")
    os.sched_setaffinity = refuse
keep_off(int(sys.argv[2]))
started_later = threading.Thread(target=waiting.wait)
started_later.start()
seen = [sorted(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")]
waiting.set()
print(json.dumps(seen))
"""


def _cores_of_threads(core: int, *, allowed: list[int], system: str = "open") -> list[list[int]]:
    """Of a process that may run on `allowed` and keeps off `core`."""
    command = [sys.executable, "-c", _LOOK, json.dumps(allowed), str(core), system]
    seen: list[list[int]] = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )
    return seen


def test_all_threads_leave_the_core() -> None:
    cores = sorted(os.sched_getaffinity(0))
    assert _cores_of_threads(cores[0], allowed=cores) == [cores[1:] or cores] * 3


def test_the_only_core_is_kept() -> None:
    core = min(os.sched_getaffinity(0))
    assert _cores_of_threads(core, allowed=[core]) == [[core]] * 3


def test_a_sandbox_that_forbids_it_changes_nothing() -> None:
    cores = sorted(os.sched_getaffinity(0))
    assert _cores_of_threads(cores[0], allowed=cores, system="forbidden") == [cores] * 3
