"""How much one rendering of a template may cost: processor time, memory and the size of every value it makes.

Every operation of a template that can be large asks here first, because nothing can interrupt Python inside one.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from jinja2.exceptions import SecurityError

TIME_LIMIT_S = 1.0
MAX_ITEMS = 250_000
MAX_INTEGER_BITS = 1 << 16
_BYTES_BETWEEN_LOOKS = 64 << 20
_MAX_GROWTH_KIB = 256 << 10
# Asking for the time costs more than a small operation: it is done once for many of them, or for one large one.
_WORK_BETWEEN_LOOKS = 64
_WORK_SHIFT = 12
_SCALAR_SIZE = 8
_SIZED = (str, bytes, list, tuple, dict, set, frozenset)


class Meter:
    """The limits of one rendering. Sizes count characters and eight per other item, as often as they are shown:
    a list that holds one text twice is as large as two. Every method raises `SecurityError` at a limit.
    """

    __slots__ = ("_bytes_left", "_deadline_s", "_peak_kib", "_sizes", "_work", "max_output_chars", "max_size")

    def __init__(self, *inputs: object) -> None:
        """Larger `inputs` may make more. They are JSON values: trees without cycles."""
        self._deadline_s = time.thread_time() + TIME_LIMIT_S
        self._work = 0
        # Sizes of containers by identity. Kept with the container, so that no other can get its identity.
        self._sizes: dict[int, tuple[object, int]] = {}
        size = sum(self._measure(each) for each in inputs)
        self.max_size = (4 << 20) + 4 * size
        self.max_output_chars = (4 << 20) + 8 * size
        # What a template has let go of counts as well, so at zero the process itself is looked at.
        self._bytes_left = _BYTES_BETWEEN_LOOKS + 64 * size
        self._peak_kib = _peak_kib()

    def tick(self, size: int = 0) -> None:
        """Called with every operation, and the size of what it works on."""
        self._work += 1 + (size >> _WORK_SHIFT)
        if self._work >= _WORK_BETWEEN_LOOKS:
            self._work = 0
            if time.thread_time() > self._deadline_s:
                raise SecurityError(f"the template takes more than {TIME_LIMIT_S:g} s")

    def keep(self, value: object) -> object:
        """Account for a value that an operation made; returns it."""
        if isinstance(value, _SIZED):
            size = len(value) if type(value) is str else self._measure(value)
            self.tick(size)
            self._bytes_left -= sys.getsizeof(value)
            if self._bytes_left < 0:
                self._look_at_memory()
            self.require_size(size)
        else:
            self.tick()
            if isinstance(value, int):
                self.require_integer(value.bit_length())
        return value

    def size(self, value: object) -> int:
        """The size of any value of a template."""
        return self._measure(value)

    def require_size(self, size: int) -> None:
        """Refuse to make a value of this size."""
        if size > self.max_size:
            raise SecurityError(f"the template makes a value of size {size}, the limit is {self.max_size}")

    def require_integer(self, bits: int) -> None:
        if bits > MAX_INTEGER_BITS:
            raise SecurityError(f"the template makes an integer of more than {MAX_INTEGER_BITS} bits")

    def join(self, parts: Iterable[str]) -> str:
        """The joined `parts`, whose size is looked at first."""
        known = parts if isinstance(parts, list) else list(parts)
        self.require_size(sum(map(len, known)))
        text = "".join(known)
        self.keep(text)
        return text

    def _look_at_memory(self) -> None:
        if _peak_kib() - self._peak_kib > _MAX_GROWTH_KIB:
            raise SecurityError("the template needs too much memory")
        self._bytes_left = _BYTES_BETWEEN_LOOKS

    def _measure(self, value: object) -> int:
        if isinstance(value, str | bytes):
            return len(value)
        if not isinstance(value, list | tuple | dict | set | frozenset):
            return _SCALAR_SIZE
        known = self._sizes.get(id(value))
        if known is not None:
            return known[1]
        if len(value) > MAX_ITEMS:
            raise SecurityError(f"the template uses a list of {len(value)} items, the limit is {MAX_ITEMS}")
        measure = self._measure
        size = _SCALAR_SIZE * len(value) + sum(map(measure, value))
        if isinstance(value, Mapping):
            size += sum(map(measure, value.values()))
        self._sizes[id(value)] = (value, size)
        return size


def _peak_kib() -> int:
    """The most memory that this process has ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


_meter: ContextVar[Meter] = ContextVar("template_meter")


def current_meter() -> Meter:
    """The running rendering's. Raises `SecurityError` outside of one, so that nothing is computed while compiling."""
    meter = _meter.get(None)
    if meter is None:
        raise SecurityError("nothing is computed before the template is rendered")
    return meter


@contextmanager
def metered(meter: Meter) -> Iterator[Meter]:
    token = _meter.set(meter)
    try:
        yield meter
    finally:
        _meter.reset(token)
