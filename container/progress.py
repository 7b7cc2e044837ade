"""How far a download or an unpacking has come, told as `Stage`s; and the free-space check before it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from serving.config import Stage
from serving.errors import ModelError

Report = Callable[[Stage], None]


class Progress:
    """Counts bytes from any thread and reports every whole percent once."""

    def __init__(self, report: Report, *, total_bytes: int, verb: str = "") -> None:
        self._report = report
        self._total_bytes = max(total_bytes, 1)
        self._verb = verb
        self._done_bytes = 0
        self._percent = -1
        self._lock = threading.Lock()
        self.add(0)

    def add(self, num_bytes: float | None = 1) -> None:
        with self._lock:
            self._done_bytes += int(num_bytes or 0)
            percent = min(100, self._done_bytes * 100 // self._total_bytes)
            if percent > self._percent:
                self._percent = percent
                self._report(Stage(stage="downloading", detail=f"{self._verb}{percent} %"))


def require_space(folder: Path, needed_bytes: int, *, what: str) -> None:
    """Raise `ModelError` with both numbers when `what` cannot fit into `folder`'s file system."""
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise ModelError(
            f"{what} needs {_gigabytes(needed_bytes)} in {folder}, {_gigabytes(free_bytes)} are free; "
            "free some space, give the instance a larger volume, or set HF_HOME to a larger disk"
        )


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
