"""Memory of weights and caches: in small pages while a model loads, in huge ones when the first requests are done. Knows
mappings, not tensors.

A product reads whole weights from memory, and with pages of 4 KiB the processor looks up an address for every 64 lines:
2 GB are read at 26 GB/s in small pages and at 30 to 33 in huge ones. To ask for huge pages at once would be simpler, and
quicker where the machine owns its memory; a virtual machine whose host takes idle memory back, large free blocks first,
waited 3 s for 2 GB of weights where small pages came in 1.3 s.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import time
import weakref

from serving import logs
from serving.memory_ahead import MemoryAhead, address, private

SIZE = 2 * 2**20
"""Of a huge page, on x86-64 and on ARM with pages of 4 KiB."""
_MADV_COLLAPSE = 25  # Linux 6.1; not in Python's mmap

logger = logging.getLogger(__name__)
_small: list[tuple[weakref.ref[mmap.mmap], int, int]] = []
"""Mappings, and where in them what was given out begins and how long it is."""
_ahead: MemoryAhead | None = None


def touch_ahead(num_bytes: int) -> None:
    """Have a thread touch so many bytes, which `zeroed` will be asked for."""
    global _ahead
    _ahead = MemoryAhead(num_bytes, alignment=SIZE)


def zeroed(num_bytes: int) -> memoryview:
    """Private memory that the system fills with zeroes when it is first touched. From `SIZE` bytes on, its address is a
    multiple of that."""
    if num_bytes < SIZE:
        return memoryview(private(max(1, num_bytes)))[:num_bytes]
    first = None if _ahead is None else _ahead.take(num_bytes)
    if _ahead is not None and first is not None:
        pages = _ahead.pages
    else:
        pages = private(num_bytes + 2 * SIZE)  # room to begin at a multiple, and for the rest of a last page
        first = -address(pages) % SIZE
    _small.append((weakref.ref(pages), first, num_bytes))
    return memoryview(pages)[first : first + num_bytes]


def make_huge() -> int:
    """Make huge pages of what was written of all that `zeroed` gave out, and return their number. A last page is made of
    half a page or more. Each takes a millisecond or several, without the interpreter's lock, and then as long a rest, in
    which others compute. What was touched ahead and is not used goes back to the system."""
    global _ahead
    if _ahead is not None:
        _ahead.give_back()
        _ahead = None
    if not _small:
        return 0
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    began_s, changed, tried = time.monotonic(), 0, 0
    while _small:
        reference, offset, num_bytes = _small.pop()
        pages = reference()
        if pages is None:
            continue
        first = address(pages) + offset
        for page in range((num_bytes + SIZE // 2) // SIZE):
            step_s = time.perf_counter()
            failed = advise(first + page * SIZE, SIZE, _MADV_COLLAPSE)
            if failed and ctypes.get_errno() == errno.EAGAIN:  # a small page was just in use
                failed = advise(first + page * SIZE, SIZE, _MADV_COLLAPSE)
            changed, tried = changed + (failed == 0), tried + 1
            time.sleep(time.perf_counter() - step_s)
        del pages
    seconds = round(time.monotonic() - began_s, 1)
    logs.event(logger, logging.INFO, "huge pages", changed=changed, tried=tried, seconds=seconds)
    return changed
