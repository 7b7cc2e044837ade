"""The matchers of the running rows: which tokens may come next, computed beside the forward pass. Knows rows and token ids.

Sampled ids are only noted when they are known; they are consumed where the next mask is computed, in one thread that
works without the GIL while the model runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

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


@dataclass(slots=True, frozen=True)
class RowMasks:
    """`bits` [M, W] int32; mask m is for the m-th of `rows`. Rows in `failures` may take any token and must end."""

    rows: list[int]
    bits: npt.NDArray[np.int32]
    failures: dict[int, str] = field(default_factory=dict)


class RowMatchers:
    """Used by one thread; only what it starts runs elsewhere.

    `beside` computes masks in a thread of its own while the model runs. Where the model itself keeps every core busy that
    thread would only make it wait, so there they are computed when they are asked for.
    """

    def __init__(self, vocab_size: int, *, beside: bool = True) -> None:
        self._beside = beside
        self._num_words = (vocab_size + 31) // 32
        self._rows: dict[int, _RowMatcher] = {}
        self._bits: npt.NDArray[np.int32] = np.empty((0, self._num_words), dtype=np.int32)
        self._thread: ThreadPoolExecutor | None = None
        threads = max(1, min(_MAX_THREADS, (os.cpu_count() or 1) // 2))
        self._executor = LLExecutor(threads) if beside and threads > 1 else None

    def begin(self, row: int, compiled: CompiledGrammar, output_token_ids: list[int]) -> None:
        """A row starts, or resumes with what it has put out so far."""
        self._rows[row] = _RowMatcher(compiled, unread=list(output_token_ids))

    def release(self, row: int) -> None:
        self._rows.pop(row, None)

    def note(self, row: int, token_id: int) -> None:
        """`token_id` was sampled for `row`; rows without a grammar are ignored."""
        if (state := self._rows.get(row)) is not None:
            state.unread.append(token_id)

    def start(self, rows: list[int]) -> Callable[[], RowMasks] | None:
        """Begin computing the masks of those of `rows` that have a grammar; None if none has. Call what it returns once,
        to wait for them."""
        if not self._rows:
            return None
        wanted = [row for row in rows if row in self._rows]
        if not wanted:
            return None
        if not self._beside:
            return partial(self._compute, wanted)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar-masks")
        return self._thread.submit(self._compute, wanted).result

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        self._rows.clear()

    def _compute(self, rows: list[int]) -> RowMasks:
        if len(self._bits) < len(rows):
            self._bits = np.empty((2 * len(rows), self._num_words), dtype=np.int32)
        bits = self._bits[: len(rows)]
        jobs = [(_up_to_date(self._rows[row]), index) for index, row in enumerate(rows)]
        self._fill(jobs, bits)
        failures = {}
        for row, (matcher, index) in zip(rows, jobs, strict=True):
            if matcher.is_error():
                failures[row] = readable(matcher.get_error())
                bits[index] = -1
        return RowMasks(rows, bits, failures)

    def _fill(self, jobs: list[tuple[LLMatcher, int]], bits: npt.NDArray[np.int32]) -> None:
        num_bytes, first = 4 * self._num_words, bits.ctypes.data
        if self._executor is not None and len(jobs) > 1:
            self._executor.unsafe_compute_mask_ptr(jobs, first, num_bytes, len(jobs))
            return
        # Waking a pool costs more than what it would take over.
        for matcher, index in jobs:
            matcher.unsafe_compute_mask_ptr(first + index * num_bytes, num_bytes)


def _up_to_date(state: _RowMatcher) -> LLMatcher:
    """The row's matcher, after all that was sampled."""
    if state.matcher is None:
        state.matcher = state.compiled.new_matcher()
    if state.unread:
        state.matcher.consume_tokens(state.unread)
        state.unread = []
    return state.matcher
