"""Memory of weights and caches: in small pages while a model loads, in huge ones when the first requests are done. Knows
mappings, not tensors.

A product reads whole weights from memory, and with pages of 4 KiB the processor looks up an address for every 64 lines:
2 GB are read at 26 GB/s in small pages and at 30 to 33 in huge ones. To ask for huge pages at once would be simpler, and
quicker where the machine owns its memory; a virtual machine whose host takes idle memory back, large free blocks first,
waited 3 s for 2 GB of weights where small pages came in 1.3 s.

A cache is written bit by bit, from its beginning on. A step that is the first to write to a page waits for it, so what the
cache needs next is touched while nobody waits.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from serving import logs
from serving.memory_ahead import MemoryAhead, address, private

SIZE = 2 * 2**20
"""Of a huge page, on x86-64 and on ARM with pages of 4 KiB."""
_MADV_POPULATE_WRITE, _MADV_COLLAPSE = 23, 25  # Linux 5.14 and 6.1; not in Python's mmap

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Given:
    """What was given out of a mapping."""

    mapping: weakref.ref[mmap.mmap]
    offset: int
    num_bytes: int
    num_touched: int = 0
    """Pages, from the beginning."""


_small: list[_Given] = []
_growing: list[_Given] = []
_ahead: MemoryAhead | None = None


def touch_ahead(num_bytes: int) -> None:
    """Have a thread touch so many bytes, which `zeroed` will be asked for."""
    global _ahead
    _ahead = MemoryAhead(num_bytes, alignment=SIZE)


def zeroed(num_bytes: int, *, grows: bool = False) -> memoryview:
    """Private memory that the system fills with zeroes when it is first touched. From `SIZE` bytes on, its address is a
    multiple of that. What `grows` is written over time, from its beginning on."""
    if num_bytes < SIZE:
        return memoryview(private(max(1, num_bytes)))[:num_bytes]
    first = None if _ahead is None or grows else _ahead.take(num_bytes)
    if _ahead is not None and first is not None:
        pages = _ahead.pages
    else:
        pages = private(num_bytes + 2 * SIZE)  # room to begin at a multiple, and for the rest of a last page
        first = -address(pages) % SIZE
    (_growing if grows else _small).append(_Given(weakref.ref(pages), first, num_bytes))
    return memoryview(pages)[first : first + num_bytes]


def make_huge(*, others_compute: Callable[[], bool] = lambda: True) -> int:
    """Make huge pages of what was written of all that `zeroed` gave out, and return their number. A last page is made of
    half a page or more. Each takes a millisecond or several, without the interpreter's lock, and then as long a rest while
    others compute. What was touched ahead and is not used goes back to the system."""
    global _ahead
    if _ahead is not None:
        _ahead.give_back()
        _ahead = None
    if not _small and not _growing:
        return 0
    advise, began_s, changed, tried = _madvise(), time.monotonic(), 0, 0
    while _small:
        given = _small.pop()
        if (pages := given.mapping()) is None:
            continue
        first = address(pages) + given.offset
        for page in range((given.num_bytes + SIZE // 2) // SIZE):
            changed, tried = changed + _collapse(advise, first + page * SIZE, others_compute), tried + 1
        del pages
    for given in _growing:
        if (pages := given.mapping()) is None:
            continue
        first = address(pages) + given.offset
        advise(first, given.num_bytes // SIZE * SIZE, mmap.MADV_HUGEPAGE)  # what will be written
        for page in range(given.num_bytes // SIZE):
            tried += 1
            if not _collapse(advise, first + page * SIZE, others_compute):
                break  # here nothing was written so far
            changed += 1
        del pages
    seconds = round(time.monotonic() - began_s, 1)
    logs.event(logger, logging.INFO, "huge pages", changed=changed, tried=tried, seconds=seconds)
    return changed


def grow_to(share: float, *, may_go_on: Callable[[], bool]) -> int:
    """Touch of what grows that share, 0 to 1, from the beginning on, and return how many pages were new. All of it grows at
    one pace. Asks before each page whether it may go on; a system that cannot, or has no memory left, is not asked again."""
    advise, num_new = _madvise(), 0
    _growing[:] = [given for given in _growing if given.mapping() is not None]
    wanted = [min(1.0, share) * given.num_bytes // SIZE for given in _growing]
    for page in range(int(max(wanted, default=0))):
        for given, count in zip(_growing, wanted, strict=True):
            pages = given.mapping()
            if pages is None or not given.num_touched <= page < count:
                continue
            if not may_go_on():
                return num_new
            if advise(address(pages) + given.offset + page * SIZE, SIZE, _MADV_POPULATE_WRITE):
                _growing.clear()
                return num_new
            given.num_touched, num_new = page + 1, num_new + 1
            del pages
    return num_new


def _madvise() -> Callable[[int, int, int], int]:
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return advise


def _collapse(advise: Callable[[int, int, int], int], start: int, others_compute: Callable[[], bool]) -> bool:
    step_s = time.perf_counter()
    failed = advise(start, SIZE, _MADV_COLLAPSE)
    if failed and ctypes.get_errno() == errno.EAGAIN:  # a small page was just in use
        failed = advise(start, SIZE, _MADV_COLLAPSE)
    if others_compute():
        time.sleep(time.perf_counter() - step_s)
    return failed == 0
