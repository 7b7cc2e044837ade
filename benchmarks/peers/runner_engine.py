"""An engine without HTTP: a small program in the engine's own environment that speaks JSON lines.

To the runner: one workload per line. From it: one line when it is ready, then one line per workload.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.peers.contracts import (
    EngineFailed,
    Kind,
    Measured,
    Request,
    RequestTimes,
    Running,
    Settings,
    Workload,
)
from benchmarks.peers.engine_process import EngineProcess
from benchmarks.peers.environments import Environment

_ANSWER_LIMIT_S = 600.0
_REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class RunnerEngine:
    """`runner` is a module that the environment's Python can run; it gets the converted weights and the settings."""

    name: str
    environment: Environment
    runner: str
    weights: Callable[[Path], Path] = lambda model: model
    variables: dict[str, str] = field(default_factory=dict)
    dtype: str = "float32"
    kind: Kind = "in process"

    def version(self) -> str:
        return self.environment.version()

    def why_not(self) -> str | None:
        return self.environment.why_not()

    def prepare(self, model: Path) -> None:
        self.weights(model)

    def start(self, model: Path, settings: Settings) -> Running:
        if (reason := self.why_not()) is not None:
            raise EngineFailed(f"{self.name}: {reason}")
        return RunningProgram(
            (str(self.environment.python), "-m", self.runner),
            self.weights(model),
            settings,
            log=self.environment.log_file(self.name),
            variables=self.variables,
        )


class RunningProgram:
    """The runner's process. Its answers are waited for with a limit, and its end is noticed."""

    def __init__(
        self,
        command: tuple[str, ...],
        weights: Path,
        settings: Settings,
        *,
        log: Path,
        variables: dict[str, str],
    ) -> None:
        threads = {"OMP_NUM_THREADS": str(settings.num_threads), "HF_HUB_OFFLINE": "1"}
        self._process = EngineProcess(
            (*command, str(weights), json.dumps(asdict(settings))),
            log=log,
            folder=_REPOSITORY,
            environment=threads | variables,
            has_pipes=True,
        )
        try:
            self._expect("ready")
            self.ready_s = self._process.age_s
            started_s = self._process.age_s
            [first] = self.run(Workload((Request((1,), 1),))).requests
            if first.error or first.num_tokens != 1 or first.first_token_s is None:
                raise self._process.failure(f"no first token: {first.error or first.num_tokens}")
            self.first_token_s = started_s + first.first_token_s
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, workload: Workload) -> Measured:
        cpu_s = self._process.cpu_s()
        to_runner, _ = self._process.pipes
        try:
            to_runner.write(json.dumps(asdict(workload)).encode() + b"\n")
            to_runner.flush()
        except BrokenPipeError:
            raise self._process.failure("the runner ended") from None
        answer = self._expect("requests")
        try:
            requests = [RequestTimes(**one) for one in answer["requests"]]
            measured = Measured(requests=requests, wall_s=answer["wall_s"])
        except (KeyError, TypeError) as error:
            raise self._process.failure(f"the runner's answer lacks something: {error}") from error
        if len(requests) != len(workload.requests):
            raise self._process.failure(f"{len(requests)} answers for {len(workload.requests)} requests")
        measured.engine_cpu_s = self._process.cpu_s() - cpu_s
        return measured

    def close(self) -> None:
        self._process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _expect(self, key: str) -> dict[str, Any]:
        """The next line of the runner, which must have `key`."""
        _, from_runner = self._process.pipes
        lines: list[bytes] = []
        reader = threading.Thread(target=lambda: lines.append(from_runner.readline()), daemon=True)
        reader.start()
        reader.join(_ANSWER_LIMIT_S)
        if not lines:
            raise self._process.failure(f"no answer within {_ANSWER_LIMIT_S:g} s")
        try:
            answer = json.loads(lines[0])
        except ValueError:
            raise self._process.failure(f"instead of JSON the runner said {lines[0][:200]!r}") from None
        if not isinstance(answer, dict) or key not in answer:
            raise self._process.failure(f"no {key!r} in the runner's answer {lines[0][:200]!r}")
        return answer
