"""Seconds of the phases of a start, from the exec of the process on. Knows no phase by name."""

from __future__ import annotations

import os
import time
from pathlib import Path

_STARTED_FIELD = (
    22  # of /proc/self/stat (proc_pid_stat(5)); the second field, a name in parentheses, may hold spaces
)


class StartClock:
    """Each `mark` ends the phase that began with the one before; the first began when the process did, or now."""

    def __init__(self, *, since_exec: bool = False) -> None:
        now_s = time.monotonic()
        self._began_s = self._marked_s = now_s - (seconds_since_exec() if since_exec else 0.0)
        self._phases: dict[str, float] = {}

    def mark(self, phase: str) -> None:
        now_s = time.monotonic()
        self._phases[f"{phase}_s"] = now_s - self._marked_s
        self._marked_s = now_s

    def fields(self) -> dict[str, object]:
        """Of a log line: every phase in order, and their sum."""
        return {**self._phases, "total_s": self._marked_s - self._began_s}


def seconds_since_exec() -> float:
    """How long this process has been there; 0.0 where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started_s = int(fields[_STARTED_FIELD - 3]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
