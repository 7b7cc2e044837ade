"""An engine without HTTP: a small program in the engine's own environment that speaks JSON lines.

To the runner: one workload per line. From it: one line when it is ready, then one line per workload.
"""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peers.contracts import Measured, Request, RequestTimes, Running, Settings, Workload
from benchmarks.peers.engine_process import EngineProcess
from benchmarks.peers.environments import REPOSITORY, Environment
from benchmarks.peers.installed_engine import InstalledEngine, Weights, as_they_are

_ANSWER_LIMIT_S = 600.0


def runner_engine(
    name: str, environment: Environment, runner: str, *, weights: Weights = as_they_are
) -> InstalledEngine:
    """`runner` is a module that the environment's Python can run; it gets the weights and the settings."""

    def begin(prepared: Path, settings: Settings, log: Path) -> Running:
        return RunningProgram((str(environment.python), "-m", runner), prepared, settings, log=log)

    return InstalledEngine(name, "in process", environment, begin, weights)


class RunningProgram(EngineProcess):
    """The runner's process. Its answers are waited for with a limit, and its end is noticed."""

    def __init__(self, command: tuple[str, ...], weights: Path, settings: Settings, *, log: Path) -> None:
        super().__init__(
            (*command, str(weights), json.dumps(asdict(settings))),
            log=log,
            folder=REPOSITORY,
            environment={"OMP_NUM_THREADS": str(settings.num_threads), "HF_HUB_OFFLINE": "1"},
            has_pipes=True,
        )
        try:
            self._expect("ready")
            self.ready_s = self.age_s
            [first] = self.run(Workload((Request((1,), 1),))).requests
            if first.error or first.num_tokens != 1 or first.first_token_s is None:
                raise self.failure(f"no first token: {first.error or first.num_tokens}")
            self.first_token_s = self.ready_s + first.first_token_s
        except BaseException:
            self.close()
            raise

    def run(self, workload: Workload) -> Measured:
        cpu_s = self.cpu_s()
        to_runner, _ = self.pipes
        try:
            to_runner.write(json.dumps(asdict(workload)).encode() + b"\n")
            to_runner.flush()
        except BrokenPipeError:
            raise self.failure("the runner ended") from None
        answer = self._expect("requests")
        try:
            requests = [RequestTimes(**one) for one in answer["requests"]]
            measured = Measured(requests=requests, wall_s=answer["wall_s"])
        except (KeyError, TypeError) as error:
            raise self.failure(f"the runner's answer lacks something: {error}") from error
        if len(requests) != len(workload.requests):
            raise self.failure(f"{len(requests)} answers for {len(workload.requests)} requests")
        measured.engine_cpu_s = self.cpu_s() - cpu_s
        return measured

    def _expect(self, key: str) -> dict[str, Any]:
        """The next line of the runner, which must have `key`."""
        _, from_runner = self.pipes
        lines: list[bytes] = []
        reader = threading.Thread(target=lambda: lines.append(from_runner.readline()), daemon=True)
        reader.start()
        reader.join(_ANSWER_LIMIT_S)
        if not lines:
            raise self.failure(f"no answer within {_ANSWER_LIMIT_S:g} s")
        if not lines[0]:
            self.wait_for_last_words()
            raise self.failure("the runner ended")
        try:
            answer = json.loads(lines[0])
        except ValueError:
            raise self.failure(f"instead of JSON the runner said {lines[0][:200]!r}") from None
        if not isinstance(answer, dict) or key not in answer:
            raise self.failure(f"no {key!r} in the runner's answer {lines[0][:200]!r}")
        return answer
