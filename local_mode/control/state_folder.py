"""The emulator's folder: what lies where, and that one emulator at a time has it. Knows no contents."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from local_mode.control.resources import FILE_NAME
from local_mode.removal import remove_tree

LOCK_NAME = "emulator.lock"
_LOOK_S = 0.01
_LOOK_LIMIT_S = 1.0
# `logs`, `containers` and `model-data` are hosting's, `async` is the runtime's.
_FOLDERS = ("logs", "containers", "model-data", "async")


class FolderTaken(Exception):
    """Another emulator runs with this folder, or nobody can. The message says which, and what to do."""


@dataclass(frozen=True, slots=True)
class Running:
    """An emulator that runs now."""

    pid: int
    host: str
    port: int
    region: str

    @property
    def url(self) -> str:
        return url_of(self.host, self.port)


def url_of(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@dataclass(frozen=True, slots=True)
class StateFolder:
    """Paths within one state folder."""

    path: Path

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @contextlib.contextmanager
    def taken(self, *, host: str, port: int, region: str) -> Iterator[None]:
        """Hold the folder for this process, which the operating system ends with it. Raises `FolderTaken`."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FolderTaken(
                f"{self.path} cannot be written ({error.strerror}): give another --state-dir"
            ) from error
        try:
            self._lock(descriptor)
            os.ftruncate(descriptor, 0)
            os.pwrite(
                descriptor,
                json.dumps({"pid": os.getpid(), "host": host, "port": port, "region": region}).encode(),
                0,
            )
            yield
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)

    def running(self) -> Running | None:
        """The emulator that holds this folder; None when none does, or it has only just begun to."""
        try:
            descriptor = os.open(self.path / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            told = os.pread(descriptor, 4096, 0)
            return Running(**json.loads(told)) if told else None
        finally:
            os.close(descriptor)
        return None

    def clear(self) -> None:
        """Remove what emulators have put here, and nothing else. Raises `FolderTaken`."""
        if not self.path.is_dir():
            return
        with self.taken(host="", port=0, region=""):
            for name in _FOLDERS:
                remove_tree(self.path / name)
            for path in self.path.glob(f"{FILE_NAME}*"):
                path.unlink()
            (self.path / LOCK_NAME).unlink()
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _lock(self, descriptor: int) -> None:
        """Whoever only looks has the lock, too, for a moment. Raises `FolderTaken`."""
        until_s = time.monotonic() + _LOOK_LIMIT_S
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                other = self.running()
                if other is not None or time.monotonic() > until_s:
                    raise self._taken_by(other) from error
            time.sleep(_LOOK_S)

    def _taken_by(self, other: Running | None) -> FolderTaken:
        who = f"the emulator at {other.url} (process {other.pid})" if other else "another emulator"
        return FolderTaken(
            f"{who} uses {self.path}: end it with `textgen-endpoint local down --state-dir {self.path}`, "
            "or give another --state-dir"
        )
