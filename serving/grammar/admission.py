"""Compiles the grammars of waiting requests beside the engine, bounded in length and time: a thread that gives each a
moment, and one for those that take longer, so that the harmless ones never wait behind them.

Knows grammars, no requests.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from serving.buckets import DURATION_S, BucketCounts
from serving.errors import InvalidRequest, Overloaded, RequestError
from serving.grammar.compiler import CompiledGrammar
from serving.grammar.refusals import Refusals
from serving.grammar.short_turns import ShortTurns
from serving.grammar.source import check_size, check_source
from serving.grammar.store import GrammarStore
from serving.messages import Bucketed, GrammarStats
from serving.sampling_params import Grammar

MAX_PENDING = 16
_MOMENT = 1 / 8  # of the time limit
_LONGEST_WAIT = 1 / 2  # of the time limit: the rest is for compiling
_LONG_NICENESS = 5
_TURN_S = 0.001


class Unfinished(Protocol):
    """A trial that took longer than a moment and goes on elsewhere."""

    def finish(self, deadline_s: float) -> None:
        """Wait for it until `deadline_s` of the monotonic clock. Raises `InvalidRequest`, or `Overloaded` where it got too
        little of the processor."""
        ...

    def give_up(self) -> None: ...


class Compiler(Protocol):
    def try_apart(self, grammar: Grammar, *, within_s: float) -> Unfinished | None:
        """Compile where it can do no harm, and forget the result. None when it compiles; what takes longer than
        `within_s` is handed back unfinished. Raises `InvalidRequest`."""
        ...

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Raises `InvalidRequest`."""
        ...

    def close(self) -> None: ...


@dataclass(slots=True, frozen=True)
class Verdict:
    """A grammar that was asked for is compiled, or refused, so long after it was asked for."""

    grammar: Grammar
    took_s: float
    compiled: CompiledGrammar | None = None
    error: RequestError | None = None
    lasting: bool = True
    """Would the same grammar be refused again, and not only now?"""


@dataclass(slots=True, frozen=True)
class _Job:
    grammar: Grammar
    asked_s: float
    unfinished: Unfinished | None = None


