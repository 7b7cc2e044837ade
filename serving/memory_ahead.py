"""Memory that is touched before its owner is there to use it. Knows pages, not what they are for.

A system hands memory out page by page as it is written: 2 GB take 0.6 s here, and 2 to 5 s in a virtual machine whose host
has taken idle memory back. An engine imports torch for as long, on one core, so a thread does the touching meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading

_PIECE = 256 * 2**20
"""Touched at a time, without the interpreter's lock. Small pieces slowed the import: a thread that has to wait for its core
holds the lock meanwhile. Whoever comes for the memory waits for the end of a piece, which would be needed next."""
_NICE = 10
"""The import and the front, which starts at the same time, come first."""


class MemoryAhead:
    """`num_bytes` of private memory full of zeroes, which begins at a multiple of `alignment` and is touched in order until
    somebody takes of it. For one thread."""

    def __init__(self, num_bytes: int, *, alignment: int) -> None:
        self.pages = private(num_bytes + 2 * alignment)
        self._alignment = alignment
        self._first = -address(self.pages) % alignment
        self._num_bytes = num_bytes
        self._num_taken = 0
        self.num_touched = 0
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._touch, name="memory ahead", daemon=True)
        self._thread.start()

    def _touch(self) -> None:
        with contextlib.suppress(OSError):  # a sandbox forbids it: the import has to share
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        start = address(self.pages) + self._first
        while self.num_touched < self._num_bytes and not self._wanted.is_set():
            size = min(_PIECE, self._num_bytes - self.num_touched)
            ctypes.memset(start + self.num_touched, 0, size)
            self.num_touched += size

    def take(self, num_bytes: int) -> int | None:
        """Where the next `num_bytes` begin in `pages`, at an aligned address; None if fewer are left. Ends the touching."""
        self._wanted.set()
        self._thread.join()
        if num_bytes > self._num_bytes - self._num_taken:
            return None
        offset = self._first + self._num_taken
        self._num_taken += -(-num_bytes // self._alignment) * self._alignment
        return offset

    def give_back(self) -> None:
        """Let the system have what nobody took; nobody can take any more."""
        self._wanted.set()
        self._thread.join()
        left = self._num_bytes - self._num_taken
        if left > 0:
            self.pages.madvise(mmap.MADV_DONTNEED, self._first + self._num_taken, left)
        self._num_taken = self._num_bytes


def private(num_bytes: int) -> mmap.mmap:
    """A mapping that the system fills with zeroes when it is first touched."""
    return mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def address(pages: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(pages))
