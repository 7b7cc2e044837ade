"""The matchers of the running rows: which tokens may come next. Knows rows and token ids.

Sampled ids are noted when they are known, and consumed where the next masks are computed: on a GPU in a thread while the
model runs; on a CPU, where the model keeps every core busy, before it runs, in a thread without the interpreter while this
one accounts for the last step.
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

from serving.grammar.ahead import MasksAhead
from serving.grammar.compiler import CompiledGrammar, readable
from serving.grammar.native import Constraint, Unavailable

_MAX_THREADS = 8


@dataclass(slots=True, eq=False)
class _RowMatcher:
    compiled: CompiledGrammar
    unread: list[int]
    ahead: bool
    """May its masks be computed ahead?"""
    read: list[int] = field(default_factory=list)
    matcher: LLMatcher | Constraint | None = None

    def up_to_date(self) -> LLMatcher | Constraint:
        """The matcher, after all that was sampled."""
        matcher, unread = self.matcher, self.unread
        if matcher is None:
            native = self.compiled.native if self.ahead else None
            matcher = self.matcher = self.compiled.new_matcher() if native is None else native.deep_copy()
            matcher.consume_tokens(unread)
        elif len(unread) == 1:
            matcher.consume_token(unread[0])
        elif unread:
            matcher.consume_tokens(unread)
        self.read += unread
        unread.clear()
        return matcher

    def error(self) -> str | None:
        """Why the last mask is none, after it was computed."""
        matcher = self.matcher
        if isinstance(matcher, Constraint) and matcher.is_stopped():
            reason = matcher.get_error()
            matcher = self.compiled.new_matcher()
            matcher.consume_tokens(self.read)
            matcher.compute_bitmask()
            if not matcher.is_error() and not matcher.is_accepting():
                return readable(reason) or "its masks came to an end before the text did"
        return readable(matcher.get_error()) if matcher is not None and matcher.is_error() else None


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
        self._first = 0
        """The address of `_bits`."""
        self._thread: ThreadPoolExecutor | None = None
        threads = max(1, min(_MAX_THREADS, (os.cpu_count() or 1) // 2))
        self._executor = LLExecutor(threads) if beside and threads > 1 else None
        self._ahead: MasksAhead | None = None
        self._masks_ahead: RowMasks | None = None
        """The last ones that were computed ahead without a failure: those of the next step lie at the same place."""
        self._read_ahead: list[list[int]] = []
        """The tokens, by step and row of the batch ahead, that are not in its rows' `read` yet."""
        self._noted_rows: list[int] = []
        self._noted_places: list[int] = []
        """Where those that were last noted have grammars, if that is the batch ahead; else empty."""

    def begin(self, row: int, compiled: CompiledGrammar, output_token_ids: list[int]) -> None:
        """A row starts, or resumes with what it has put out so far."""
        self._settle()
        self._rows[row] = _RowMatcher(compiled, list(output_token_ids), ahead=not self._beside)

    def release(self, row: int) -> None:
        if row in self._rows:
            self._settle()
            del self._rows[row]

    def note(self, rows: list[int], token_ids: list[int]) -> None:
        """What was sampled for `rows` in one step; rows without a grammar are ignored."""
        if not self._rows:
            return
        ahead = self._ahead
        if ahead is not None and ahead.rows and not ahead.begun and (places := self._places_in(rows, ahead)):
            sampled = [token_ids[place] for place in places]
            self._read_ahead.append(sampled)
            ahead.begin(sampled)
            return
        states = [
            (state, place) for place, row in enumerate(rows) if (state := self._rows.get(row)) is not None
        ]
        if states:
            self._settle()
        for state, place in states:
            state.unread.append(token_ids[place])

    def start(self, rows: list[int]) -> Callable[[], RowMasks] | None:
        """Begin computing the masks of those of `rows` that have a grammar; None if none has. Call what it returns once,
        to wait for them."""
        if not self._rows:
            return None
        wanted = [row for row in rows if row in self._rows]
        if not wanted:
            return None
        if not self._beside:
            masks = self._take_ahead(wanted)
            return partial(self._compute, wanted) if masks is None else lambda: masks
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar-masks")
        return self._thread.submit(self._compute, wanted).result

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        self._rows.clear()

    def _compute(self, rows: list[int]) -> RowMasks:
        if len(self._bits) < len(rows):
            self._bits = np.empty((2 * len(rows), self._num_words), dtype=np.int32)
            self._first = self._bits.ctypes.data
        matchers = [] if self._executor is None else [self._rows[row].up_to_date() for row in rows]
        jobs = [(matcher, i) for i, matcher in enumerate(matchers) if isinstance(matcher, LLMatcher)]
        if self._executor is not None and len(jobs) == len(rows) > 1:
            self._executor.unsafe_compute_mask_ptr(jobs, self._first, 4 * self._num_words, len(jobs))
            failures = {row: error for row in rows if (error := self._rows[row].error()) is not None}
        else:
            failures = self._fill(rows)
            self._prepare_ahead(rows)
        bits = self._bits[: len(rows)]
        for row in failures:
            bits[rows.index(row)] = -1
        return RowMasks(rows, bits, failures)

    def _fill(self, rows: list[int]) -> dict[int, str]:
        """One row after the other, all of a row at once, while it is in the caches; in this thread, because waking a pool
        costs more than what it would take over. Returns the failures."""
        states, num_bytes, address = self._rows, 4 * self._num_words, self._first
        failures = {}
        for row in rows:
            state = states[row]
            state.up_to_date().unsafe_compute_mask_ptr(address, num_bytes)
            address += num_bytes
            if (error := state.error()) is not None:
                failures[row] = error
        return failures

    def _places_in(self, rows: list[int], ahead: MasksAhead) -> list[int]:
        if rows != self._noted_rows:
            places = [place for place, row in enumerate(rows) if row in self._rows]
            self._noted_places = places if [rows[place] for place in places] == ahead.rows else []
            self._noted_rows = list(rows)
        return self._noted_places

    def _take_ahead(self, rows: list[int]) -> RowMasks | None:
        """The masks that were begun, if they are those of `rows`."""
        ahead = self._ahead
        if ahead is None or not ahead.begun or rows != ahead.rows:
            self._settle()
            return None
        bits, ended = ahead.wait()
        if not ended and self._masks_ahead is not None:
            return self._masks_ahead
        if ended:
            self._read_all()
        failures = {rows[i]: error for i in ended if (error := self._rows[rows[i]].error()) is not None}
        for row in failures:
            bits[rows.index(row)] = -1
        masks = RowMasks(rows, bits, failures)
        self._masks_ahead = None if failures else masks
        return masks

    def _prepare_ahead(self, rows: list[int]) -> None:
        """From the next step on the masks of `rows` are computed ahead, if their matchers can be."""
        constraints = [self._rows[row].matcher for row in rows]
        if self._beside or not all(isinstance(constraint, Constraint) for constraint in constraints):
            return
        natives = [constraint for constraint in constraints if isinstance(constraint, Constraint)]
        if self._ahead is None:
            try:
                self._ahead = MasksAhead(natives[0].compiler)
            except Unavailable:
                return  # they are computed when they are asked for, as other matchers' are
        self._ahead.prepare(rows, natives)
        self._masks_ahead, self._noted_rows = None, []

    def _settle(self) -> None:
        """Nothing is under way, and matchers are after the tokens that are no longer unread."""
        if self._ahead is not None:
            self._read_all()
            self._ahead.settle()

    def _read_all(self) -> None:
        """Tell the rows of the batch ahead what was read for them."""
        if self._ahead is not None and self._read_ahead:
            for row, token_ids in zip(self._ahead.rows, zip(*self._read_ahead, strict=True), strict=True):
                self._rows[row].read += token_ids
            self._read_ahead.clear()
