"""The roles of a comparison: a workload, an engine that can be started, and what was measured while it ran.

Knows no engine and no client; `benchmarks.peers.registry.engines()` names the engines there are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, Self

Kind = Literal["http", "in process"]


@dataclass(frozen=True, slots=True)
class Request:
    """Greedy, end of sequence ignored: exactly `num_output_tokens` tokens are asked for."""

    prompt_ids: tuple[int, ...]
    num_output_tokens: int
    arrival_s: float = 0.0  # seconds after the start of the workload; the request is never sent earlier


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in order of arrival. Each is sent at `arrival_s`, or later when `concurrency` requests are open already.

    Closed loop: arrivals 0 and a concurrency. Open loop: arrivals and no concurrency.
    """

    requests: tuple[Request, ...]
    concurrency: int | None = None

    def __post_init__(self) -> None:
        if not self.requests:
            raise ValueError("a workload needs at least one request")
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError(f"concurrency must be at least 1 or None for no limit, got {self.concurrency}")
        if any(not one.prompt_ids or one.num_output_tokens < 1 for one in self.requests):
            raise ValueError("every request needs at least one prompt token and one output token")
        arrivals = [one.arrival_s for one in self.requests]
        if arrivals[0] < 0 or arrivals != sorted(arrivals):
            raise ValueError("requests must be in order of arrival, none before 0")


@dataclass(slots=True)
class RequestTimes:
    """One request; times in seconds after the start of the workload, as its client saw them.

    `token_s` has one time per token where the engine tells tokens apart, and is empty where it only tells the end.
    """

    start_s: float = 0.0
    first_token_s: float | None = None
    end_s: float = 0.0
    num_tokens: int = 0
    token_s: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)  # empty where the engine does not tell
    error: str = ""


@dataclass(slots=True)
class Measured:
    """One run of a workload; `requests` in the order of the workload's.

    `wall_s` is from the start of the workload to the end of its last request. `client_cpu_s` is what the load
    generator itself spent (0 in process), `engine_cpu_s` what the engine's processes spent.
    """

    requests: list[RequestTimes]
    wall_s: float
    client_cpu_s: float = 0.0
    engine_cpu_s: float = 0.0

    @property
    def num_tokens(self) -> int:
        return sum(one.num_tokens for one in self.requests)

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.wall_s

    def complaints(self, workload: Workload) -> list[str]:
        """What makes this run no measurement of `workload`: errors, and other numbers of tokens than asked for."""
        found = []
        for index, (asked, got) in enumerate(zip(workload.requests, self.requests, strict=True)):
            if got.error:
                found.append(f"request {index}: {got.error}")
            elif got.num_tokens != asked.num_output_tokens:
                found.append(f"request {index}: {got.num_tokens} tokens instead of {asked.num_output_tokens}")
        return found


@dataclass(frozen=True, slots=True)
class Settings:
    """What an engine is started with; each translates this to flags of its own and refuses what it cannot do."""

    num_threads: int = 2
    max_concurrency: int = 16  # sequences that may run at once
    max_context: int = 512  # tokens of one sequence, prompt and output; sizes the KV caches
    prefix_cache: bool = False


class Running(Protocol):
    """An engine that is up, in a process of its own. A context manager: leaving it ends the process."""

    @property
    def ready_s(self) -> float:
        """Seconds from process start until it takes requests."""

    @property
    def first_token_s(self) -> float:
        """Seconds from process start to the first token of a 1-token request sent as soon as it was ready."""

    @property
    def pid(self) -> int:
        """The process that was started; its children belong to the engine too."""

    def run(self, workload: Workload) -> Measured:
        """Raises EngineFailed when the engine is gone or answers nonsense; a failed request is in its `error`."""

    def pause(self) -> None:
        """Hold its processes still, in memory, so that they take nothing from another engine's turn.

        Harmless when it is paused already.
        """

    def resume(self) -> None:
        """Let it go on before it runs anything again. Harmless when it was not paused."""

    def close(self) -> None:
        """End the process, paused or not. Harmless when it has ended."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


class Engine(Protocol):
    """One engine in one configuration; cheap to make, nothing is started or read before it is asked to."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Kind: ...

    @property
    def dtype(self) -> str: ...

    def version(self) -> str:
        """Empty when it is not installed."""

    def why_not(self) -> str | None:
        """None when it can be started here, else what is missing and the command that brings it."""

    def prepare(self, model: Path) -> None:
        """Convert the weights where the engine needs a format of its own; kept, so the second call returns at once."""

    def start(self, model: Path, settings: Settings) -> Running:
        """Start it on a folder that `benchmarks.model_fixture.write_model` wrote; returns once its first token came.

        Calls `prepare` itself. Raises EngineFailed with the last lines of the engine's log.
        """


class EngineFailed(RuntimeError):
    """An engine did not start, ended, or broke its protocol."""
