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
left = keep_off(int(sys.argv[2]))
started_later = threading.Thread(target=waiting.wait)
started_later.start()
seen = [sorted(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")]
waiting.set()
print(json.dumps([sorted(left), seen]))
"""


def _keep_off(core: int, *, allowed: list[int]) -> tuple[list[int], list[list[int]]]:
    command = [sys.executable, "-c", _LOOK, json.dumps(allowed), str(core)]
    left, seen = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return left, seen


def test_all_threads_leave_the_core() -> None:
    cores = sorted(os.sched_getaffinity(0))
    left, seen = _keep_off(cores[0], allowed=cores)
    assert left == (cores[1:] or cores)
    assert seen == [left] * 3


def test_the_only_core_is_kept() -> None:
    core = min(os.sched_getaffinity(0))
    assert _keep_off(core, allowed=[core]) == ([core], [[core]] * 3)
