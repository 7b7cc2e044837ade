"""An engine in an environment of its own: what is known of it before it starts. Knows nothing of how it is driven."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.contracts import EngineFailed, Kind, Running, Settings
from benchmarks.peers.environments import Environment

Weights = Callable[[Path], Path]
"""From the folder of the original weights to what the engine reads; kept, so the second call returns at once."""


def as_they_are(model: Path) -> Path:
    return model


@dataclass(frozen=True, slots=True)
class InstalledEngine:
    """`begin(weights, settings, log)` starts the process and returns when its first token came."""

    name: str
    kind: Kind
    environment: Environment
    begin: Callable[[Path, Settings, Path], Running]
    weights: Weights = as_they_are
    dtype: str = "float32"

    def version(self) -> str:
        return self.environment.version()

    def why_not(self) -> str | None:
        return self.environment.why_not()

    def prepare(self, model: Path) -> None:
        self.weights(model)

    def start(self, model: Path, settings: Settings) -> Running:
        if (reason := self.why_not()) is not None:
            raise EngineFailed(f"{self.name}: {reason}")
        return self.begin(self.weights(model), settings, self.environment.log_file(self.name))
