"""What the engine's steps took and did, counted for `/metrics`. Plain numbers, a few microseconds per step; does not know
how the numbers are shown.

A step that computes prompt tokens counts as TGI's `prefill`, any other as `decode`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from serving.batch import ScheduledBatch
from serving.buckets import BATCH_SIZE, DURATION_S, TOKENS_PER_STEP, BucketCounts
from serving.engine.scheduler import Scheduler
from serving.messages import (
    Bucketed,
    EngineStats,
    GrammarStats,
    MethodStats,
    SequenceOutput,
    SessionStats,
    StepStats,
)

PREFILL = "prefill"
DECODE = "decode"

_num_tokens = attrgetter("num_tokens")


class _MethodMetrics:
    """Steps of one method."""

    __slots__ = ("forward_s", "num_done", "num_started", "step_s", "update_s")

    def __init__(self) -> None:
        self.num_started = 0
        self.num_done = 0
        self.step_s = BucketCounts(DURATION_S)
        self.forward_s = BucketCounts(DURATION_S)
        self.update_s = BucketCounts(DURATION_S)

    def stats(self) -> MethodStats:
        return MethodStats(
            num_started=self.num_started,
            num_done=self.num_done,
            step_s=_bucketed(self.step_s),
            forward_s=_bucketed(self.forward_s),
            update_s=_bucketed(self.update_s),
        )


@dataclass(slots=True, frozen=True)
class BegunStep:
    method: _MethodMetrics
    started_s: float


class StepMetrics:
    """Call `begin` when a step was planned and `end` when its outputs were made; a second step may begin in between. Times
    are readings of one clock."""

    def __init__(self) -> None:
        self._methods = {PREFILL: _MethodMetrics(), DECODE: _MethodMetrics()}
        self._next_size = BucketCounts(BATCH_SIZE)
        self._join_s = BucketCounts(DURATION_S)
        self._extra_tokens = BucketCounts(TOKENS_PER_STEP)

    def begin(self, batch: ScheduledBatch, started_s: float, planned_s: float) -> BegunStep:
        """`started_s` is when planning began. A step whose execution fails has no `end`."""
        num_rows, num_new = len(batch.rows), len(batch.new_rows)
        computes_prompt = num_new > 0 or sum(map(_num_tokens, batch.rows)) > num_rows
        method = self._methods[PREFILL if computes_prompt else DECODE]
        method.num_started += 1
        if num_new:
            self._next_size.observe(num_new)
            if num_new < num_rows:
                self._join_s.observe(planned_s - started_s)
        return BegunStep(method, started_s)

    def end(
        self,
        begun: BegunStep,
        outputs: Sequence[SequenceOutput],
        *,
        num_tokens: int,
        forward_s: float,
        executed_s: float,
        ended_s: float,
    ) -> None:
        """`outputs` hold `num_tokens` in all. `executed_s` is when the result arrived, `ended_s` when it had been taken
        in."""
        method = begun.method
        method.num_done += 1
        method.step_s.observe(ended_s - begun.started_s)
        method.forward_s.observe(forward_s)
        method.update_s.observe(ended_s - executed_s)
        if num_tokens == len(outputs):
            self._extra_tokens.observe(0, num_tokens)
            return
        for output in outputs:
            self._extra_tokens.observe(max(0, len(output.token_ids) - 1))

    def stats(self, *, running_max_tokens: int, capacity_tokens: int, max_sequences: int) -> StepStats:
        return StepStats(
            methods={name: method.stats() for name, method in self._methods.items()},
            next_size=_bucketed(self._next_size),
            join_s=_bucketed(self._join_s),
            extra_tokens=_bucketed(self._extra_tokens),
            running_max_tokens=running_max_tokens,
            capacity_tokens=capacity_tokens,
            max_sequences=max_sequences,
        )


def engine_stats(
    scheduler: Scheduler,
    step: StepStats,
    counters: Mapping[str, int],
    *,
    grammar: GrammarStats,
    num_sessions: int,
) -> EngineStats:
    """All that the engine tells about itself; `counters` are those of `EngineStats` that nobody else counts."""
    cache = scheduler.cache
    return EngineStats(
        num_steps=sum(method.num_done for method in step.methods.values()),
        num_waiting=scheduler.num_waiting,
        num_running=scheduler.num_running,
        num_waiting_tokens=scheduler.num_waiting_tokens,
        num_free_blocks=cache.num_free_blocks,
        num_blocks=cache.num_blocks,
        num_preemptions=scheduler.num_preemptions,
        num_cached_tokens=scheduler.num_cached_tokens,
        forward_s=sum(method.forward_s.total for method in step.methods.values()),
        queue_s=_bucketed(scheduler.queue_s),
        step=step,
        grammar=grammar,
        session=SessionStats(
            num_open=num_sessions,
            num_pinned_blocks=cache.pins.num_blocks,
            num_pinned_tokens=cache.pins.num_blocks * cache.block_size,
            num_pins_given_up=cache.pins.num_given_up,
        ),
        **counters,
    )


def _bucketed(counts: BucketCounts) -> Bucketed:
    return Bucketed(counts.shortened(), counts.total)
