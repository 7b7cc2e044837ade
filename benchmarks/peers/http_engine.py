"""An engine that is an HTTP server of its own: how it is started is data, how it is driven is the same for all."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers.contracts import Measured, Request, Running, Settings, Workload
from benchmarks.peers.engine_process import EngineProcess
from benchmarks.peers.environments import REPOSITORY, Environment
from benchmarks.peers.installed_engine import InstalledEngine, Weights, as_they_are
from benchmarks.peers.stream_client import Dialect, run_streams

_POLL_S = 0.02
_START_LIMIT_S = 300.0


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of one server."""

    command: tuple[str, ...]
    dialect: Dialect
    environment: Mapping[str, str] = field(default_factory=dict)
    health_path: str = "/health"


Plan = Callable[[Path, int, Settings], Launch]
"""From weights, the port to listen on and settings."""


def http_engine(
    name: str, environment: Environment, plan: Plan, *, weights: Weights = as_they_are
) -> InstalledEngine:
    def begin(prepared: Path, settings: Settings, log: Path) -> Running:
        return RunningServer(plan, prepared, settings, log=log)

    return InstalledEngine(name, "http", environment, begin, weights)


class RunningServer(EngineProcess):
    """The server process and the port it was told to listen on."""

    def __init__(self, plan: Plan, weights: Path, settings: Settings, *, log: Path) -> None:
        self.port = _free_port()
        launch = plan(weights, self.port, settings)
        self._dialect = launch.dialect
        super().__init__(launch.command, log=log, folder=REPOSITORY, environment=launch.environment)
        try:
            self._wait_ready(launch.health_path)
            self.ready_s = self.age_s
            self._take_one_token()
            self.first_token_s = self.age_s
        except BaseException:
            self.close()
            raise

    def run(self, workload: Workload) -> Measured:
        self.check_alive()
        cpu_s = self.cpu_s()
        measured = run_streams(self.port, self._dialect, workload)
        measured.engine_cpu_s = self.cpu_s() - cpu_s
        self.check_alive()
        return measured

    def _wait_ready(self, path: str) -> None:
        while not _answers(self.port, path):
            self.check_alive()
            if self.age_s > _START_LIMIT_S:
                raise self.failure(f"not ready within {_START_LIMIT_S:g} s")
            time.sleep(_POLL_S)

    def _take_one_token(self) -> None:
        [result] = run_streams(self.port, self._dialect, Workload((Request((1,), 1),))).requests
        if result.error or result.num_tokens != 1:
            raise self.failure(f"no first token: {result.error or result.num_tokens}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
