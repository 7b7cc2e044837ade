"""The matchers of the running rows: which tokens may come next, computed beside the forward pass. Knows rows and token ids.

Sampled ids are only noted when they are known; they are consumed where the next mask is computed, in one thread that
works without the GIL while the model runs.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from llguidance import LLExecutor, LLMatcher

from serving.grammar.compiler import CompiledGrammar, readable

_MAX_THREADS = 8


@dataclass(slots=True, eq=False)
class _RowMatcher:
    compiled: CompiledGrammar
    unread: list[int]
    matcher: LLMatcher | None = None
    failure: str = ""


@dataclass(slots=True, frozen=True)
class RowMasks:
    """`bits` [M, W] int32; mask m is for the m-th of `rows`. Rows in `failures` may take any token and must end."""

    rows: list[int]
    bits: npt.NDArray[np.int32]
    failures: dict[int, str] = field(default_factory=dict)


class RowMatchers:
    """Used by one thread; only what it starts runs elsewhere."""

    def __init__(self, vocab_size: int) -> None:
        self._num_words = (vocab_size + 31) // 32
        self._rows: dict[int, _RowMatcher] = {}
        self._bits: npt.NDArray[np.int32] = np.empty((0, self._num_words), dtype=np.int32)
        self._thread: ThreadPoolExecutor | None = None
        self._executor = LLExecutor(max(1, min(_MAX_THREADS, (os.cpu_count() or 1) // 2)))

    def begin(self, row: int, compiled: CompiledGrammar, output_token_ids: list[int]) -> None:
        """A row starts, or resumes with what it has put out so far."""
        self._rows[row] = _RowMatcher(compiled, unread=list(output_token_ids))

    def release(self, row: int) -> None:
        self._rows.pop(row, None)

    def note(self, row: int, token_id: int) -> None:
        """`token_id` was sampled for `row`; rows without a grammar are ignored."""
        if (state := self._rows.get(row)) is not None:
            state.unread.append(token_id)

    def start(self, rows: list[int]) -> Future[RowMasks] | None:
        """Begin computing the masks of those of `rows` that have a grammar; None if none has."""
        if not self._rows:
            return None
        wanted = [row for row in rows if row in self._rows]
        if not wanted:
            return None
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar-masks")
        return self._thread.submit(self._compute, wanted)

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        self._rows.clear()

    def _compute(self, rows: list[int]) -> RowMasks:
        if len(self._bits) < len(rows):
            self._bits = np.empty((2 * len(rows), self._num_words), dtype=np.int32)
        bits = self._bits[: len(rows)]
        states = [self._rows[row] for row in rows]
        self._read(states)
        jobs = [(_matcher_of(state), index) for index, state in enumerate(states)]
        self._executor.unsafe_compute_mask_ptr(jobs, bits.ctypes.data, 4 * self._num_words, len(rows))
        failures = {}
        for row, (matcher, index) in zip(rows, jobs, strict=True):
            if matcher.is_error():
                failures[row] = readable(matcher.get_error())
                bits[index] = -1
        return RowMasks(rows, bits, failures)

    def _read(self, states: list[_RowMatcher]) -> None:
        """Bring the matchers up to date with the sampled ids."""
        single: list[tuple[LLMatcher, int]] = []
        for state in states:
            matcher = _matcher_of(state)
            if len(state.unread) == 1:
                single.append((matcher, state.unread[0]))
            elif state.unread:
                matcher.consume_tokens(state.unread)
            state.unread = []
        if single:
            self._executor.consume_token_par(single)


def _matcher_of(state: _RowMatcher) -> LLMatcher:
    if state.matcher is None:
        state.matcher = state.compiled.new_matcher()
    return state.matcher
