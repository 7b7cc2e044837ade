"""The compiled sampler: buffers that stay, and one call per step for all rows. Knows plans of rows; not requests, and not
where a row's parameters come from. The torch twin is `serving.sampling.sampler.Sampler` without it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_POINTER, _LONG, _INT, _DOUBLE = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_double
# ids or targets first; capacity, scratch and threads last
_RESULTS: list[Any] = [*[_POINTER] * 5, _LONG, _POINTER, _INT]
_FIRST_CAPACITY = 8
_ALIGNMENT = 64

TopOfRow = tuple[list[int], list[float]]


class RowPlan(ctypes.Structure):
    """`struct plan` of sampler.c: one row's parameters, eight bytes each. Whoever fills in an address keeps the array."""

    _fields_ = [
        ("temperature", _DOUBLE),
        ("top_k", _LONG),
        *((name, _DOUBLE) for name in ("top_p", "min_p", "typical_p")),
        *((name, _DOUBLE) for name in ("repetition", "relative", "frequency", "presence")),
        ("seed", ctypes.c_ulonglong),
        *((name, _LONG) for name in ("position", "top_n", "raw", "plain")),
        *((name, _POINTER) for name in ("bias_ids", "biases")),
        ("num_biases", _LONG),
        ("green", _POINTER),
        ("delta", _DOUBLE),
        *((name, _POINTER) for name in ("seen_ids", "seen_counts", "output_counts")),
        *((name, _LONG) for name in ("num_seen", "length")),
        ("early_bans", _POINTER),
        ("num_early_bans", _LONG),
        ("late_bans", _POINTER),
        *((name, _LONG) for name in ("num_late_bans", "min_new_tokens")),
    ]


@dataclass(slots=True, frozen=True)
class Choices:
    """One entry per row. `tops` holds the rows that asked for their likeliest tokens, by index."""

    ids: list[int]
    logprobs: list[float]
    tops: dict[int, TopOfRow]


class _Results:
    """Whatever comes out of a call, for so many rows and so many of their likeliest tokens."""

    def __init__(self, rows: int, capacity: int) -> None:
        self.rows = rows
        self.capacity = capacity
        self.ids = np.zeros(rows, dtype=np.int64)
        self.logprobs = np.zeros(rows, dtype=np.float32)
        self.num_top = np.zeros(rows, dtype=np.int32)
        self.top_ids = np.zeros((rows, capacity), dtype=np.int32)
        self.top_logprobs = np.zeros((rows, capacity), dtype=np.float32)
        arrays = (self.ids, self.logprobs, self.num_top, self.top_ids, self.top_logprobs)
        self.at = (*(array.ctypes.data for array in arrays), capacity)

    def top(self, row: int) -> TopOfRow:
        found = self.num_top[row]
        return self.top_ids[row, :found].tolist(), self.top_logprobs[row, :found].tolist()


@dataclass(slots=True, frozen=True)
class _Logits:
    """What is asked of logits in every step: those of steps that are replayed lie in one tensor. `at` is address, floats
    between rows, vocabulary, rows."""

    tensor: Tensor
    covered: bool
    at: tuple[int, int, int, int]


