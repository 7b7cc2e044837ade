"""Operations of the compiled kernels as records: run at once, or written down and replayed as a whole in one call.

Knows addresses and sizes, not what the operations compute; `program.c` holds the other half.
"""

from __future__ import annotations

import ctypes
import logging
import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from serving import logs
from serving.contracts import StepGraph

logger = logging.getLogger(__name__)

KINDS = (
    "embed", "linear_panels", "linear_rows", "pack_panels", "rms_norm", "rotary", "silu_mul", "write_kv",
    "decode_attention", "merge_segments", "prefill_attention",
)  # fmt: skip
"""In the order of program.c."""
_KIND = {name: index for index, name in enumerate(KINDS)}
_NUM_ADDRESSES, _NUM_SIZES = 8, 10
_RECORD = struct.Struct(f"q{_NUM_ADDRESSES}q{_NUM_SIZES}qdq")
_OUTPUTS: dict[str, tuple[int, ...]] = {
    "embed": (2,), "linear_panels": (3,), "linear_rows": (3,), "pack_panels": (0,), "rms_norm": (3,),
    "rotary": (3,), "silu_mul": (1,), "write_kv": (2, 3), "decode_attention": (6, 7), "merge_segments": (),
    "prefill_attention": (7,),
}  # fmt: skip
"""Which addresses an operation writes to; a norm that adds, to its second one too."""
_ALIGNMENT = 64
_AMPLE_BYTES = 8 << 20
"""Of an arena: up to that size, places are used again late rather than early. A layer's worth is about what a thread on its
own gets through while another one is held; more costs steps of many rows their place in the processor's caches."""
_FACTS = frozenset(
    {"__get__", "__len__", "data_ptr", "dim", "element_size", "is_contiguous", "nelement", "numel", "size", "stride",
     "storage_offset", "untyped_storage"}
)  # fmt: skip
"""Functions of a tensor whose results do not depend on its values."""
_MAX_ROWS = 64


@dataclass(slots=True)
class _Recording:
    """`tensors` are what the operations made; all of them are kept, so that each has addresses of its own."""

    records: list[bytes] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)


_recording: ContextVar[_Recording | None] = ContextVar("recording", default=None)


def empty(shape: Sequence[int]) -> Tensor:
    """A float32 tensor for the output of an operation."""
    output = torch.empty(shape)
    recording = _recording.get()
    if recording is not None:
        recording.tensors.append(output)
    return output


def run(
    library: ctypes.CDLL,
    kind: str,
    tensors: Sequence[Tensor | None],
    sizes: Sequence[int],
    *,
    work: int,
    factor: float = 0.0,
) -> None:
    """One operation on the addresses of `tensors`; `work` is about how many floats it goes through."""
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    addresses += [0] * (_NUM_ADDRESSES - len(addresses))
    padding = [0] * (_NUM_SIZES - 1 - len(sizes))
    record = _RECORD.pack(_KIND[kind], *addresses, *sizes, *padding, work, factor, 0)
    recording = _recording.get()
    if recording is not None:
        recording.records.append(record)
    library.run_operations(record, 1, torch.get_num_threads())


class _Watch(TorchFunctionMode):
    """Notices torch functions that do more than name memory: a replay would not repeat them."""

    def __init__(self) -> None:
        super().__init__()
        self.strays: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        held = {_storage(given) for given in args if isinstance(given, Tensor)}  # before it is changed
        result = func(*args, **(kwargs or {}))
        if func is not torch.empty and (_writes(name, kwargs) or not _only_names(name, result, held)):
            self.strays.append(name)
        return result


def _writes(name: str, kwargs: dict[str, Any] | None) -> bool:
    in_place = (
        (name.endswith("_") and not name.endswith("__")) or name == "__setitem__" or name.startswith("__i")
    )
    return in_place or "out" in (kwargs or {})


