"""Compiles the grammars of waiting requests beside the engine: one thread, bounded in length and time.

Knows grammars, no requests.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from serving.errors import InvalidRequest, Overloaded, RequestError
from serving.grammar.compiler import CompiledGrammar
from serving.grammar.store import GrammarStore
from serving.sampling_params import Grammar

MAX_PENDING = 16


class Compiler(Protocol):
    def try_apart(self, grammar: Grammar) -> None:
        """Compile where it can do no harm, and forget the result. Raises `InvalidRequest`."""
        ...

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Raises `InvalidRequest`."""
        ...

    def close(self) -> None: ...


@dataclass(slots=True, frozen=True)
class Verdict:
    """A grammar that was asked for is compiled, or refused."""

    grammar: Grammar
    compiled: CompiledGrammar | None = None
    error: RequestError | None = None


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
        self._jobs: queue.SimpleQueue[Grammar | None] = queue.SimpleQueue()
        self._verdicts: queue.SimpleQueue[Verdict] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing = False

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

        Raises `Overloaded` when too many wait already.
        """
        if grammar in self._pending:
            return
        if len(self._pending) >= MAX_PENDING:
            raise Overloaded("too many grammars are waiting to be compiled", retry_after_s=self._timeout_s)
        self._pending.add(grammar)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="grammar-compiler", daemon=True)
            self._thread.start()
        self._jobs.put(grammar)

    def compile_now(self, grammar: Grammar) -> CompiledGrammar:
        """Compile in this thread, for callers that have nobody to keep waiting. Raises `InvalidRequest`."""
        if (found := self.find(grammar)) is not None:
            return found
        if self._compiler is None:
            raise RuntimeError("nothing can be compiled without a compiler")
        compiled = self._compiler.compile(grammar)
        self.store.add(compiled)
        return compiled

    def take(self) -> list[Verdict]:
        """What was decided since the last call; compiled grammars are in the store from here on."""
        verdicts = []
        while not self._verdicts.empty():
            verdict = self._verdicts.get()
            self._pending.discard(verdict.grammar)
            if verdict.compiled is not None:
                self.store.add(verdict.compiled)
            verdicts.append(verdict)
        return verdicts

    def close(self) -> None:
        self._closing = True
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
        if self._compiler is not None:
            self._compiler.close()

    def _work(self) -> None:
        while (grammar := self._jobs.get()) is not None and not self._closing:
            self._verdicts.put(self._judge(grammar))
            self._on_verdict()

    def _judge(self, grammar: Grammar) -> Verdict:
        if self._compiler is None:
            raise RuntimeError("nothing can be compiled without a compiler")
        try:
            self._compiler.try_apart(grammar)
            started_s = time.monotonic()
            compiled = self._compiler.compile(grammar)
        except RequestError as error:
            return Verdict(grammar, error=error)
        took_s = time.monotonic() - started_s
        if took_s > self._timeout_s:
            late = InvalidRequest(
                f"`grammar` is refused: compiling it took {took_s:.1f} s, must take at most {self._timeout_s:g} s",
                field="grammar",
            )
            return Verdict(grammar, error=late)
        return Verdict(grammar, compiled=compiled)
