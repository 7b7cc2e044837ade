"""An engine that is an HTTP server of its own: how it is started is data, how it is driven is the same for all."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from benchmarks.peers.contracts import EngineFailed, Kind, Measured, Request, Running, Settings, Workload
from benchmarks.peers.engine_process import EngineProcess
from benchmarks.peers.environments import Environment
from benchmarks.peers.stream_client import Dialect, run_streams

_POLL_S = 0.02
_START_LIMIT_S = 300.0
_REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of one server."""

    command: tuple[str, ...]
    dialect: Dialect
    environment: Mapping[str, str] = field(default_factory=dict)
    health_path: str = "/health"


@dataclass(frozen=True, slots=True)
class HttpEngine:
    """`launch(model, port, settings)` gets the folder of the original weights; `weights`, where there is one, converts."""

    name: str
    environment: Environment
    launch: Callable[[Path, int, Settings], Launch]
    weights: Callable[[Path], Path] = lambda model: model
    dtype: str = "float32"
    kind: Kind = "http"

    def version(self) -> str:
        return self.environment.version()

    def why_not(self) -> str | None:
        return self.environment.why_not()

    def prepare(self, model: Path) -> None:
        self.weights(model)

    def start(self, model: Path, settings: Settings) -> Running:
        if (reason := self.why_not()) is not None:
            raise EngineFailed(f"{self.name}: {reason}")
        self.prepare(model)
        return RunningServer(self.launch, model, settings, log=self.environment.log_file(self.name))


class RunningServer:
    """The server process and the port it was told to listen on."""

    def __init__(
        self, launch: Callable[[Path, int, Settings], Launch], model: Path, settings: Settings, *, log: Path
    ) -> None:
        self._port = _free_port()
        plan = launch(model, self._port, settings)
        self._dialect = plan.dialect
        self._process = EngineProcess(plan.command, log=log, folder=_REPOSITORY, environment=plan.environment)
        try:
            self._wait_ready(plan.health_path)
            self.ready_s = self._process.age_s
            self._take_one_token()
            self.first_token_s = self._process.age_s
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def port(self) -> int:
        return self._port

    def run(self, workload: Workload) -> Measured:
        self._process.check_alive()
        cpu_s = self._process.cpu_s()
        measured = run_streams(self._port, self._dialect, workload)
        measured.engine_cpu_s = self._process.cpu_s() - cpu_s
        self._process.check_alive()
        return measured

    def close(self) -> None:
        self._process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _wait_ready(self, path: str) -> None:
        while not _answers(self._port, path):
            self._process.check_alive()
            if self._process.age_s > _START_LIMIT_S:
                raise self._process.failure(f"not ready within {_START_LIMIT_S:g} s")
            time.sleep(_POLL_S)

    def _take_one_token(self) -> None:
        [result] = run_streams(self._port, self._dialect, Workload((Request((1,), 1),))).requests
        if result.error or result.num_tokens != 1:
            raise self._process.failure(f"no first token: {result.error or result.num_tokens}")


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