def _only_names(name: str, result: object, held: set[int]) -> bool:
    """Is `result` memory among `held`, or a fact about a tensor?"""
    results = result if isinstance(result, (list, tuple)) else [result]
    if any(isinstance(made, Tensor) for made in results):
        return all(isinstance(made, Tensor) and _storage(made) in held for made in results)
    return name in _FACTS


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@dataclass(slots=True)
class _Program:
    """Records whose addresses lie in `arena`, in weights, caches and inputs. `keeps` holds on to the last three."""

    library: ctypes.CDLL
    records: bytes
    arena: Tensor
    keeps: Callable[[], Tensor]

    def replay(self) -> None:
        self.library.run_operations(self.records, len(self.records) // _RECORD.size, torch.get_num_threads())


class NativeGraphs:
    """Captures runs that consist of nothing but compiled kernels: `contracts.GraphBackend`.

    Whatever a run makes lies in one arena that all programs share: its result is valid until the next replay or capture.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._arena = torch.empty(0, dtype=torch.uint8)
        self._said_why = False

    def padded_rows(self, num_rows: int) -> int | None:
        """A capture costs about as much as a step: every number of rows has its own."""
        return num_rows if num_rows <= _MAX_ROWS else None

    @torch.inference_mode()
    def capture(self, run: Callable[[], Tensor]) -> tuple[StepGraph, Tensor] | None:
        recording, watch = _Recording(), _Watch()
        token = _recording.set(recording)
        try:
            with watch:
                result = run()
        finally:
            _recording.reset(token)
        bases = [_storage(tensor) for tensor in recording.tensors]
        if watch.strays:
            self._explain(f"torch computed {', '.join(dict.fromkeys(watch.strays))}")
            return None
        if _storage(result) not in bases:
            self._explain("its result is not what a kernel made")
            return None
        plan = _Plan(recording, bases.index(_storage(result)))
        if plan.num_bytes > self._arena.numel():
            # Programs that were captured before keep the old one.
            self._arena = torch.empty(max(plan.num_bytes, 2 * self._arena.numel()), dtype=torch.uint8)
        arena = self._arena
        program = _Program(self._library, plan.place(arena.data_ptr()), arena, run)
        floats = arena[: plan.num_bytes].view(torch.float32)
        start = plan.offsets[plan.result] // 4 + result.storage_offset()
        placed = torch.as_strided(floats, result.shape, result.stride(), start)
        floats.fill_(float("nan"))
        program.replay()
        if not torch.equal(placed, result):
            self._explain("its replay computed something else")
            return None
        return program, placed

    def _explain(self, reason: str) -> None:
        if not self._said_why:
            logs.event(logger, logging.INFO, "cpu programs", captured="no", reason=reason)
            self._said_why = True


def _changes_its_input(record: Sequence[Any]) -> bool:
    """Then no piece of it is computed twice (program.c), and no thread is late in it."""
    return KINDS[record[0]] == "pack_panels" or (KINDS[record[0]] == "rms_norm" and record[1] != 0)


def _written(record: Sequence[Any]) -> list[int]:
    """The addresses that it writes to."""
    slots = _OUTPUTS[KINDS[record[0]]] + ((1,) if _changes_its_input(record) else ())
    return [record[1 + slot] for slot in slots if record[1 + slot]]


class _Plan:
    """Where in an arena each tensor of a recording lies: two share a place if one is last used before the other is made."""

    def __init__(self, recording: _Recording, result: int) -> None:
        self.result = result
        self._records = [list(_RECORD.unpack(record)) for record in recording.records]
        order = sorted(range(len(recording.tensors)), key=lambda index: _storage(recording.tensors[index]))
        self._tensors = order
        self._starts = [_storage(recording.tensors[index]) for index in order]
        self._sizes = [tensor.nbytes for tensor in recording.tensors]
        uses: dict[int, list[int]] = {index: [] for index in order}
        for step, record in enumerate(self._records):
            for address in record[1 : 1 + _NUM_ADDRESSES]:
                if (found := self._find(address)) is not None:
                    uses[found[0]].append(step)
        uses[result].append(len(self._records))
        self._lives = {index: (steps[0], steps[-1]) for index, steps in uses.items() if steps}
        self.offsets: dict[int, int] = {}
        self._displaced: dict[int, list[int]] = {}
        self.num_bytes = 0
        total_bytes = sum(self._sizes[index] for index in self._lives)
        rest = min(len(self._records), len(self._records) * _AMPLE_BYTES // max(1, total_bytes))
        self._assign(rest)
        while rest > 0 and self.num_bytes > _AMPLE_BYTES:
            rest = rest * 3 // 4
            self._assign(rest)

    def place(self, base: int) -> bytes:
        """The records with addresses in the arena that begins at `base`."""
        records = []
        for record, after in zip(self._records, self._waits(), strict=True):
            placed = list(record)
            placed[-1] = after
            for slot in range(1, 1 + _NUM_ADDRESSES):
                if (found := self._find(record[slot])) is not None:
                    placed[slot] = base + self.offsets[found[0]] + found[1]
            records.append(_RECORD.pack(*placed))
        return b"".join(records)

    def _find(self, address: int) -> tuple[int, int] | None:
        """The tensor that `address` lies in, and how far from its start."""
        position = bisect_right(self._starts, address) - 1
        if position < 0:
            return None
        index, distance = self._tensors[position], address - self._starts[position]
        return (index, distance) if distance < self._sizes[index] else None

    def _waits(self) -> list[int]:
        """For each record the first operation that late threads may still be busy with when it begins: what it writes was
        used last by the one before, whether as the same tensor or as another one in the same place."""
        waits, last_use = [], dict[int, int]()
        for step, record in enumerate(self._records):
            written = [key for address in _written(record) for key in self._lost(self._key(address), step)]
            waits.append(max((last_use.get(key, -1) + 1 for key in written), default=0))
            if not _changes_its_input(record):
                last_use.update((self._key(address), step) for address in record[1 : 1 + _NUM_ADDRESSES])
        return waits

    def _key(self, address: int) -> int:
        """The index of a tensor, or for what is not in the arena a negative number."""
        found = self._find(address)
        return ~address if found is None else found[0]

    def _lost(self, key: int, step: int) -> list[int]:
        """What is gone when `step` writes to `key`."""
        is_new = key in self._lives and self._lives[key][0] == step
        return self._displaced[key] if is_new else [key]

    def _assign(self, rest: int) -> None:
        """The first place that is free for the whole life of a tensor, in the order in which they are made, and for `rest`
        operations before: threads that are late there need not be waited for."""
        self.num_bytes = 0
        alive: list[tuple[int, int, int, int]] = []  # start, end, last use, index
        gone: list[tuple[int, int, int, int]] = []  # whose places nobody has taken
        for index, (first, last) in sorted(self._lives.items(), key=lambda item: item[1]):
            gone += [place for place in alive if place[2] + rest < first]
            alive = sorted(place for place in alive if place[2] + rest >= first)
            start = 0
            needed = -(-self._sizes[index] // _ALIGNMENT) * _ALIGNMENT
            for taken, end, _, _ in alive:
                if start + needed <= taken:
                    break
                start = max(start, end)
            stop = start + needed
            self._displaced[index] = [other for begin, end, _, other in gone if begin < stop and start < end]
            gone = [place for place in gone if place[1] <= start or place[0] >= stop]
            alive.append((start, stop, last, index))
            self.offsets[index] = start
            self.num_bytes = max(self.num_bytes, stop)