class NativeSampler:
    """Used by one thread at a time; its buffers grow with the rows it is given."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._sample = library.sample_rows_f32
        logits: list[Any] = [_POINTER, *[_LONG] * 3]
        masks: list[Any] = [_POINTER, _LONG, _POINTER]
        self._sample.argtypes = [_POINTER, *logits, *masks, *_RESULTS]
        self._score = library.score_rows_f32
        self._score.argtypes = [*logits, _POINTER, _LONG, *_RESULTS[1:]]
        self._sample.restype = self._score.restype = None
        self._scratch_bytes = library.sampler_scratch_bytes
        self._scratch_bytes.argtypes, self._scratch_bytes.restype = [_LONG], _LONG
        self._scratch = np.empty(0, dtype=np.uint8)
        self._scratch_at: int | None = None
        self._results = _Results(1, _FIRST_CAPACITY)
        self._plans: ctypes.Array[ctypes.c_void_p] = (_POINTER * 0)()
        self._wants_top: list[int] = []
        self._plain = True
        self._masked: list[int] = []
        self._mask_of_row = np.empty(0, dtype=np.int32)
        self._mask_of_row_at = 0
        self._known: _Logits | None = None

    def use(self, plans: Sequence[RowPlan]) -> None:
        """The rows of the next calls of `sample`, in order. Plans stay the caller's, to change between calls."""
        self._plans = (_POINTER * len(plans))(*map(ctypes.addressof, plans))
        self._wants_top = [index for index, plan in enumerate(plans) if plan.top_n > 0]
        self._plain = all(plan.plain for plan in plans)
        self._masked = []
        self._make_room(len(plans), max((plan.top_n for plan in plans), default=0))

    def covers(self, logits: Tensor) -> bool:
        return self._look_at(logits).covered

    def _look_at(self, logits: Tensor) -> _Logits:
        known = self._known
        if known is None or known.tensor is not logits:
            covered = logits.dtype is torch.float32 and logits.device.type == "cpu" and logits.stride(1) == 1
            at = (logits.data_ptr(), logits.stride(0), logits.shape[1], logits.shape[0])
            known = self._known = _Logits(logits, covered, at)
        return known

    def sample(self, logits: Tensor, bits: Tensor | None = None, masked: Sequence[int] = ()) -> Choices:
        """logits [R, V] as `covers` says, left as they are; mask m of `bits` [M, W] int32 is for row `masked[m]`."""
        at = self._look_at(logits).at
        _, _, vocab_size, count = at
        threads = torch.get_num_threads()
        if not self._plain:
            self._need_scratch(vocab_size, threads)
        bits_at, num_words, mask_of_row_at = None, 0, None
        if bits is not None:
            bits_at, num_words = bits.data_ptr(), bits.shape[1]
            mask_of_row_at = self._masks_at(count, masked)
        self._sample(
            self._plans, *at, bits_at, num_words, mask_of_row_at, *self._results.at, self._scratch_at, threads,
        )  # fmt: skip
        tops: dict[int, TopOfRow] = {}
        if self._wants_top:
            if self._overflows(count):
                return self.sample(logits, bits, masked)
            tops = {row: self._results.top(row) for row in self._wants_top}
        return Choices(self._results.ids[:count].tolist(), self._results.logprobs[:count].tolist(), tops)

    def score(self, logits: Tensor, targets: list[int], num_top: int) -> tuple[list[float], list[TopOfRow]]:
        """The log-probability of `targets[r]` in row r of logits [R, V], and each row's `num_top` likeliest tokens."""
        count, vocab_size = logits.shape
        threads = torch.get_num_threads()
        if num_top:
            self._need_scratch(vocab_size, threads)
        self._make_room(count, num_top)
        wanted = np.array(targets, dtype=np.int64)
        self._score(
            logits.data_ptr(), logits.stride(0), vocab_size, count, wanted.ctypes.data, num_top,
            *self._results.at[1:], self._scratch_at, threads,
        )  # fmt: skip
        if num_top and self._overflows(count):
            return self.score(logits, targets, num_top)
        tops = [self._results.top(row) if num_top else ([], []) for row in range(count)]
        return self._results.logprobs[:count].tolist(), tops

    def _overflows(self, count: int) -> bool:
        """True if ties need more room than there was, which there is now."""
        needed = int(self._results.num_top[:count].max())
        if needed <= self._results.capacity:
            return False
        self._make_room(count, needed)
        return True

    def _make_room(self, rows: int, capacity: int) -> None:
        old = self._results
        if rows > old.rows or capacity > old.capacity:
            self._results = _Results(max(rows, old.rows), max(capacity, old.capacity))

    def _masks_at(self, count: int, masked: Sequence[int]) -> int:
        if masked != self._masked:
            self._mask_of_row = np.full(count, -1, dtype=np.int32)
            self._mask_of_row[list(masked)] = np.arange(len(masked))
            self._mask_of_row_at = self._mask_of_row.ctypes.data
            self._masked = list(masked)
        return self._mask_of_row_at

    def _need_scratch(self, vocab_size: int, threads: int) -> None:
        needed = self._scratch_bytes(vocab_size) * threads + _ALIGNMENT
        if len(self._scratch) < needed:
            self._scratch = np.empty(needed, dtype=np.uint8)
            self._scratch_at = -(-self._scratch.ctypes.data // _ALIGNMENT) * _ALIGNMENT
