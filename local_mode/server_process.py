"""The container as a process tree on this machine: start it, wait until it serves, read its log, stop it.

Knows the command line, `/ping` and signals, as SageMaker does; imports nothing of the server.
"""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

SERVE_COMMAND = (sys.executable, "-m", "container.entrypoint", "serve")
STOP_LIMIT_S = 40.0
_POLL_S = 0.02


class ServerFailed(Exception):
    """The server ended, or was not ready in time; the message holds the end of its log."""


class ServerProcess:
    """One running server. `environment` is the whole environment of the container; `PORT=0` picks a free port.

    with ServerProcess({"HF_MODEL_ID": "demo", "DEVICE": "cpu", "PORT": "0", **os.environ}) as server:
        server.wait_ready()
        server.port
    """

    def __init__(self, environment: Mapping[str, str], *, command: Sequence[str] = SERVE_COMMAND) -> None:
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """Everything printed so far."""
        with self._changed:
            return "".join(self._lines)

    @property
    def port(self) -> int:
        """The port it listens on, as soon as the log tells. Raises `ServerFailed`."""
        return int(self.wait_log(r"\blistening\b.*\bport(?:=|\": )(\d+)", limit_s=60.0)[1])

    def wait_log(self, pattern: str, *, limit_s: float) -> re.Match[str]:
        """The first match of `pattern` in the log. Raises `ServerFailed` when the log ends or time runs out."""
        deadline = time.monotonic() + limit_s
        with self._changed:
            while (found := re.search(pattern, "".join(self._lines))) is None:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not self._reader.is_alive():
                    raise ServerFailed(f"no {pattern!r} in the log:\n{''.join(self._lines)[-4000:]}")
                self._changed.wait(min(left_s, 0.2))
        return found

    def ping(self, timeout_s: float = 2.0) -> tuple[int, str]:
        """Status and body of `/ping`; status 0 when nothing answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request("GET", "/ping")
            response = connection.getresponse()
            return response.status, response.read().decode()
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            connection.close()

    def wait_ready(self, limit_s: float = 300.0) -> None:
        """Until `/ping` is 200. Raises `ServerFailed` when the process ends before, or time runs out."""
        deadline = time.monotonic() + limit_s
        while self.ping()[0] != 200:
            if self._process.poll() is not None:
                self._reader.join()
                raise ServerFailed(f"the server ended with {self._process.returncode}:\n{self.log[-4000:]}")
            if time.monotonic() > deadline:
                raise ServerFailed(f"not ready within {limit_s:g} s:\n{self.log[-4000:]}")
            time.sleep(_POLL_S)

    def terminate(self) -> None:
        """SIGTERM, as the platform sends it."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> int:
        """Exit status. Raises `subprocess.TimeoutExpired`."""
        return self._process.wait(timeout_s)

    def stop(self) -> int:
        """SIGTERM, and SIGKILL after `STOP_LIMIT_S`; returns the exit status. Harmless when it has ended."""
        if self._process.poll() is None:
            self.terminate()
            try:
                self._process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        status = self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()
        return status

    def _read(self) -> None:
        if self._process.stdout is None:
            return
        for line in self._process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