class GrammarAdmission:
    """All methods are for the engine's thread. `on_verdict` is called in the compiling thread, after each compilation."""

    def __init__(
        self,
        compiler: Compiler | None,
        store: GrammarStore,
        *,
        timeout_s: float,
        on_verdict: Callable[[], None] = lambda: None,
    ) -> None:
        """`compiler` None: grammars are switched off, and refused by name."""
        self.store = store
        self._compiler = compiler
        self._timeout_s = timeout_s
        self._on_verdict = on_verdict
        self._pending: set[Grammar] = set()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._long_jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._long_is_free = threading.Semaphore()
        self._verdicts: queue.SimpleQueue[Verdict] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._refusals = Refusals()
        self._took_s = BucketCounts(DURATION_S)
        self._num_refused = 0

    def call_on_verdict(self, on_verdict: Callable[[], None]) -> None:
        self._on_verdict = on_verdict

    def find(self, grammar: Grammar) -> CompiledGrammar | None:
        """The compiled grammar if there is one. Raises `InvalidRequest` where grammars are switched off."""
        if self._compiler is None:
            raise InvalidRequest(
                "`grammar` is refused: grammars are switched off here (DISABLE_GRAMMAR_SUPPORT)",
                field="grammar",
            )
        return self.store.find(grammar)

    def request(self, grammar: Grammar) -> None:
        """Have it compiled; its verdict comes with `take`. The same grammar is compiled once however many ask.

        Raises `Overloaded` when too many wait already, and `InvalidRequest` for what is too large to look at or was refused
        lately.
        """
        if grammar in self._pending:
            return
        try:
            check_size(grammar)
            self._refusals.check(grammar)
            if len(self._pending) >= MAX_PENDING:
                raise self._overloaded()
        except RequestError:
            self._num_refused += 1
            raise
        self._pending.add(grammar)
        if not self._threads:
            self._threads = [
                threading.Thread(target=work, name="grammar-compiler", daemon=True)
                for work in (self._work, self._work_long)
            ]
            for thread in self._threads:
                thread.start()
        self._jobs.put(_Job(grammar, time.monotonic()))

    def compile_now(self, grammar: Grammar) -> CompiledGrammar:
        """Compile in this thread, for callers that have nobody to keep waiting. Raises `InvalidRequest`."""
        if (found := self.find(grammar)) is not None:
            return found
        check_source(grammar)
        compiled = self._known_compiler().compile(grammar)
        self.store.add(compiled)
        return compiled

    def take(self) -> list[Verdict]:
        """What was decided since the last call; compiled grammars are in the store from here on."""
        verdicts = []
        while not self._verdicts.empty():
            verdict = self._verdicts.get()
            self._pending.discard(verdict.grammar)
            self._took_s.observe(verdict.took_s)
            if verdict.compiled is not None:
                self.store.add(verdict.compiled)
            else:
                self._num_refused += 1
            if verdict.lasting and isinstance(verdict.error, InvalidRequest):
                self._refusals.add(verdict.grammar, verdict.error)
            verdicts.append(verdict)
        return verdicts

    def stats(self) -> GrammarStats:
        return GrammarStats(
            num_waiting=len(self._pending),
            num_refused=self._num_refused,
            cache_bytes=self.store.num_bytes,
            compile_s=Bucketed(self._took_s.shortened(), self._took_s.total),
        )

    def close(self) -> None:
        self._closing = True
        for jobs, thread in zip((self._jobs, self._long_jobs), self._threads, strict=False):
            jobs.put(None)
            thread.join()
        self._threads = []
        if self._compiler is not None:
            self._compiler.close()

    def _work(self) -> None:
        turns = ShortTurns(os.getpriority(os.PRIO_PROCESS, 0), turn_s=_TURN_S)
        while (job := self._jobs.get()) is not None and not self._closing:
            if (verdict := self._judge_briefly(job, turns)) is not None:
                self._decide(verdict)

    def _work_long(self) -> None:
        # A grammar that takes long takes long in this process too.
        turns = ShortTurns(_LONG_NICENESS, turn_s=_TURN_S)
        while (job := self._long_jobs.get()) is not None:
            verdict = self._judge(job, turns)
            self._long_is_free.release()
            self._decide(verdict)

    def _decide(self, verdict: Verdict) -> None:
        self._verdicts.put(verdict)
        self._on_verdict()

    def _judge_briefly(self, job: _Job, turns: ShortTurns) -> Verdict | None:
        """None when somebody else goes on with it."""
        try:
            if time.monotonic() - job.asked_s > _LONGEST_WAIT * self._timeout_s:
                raise self._overloaded()
            unfinished = self._known_compiler().try_apart(job.grammar, within_s=_MOMENT * self._timeout_s)
            if unfinished is None:
                return self._judge(job, turns)
            if not self._long_is_free.acquire(blocking=False):
                unfinished.give_up()
                raise self._overloaded()
        except RequestError as error:
            return Verdict(job.grammar, time.monotonic() - job.asked_s, error=error)
        self._long_jobs.put(_Job(job.grammar, job.asked_s, unfinished))
        return None

    def _judge(self, job: _Job, turns: ShortTurns) -> Verdict:
        """Wait for its trial, if that is not over, and compile it here."""
        try:
            if job.unfinished is not None:
                job.unfinished.finish(job.asked_s + self._timeout_s)
            started_s = time.monotonic()
            with turns:
                compiled = self._known_compiler().compile(job.grammar)
        except RequestError as error:
            return Verdict(job.grammar, time.monotonic() - job.asked_s, error=error)
        now_s = time.monotonic()
        if now_s - started_s <= self._timeout_s:
            return Verdict(job.grammar, now_s - job.asked_s, compiled=compiled)
        problem = f"compiling it took {now_s - started_s:.1f} s, must take at most {self._timeout_s:g} s"
        late = InvalidRequest(f"`grammar` is refused: {problem}", field="grammar")
        return Verdict(job.grammar, now_s - job.asked_s, error=late, lasting=False)

    def _known_compiler(self) -> Compiler:
        if self._compiler is None:
            raise RuntimeError("nothing can be compiled without a compiler")
        return self._compiler

    def _overloaded(self) -> Overloaded:
        return Overloaded("too many grammars are waiting to be compiled", retry_after_s=self._timeout_s)
