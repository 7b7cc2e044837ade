"""A container under test: started as a process, watched through its log lines, its port and /proc."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

_ROOT = Path(__file__).parents[2]


class RunningContainer:
    """The entrypoint as a child process, with a fake engine that follows `script`."""

    def __init__(self, script: str, model_dir: Path, *arguments: str, **environ: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.container_launcher", script, *arguments],
            cwd=_ROOT,
            env={
                **os.environ,
                "MODEL_ID": str(model_dir),
                "PORT": "0",
                "HOSTNAME": "127.0.0.1",
                "OMP_NUM_THREADS": "1",
                **environ,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._arrived: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self._family: list[psutil.Process] = []

    def __enter__(self) -> RunningContainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self.family() if self.process.poll() is None else []:
            if process.is_running():
                process.kill()
        self.process.kill()
        self.process.wait()
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._arrived.put(line.rstrip("\n"))
        self._arrived.put(None)

    def line_with(self, pattern: str, timeout_s: float = 20.0) -> re.Match[str]:
        """The first line that matches, already seen or still to come."""
        deadline = time.monotonic() + timeout_s
        for line in self.lines:
            if found := re.search(pattern, line):
                return found
        while True:
            line = self._arrived.get(timeout=max(0.01, deadline - time.monotonic()))
            if line is None:
                raise AssertionError(f"no line with {pattern!r} in\n" + "\n".join(self.lines))
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found

    @property
    def address(self) -> str:
        port = self.line_with(r"listening .*port=(\d+)").group(1)
        return f"http://127.0.0.1:{port}"

    def ping(self) -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(self.address + "/ping", timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def ping_until(
        self, done: Callable[[int, dict[str, Any]], bool], timeout_s: float = 20.0
    ) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while True:
            status, stage = self.ping()
            if done(status, stage):
                return stage
            assert time.monotonic() < deadline, (status, stage)
            time.sleep(0.02)

    def wait_ready(self) -> dict[str, Any]:
        return self.ping_until(lambda status, _: status == 200)

    def family(self) -> list[psutil.Process]:
        """The container and all its descendants."""
        own = psutil.Process(self.process.pid)
        self._family = [own, *own.children(recursive=True)]
        return self._family

    def child(self, marker: str) -> psutil.Process:
        return next(process for process in self.family() if marker in " ".join(process.cmdline()))

    def survivors(self, family: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
        """Members of `family` that still run after `timeout_s`; zombies nobody collects do not run."""
        gone_by = time.monotonic() + timeout_s
        while True:
            alive = [process for process in family if _runs(process)]
            if not alive or time.monotonic() > gone_by:
                return alive
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        os.kill(self.process.pid, number)

    def wait(self, timeout_s: float) -> int:
        """The exit code; all lines have been read then."""
        code = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        while (line := self._arrived.get_nowait() if not self._arrived.empty() else None) is not None:
            self.lines.append(line)
        return code


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
