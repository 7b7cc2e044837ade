from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from serving import huge_pages, memory_ahead
from serving.huge_pages import SIZE, make_huge, touch_ahead, zeroed
from serving.memory_ahead import MemoryAhead, address

PAGE = os.sysconf("SC_PAGE_SIZE")


def _resident(pages: Any, offset: int, num_bytes: int) -> int:
    """Bytes of a part of a mapping that are in memory."""
    states = (ctypes.c_ubyte * (num_bytes // PAGE))()
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    assert mincore(address(pages) + offset, num_bytes, states) == 0
    return PAGE * sum(state & 1 for state in states)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_ahead, "_PIECE", SIZE)


@pytest.fixture
def nothing_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_ahead", None)
    monkeypatch.setattr(huge_pages, "_small", [])


def _has_touched_all(ahead: MemoryAhead) -> None:
    ahead._thread.join(30.0)
    assert not ahead._thread.is_alive()


@pytest.mark.usefixtures("small_pieces")
def test_memory_is_there_before_anyone_asks() -> None:
    ahead = MemoryAhead(5 * SIZE + PAGE, alignment=SIZE)
    _has_touched_all(ahead)
    first = ahead.take(2 * SIZE)
    assert first is not None and (address(ahead.pages) + first) % SIZE == 0
    assert ahead.num_touched == 5 * SIZE + PAGE
    assert _resident(ahead.pages, first, 5 * SIZE + PAGE) == 5 * SIZE + PAGE


def test_a_sandbox_that_forbids_priorities(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(memory_ahead.os, "setpriority", refuse)
    ahead = MemoryAhead(SIZE, alignment=SIZE)
    _has_touched_all(ahead)
    assert ahead.num_touched == SIZE


def test_parts_are_aligned_and_do_not_overlap() -> None:
    ahead = MemoryAhead(6 * SIZE, alignment=SIZE)
    taken = [ahead.take(num_bytes) for num_bytes in (1, SIZE + 1, SIZE)]
    assert None not in taken
    first = taken[0] or 0
    assert [(offset or 0) - first for offset in taken] == [0, SIZE, 3 * SIZE]
    assert ahead.take(2 * SIZE + 1) is None, "more than is left"
    assert ahead.take(2 * SIZE) == first + 4 * SIZE
    assert ahead.take(1) is None


@pytest.mark.usefixtures("small_pieces")
def test_who_comes_early_waits_for_one_piece_and_its_bytes_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written after `take` must not become zero again."""
    begun, go_on = threading.Event(), threading.Event()
    memset: Callable[[int, int, int], int] = ctypes.memset

    def slow(start: int, value: int, size: int) -> int:
        begun.set()
        assert go_on.wait(30.0)
        return memset(start, value, size)

    monkeypatch.setattr(memory_ahead.ctypes, "memset", slow)
    ahead = MemoryAhead(8 * SIZE, alignment=SIZE)
    assert begun.wait(30.0)
    threading.Timer(0.05, go_on.set).start()
    first = ahead.take(8 * SIZE)
    assert first is not None and go_on.is_set() and ahead.num_touched == SIZE
    memory = memoryview(ahead.pages)[first : first + 8 * SIZE]
    memory[:] = b"\x07" * (8 * SIZE)
    assert not ahead._thread.is_alive()
    assert memory.tobytes() == b"\x07" * (8 * SIZE)


@pytest.mark.usefixtures("small_pieces")
def test_what_nobody_took_goes_back() -> None:
    ahead = MemoryAhead(6 * SIZE, alignment=SIZE)
    _has_touched_all(ahead)
    first = ahead.take(SIZE + PAGE)
    assert first is not None
    ahead.pages[first] = 7
    ahead.give_back()
    assert _resident(ahead.pages, first, 2 * SIZE) == 2 * SIZE and ahead.pages[first] == 7
    assert _resident(ahead.pages, first + 2 * SIZE, 4 * SIZE) == 0
    assert ahead.take(1) is None
    ahead.give_back()


@pytest.mark.usefixtures("nothing_before", "small_pieces")
def test_zeroes_come_from_what_was_touched_and_then_from_the_system() -> None:
    touch_ahead(4 * SIZE)
    ahead = huge_pages._ahead
    assert ahead is not None
    tiny, first, second, third = zeroed(4096), zeroed(SIZE), zeroed(2 * SIZE + 5), zeroed(SIZE)
    start, end = address(ahead.pages), address(ahead.pages) + len(ahead.pages)
    at = [ctypes.addressof(ctypes.c_char.from_buffer(memory)) for memory in (tiny, first, second, third)]
    assert [start <= each < end for each in at] == [False, True, True, False]
    assert at[2] == at[1] + SIZE
    for memory in (first, second, third):
        assert not any(memory)
        memory[:] = b"\x05" * len(memory)
    make_huge()
    assert huge_pages._ahead is None
    assert all(memory.tobytes() == b"\x05" * len(memory) for memory in (first, second, third))


@pytest.mark.usefixtures("nothing_before")
def test_start_without_a_use_for_it() -> None:
    touch_ahead(SIZE)
    assert make_huge() == 0 and huge_pages._ahead is None
