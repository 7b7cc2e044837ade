"""The masks of the next step, begun as soon as the tokens of the last one are known. Knows constraints and their order in a
batch, not rows' histories."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from serving.grammar.native import Constraint, ConstraintCompiler, Unavailable

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_long

_INTERFACE = ("llg_compute_mask", "llg_commit_token", "llg_is_stopped")


class Job(ctypes.Structure):
    """`struct job` of masks.c."""

    _fields_ = [("constraint", _POINTER), ("token", _LONG), ("ended", _LONG)]


class MasksAhead:
    """A thread and a batch that stays from step to step. All methods are for one thread."""

    def __init__(self, compiler: ConstraintCompiler) -> None:
        """Raises `Unavailable` when no thread can be had."""
        self.compiler = compiler
        self.rows: list[int] = []
        """Of the batch, in its order; empty: none."""
        self._kernels = compiler.kernels
        self._kernels.masks_open.restype = _POINTER
        self._kernels.masks_open.argtypes = [_POINTER, _POINTER, _LONG]
        self._kernels.masks_begin.restype = None
        self._kernels.masks_begin.argtypes = [_POINTER, _POINTER, _POINTER, _LONG]
        self._kernels.masks_wait.restype = _LONG
        self._kernels.masks_wait.argtypes = [_POINTER]
        self._kernels.masks_close.restype = None
        self._kernels.masks_close.argtypes = [_POINTER]
        functions = (_POINTER * len(_INTERFACE))(
            *(ctypes.cast(getattr(compiler.interface, name), _POINTER).value for name in _INTERFACE)
        )
        self._thread: int | None = self._kernels.masks_open(
            functions, compiler.when_stopped, compiler.num_words
        )
        if self._thread is None:
            raise Unavailable("no thread for masks")
        self._jobs: ctypes.Array[Job] = (Job * 0)()
        self._tokens: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
        """Of the jobs, in their memory."""
        self._bits: npt.NDArray[np.int32] = np.empty((0, compiler.num_words), dtype=np.int32)
        self._bits_at = 0
        self._begun = False

    @property
    def begun(self) -> bool:
        return self._begun

    def prepare(self, rows: list[int], constraints: list[Constraint]) -> None:
        """The batch from now on; nothing is under way."""
        if len(rows) > len(self._jobs):
            self._jobs = (Job * (2 * len(rows)))()
            self._tokens = np.frombuffer(memoryview(self._jobs), dtype=np.int64)[1 :: len(Job._fields_)]
            self._bits = np.empty((2 * len(rows), self.compiler.num_words), dtype=np.int32)
            self._bits_at = self._bits.ctypes.data
        for job, constraint in zip(self._jobs, constraints, strict=False):
            job.constraint = constraint.address
        self.rows = list(rows)

    def begin(self, token_ids: list[int]) -> None:
        """One sampled token for each row of the batch."""
        self._tokens[: len(token_ids)] = token_ids
        self._kernels.masks_begin(self._thread, self._jobs, self._bits_at, len(token_ids))
        self._begun = True

    def wait(self) -> tuple[npt.NDArray[np.int32], list[int]]:
        """The masks [rows, words] of what was begun, and those of them that permit the end alone. Valid until `begin`."""
        num_ended = self._kernels.masks_wait(self._thread)
        self._begun = False
        count = len(self.rows)
        ended = [i for i in range(count) if self._jobs[i].ended] if num_ended else []
        return self._bits[:count], ended

    def settle(self) -> None:
        """The batch is over, and nothing is under way: constraints are in the state after the tokens they were given."""
        if self._begun:
            self.wait()
        self.rows = []

    def close(self) -> None:
        if self._thread is not None:
            self.settle()
            self._kernels.masks_close(self._thread)
            self._thread = None
