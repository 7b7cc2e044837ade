"""How steps follow each other: one at a time, or with the next one launched while the last still runs.

Knows the scheduler and the verbs of an executor; neither requests nor clients.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from serving.batch import ScheduledBatch
from serving.engine.scheduler import Scheduler
from serving.engine.step_metrics import BegunStep, StepMetrics
from serving.messages import SequenceOutput

if TYPE_CHECKING:
    from serving.engine.executor import Executor
    from serving.worker.launched_step import LaunchedStep


@dataclass(slots=True, frozen=True)
class _Running:
    batch: ScheduledBatch
    launched: LaunchedStep
    begun: BegunStep


class Steps:
    """The two halves of a step. `account` takes in the outputs and returns the number of their tokens."""

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        *,
        metrics: StepMetrics,
        account: Callable[[list[SequenceOutput]], int],
    ) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._metrics = metrics
        self._account = account

    def launch(self) -> _Running | None:
        """None: nothing can run now."""
        started_s = time.monotonic()
        batch = self._scheduler.schedule(started_s)
        if batch is None:
            return None
        begun = self._metrics.begin(batch, started_s, time.monotonic())
        return _Running(batch, self._executor.launch(batch), begun)

    def finish(self, step: _Running) -> list[SequenceOutput]:
        result = self._executor.collect(step.launched)
        executed_s = time.monotonic()
        outputs = self._scheduler.update(step.batch, result, executed_s)
        num_tokens = self._account(outputs)
        self._metrics.end(
            step.begun,
            outputs,
            num_tokens=num_tokens,
            forward_s=result.forward_s,
            executed_s=executed_s,
            ended_s=time.monotonic(),
        )
        return outputs


class StepLoop(Protocol):
    @property
    def is_running(self) -> bool:
        """Has a step been launched whose outputs nobody has seen?"""
        ...

    def step(self) -> list[SequenceOutput]: ...


class OneByOne:
    is_running = False

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def step(self) -> list[SequenceOutput]:
        step = self._steps.launch()
        return [] if step is None else self._steps.finish(step)


class Overlapped:
    """The next step is planned and launched before the one that runs is read: the host works while the device does.

    It is planned without the tokens that the running step samples. A sequence that turns out to have ended gets one row too
    many, whose result the scheduler drops.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._running: _Running | None = None

    @property
    def is_running(self) -> bool:
        return self._running is not None

    def step(self) -> list[SequenceOutput]:
        running, self._running = self._running, self._steps.launch()
        return [] if running is None else self._steps.finish(running)
