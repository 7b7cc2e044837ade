from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import huge_pages
from serving.huge_pages import SIZE, grow_to, make_huge, zeroed

PAGE = os.sysconf("SC_PAGE_SIZE")
_RELEASE = tuple(int(part) for part in os.uname().release.split(".")[:2])
_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
can_make_huge = pytest.mark.skipif(
    _RELEASE < (6, 1) or not _MODE.exists() or "[madvise]" not in _MODE.read_text(),
    reason="needs MADV_COLLAPSE (Linux 6.1), and a system that makes huge pages for those who ask",
)


@pytest.fixture(autouse=True)
def nothing_else_is_small() -> Iterator[None]:
    before = list(huge_pages._small), list(huge_pages._growing)
    huge_pages._small.clear()
    huge_pages._growing.clear()
    yield
    huge_pages._small[:], huge_pages._growing[:] = before


def _address(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _huge_bytes() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("AnonHugePages:"):
            return 1024 * int(line.split()[1])
    raise AssertionError("the system does not count huge pages")


def _resident_pages(memory: memoryview) -> int:
    states = (ctypes.c_ubyte * (len(memory) // PAGE))()
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    assert mincore(_address(memory), len(memory), states) == 0
    return sum(state & 1 for state in states)


def _write(memory: memoryview) -> None:
    for start in range(0, len(memory), PAGE):
        memory[start] = start // PAGE % 251


def _is_as_written(memory: memoryview) -> bool:
    return all(memory[start] == start // PAGE % 251 for start in range(0, len(memory), PAGE))


def _grow_to(share: float) -> int:
    return grow_to(share, may_go_on=lambda: True)


@pytest.mark.parametrize("num_bytes", [0, 1, 4096, SIZE - 1, SIZE, SIZE + 1, 5 * SIZE + 4096])
def test_zeroes_of_the_size_that_was_asked_for(num_bytes: int) -> None:
    memory = zeroed(num_bytes)
    assert len(memory) == num_bytes and not any(memory)
    if num_bytes >= SIZE:
        assert _address(memory) % SIZE == 0


@can_make_huge
def test_what_was_written_becomes_huge_and_keeps_its_bytes() -> None:
    large, unwritten, small = zeroed(6 * SIZE), zeroed(4 * SIZE), zeroed(SIZE // 2)
    _write(large)
    _write(small)
    before = _huge_bytes()
    changed = make_huge()
    assert changed == 6 and _huge_bytes() - before == 6 * SIZE
    assert _is_as_written(large) and _is_as_written(small)
    assert _resident_pages(unwritten) == 0, "what nobody has written takes no memory"
    assert make_huge() == 0, "once"
    assert not any(unwritten)


@can_make_huge
@pytest.mark.parametrize(("rest", "expected"), [(SIZE // 2 - PAGE, 2), (SIZE // 2, 3), (SIZE - PAGE, 3)])
def test_a_last_page_is_worth_it_from_one_half_on(rest: int, expected: int) -> None:
    memory = zeroed(2 * SIZE + rest)
    _write(memory)
    assert make_huge() == expected
    assert _is_as_written(memory)


def test_memory_that_is_gone_is_passed_over() -> None:
    memory = zeroed(4 * SIZE)
    _write(memory)
    del memory
    assert make_huge() == 0


def test_a_kernel_that_refuses_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = zeroed(3 * SIZE)
    _write(memory)
    monkeypatch.setattr(huge_pages, "_MADV_COLLAPSE", 10_000)
    assert make_huge() == 0 and _is_as_written(memory)


@can_make_huge
def test_what_grows_is_touched_ahead_in_huge_pages_and_keeps_its_bytes() -> None:
    keys, values, other = zeroed(8 * SIZE, grows=True), zeroed(4 * SIZE + PAGE, grows=True), zeroed(4 * SIZE)
    keys[3], values[5] = 7, 9  # a first page of each is in use
    before = _huge_bytes()
    assert make_huge() == 2 and _huge_bytes() - before == 2 * SIZE
    assert _grow_to(0.25) == 2 + 1
    assert _resident_pages(keys) == 2 * SIZE // PAGE and _resident_pages(values) == SIZE // PAGE
    assert _huge_bytes() - before == 3 * SIZE
    keys[3 * SIZE] = 11
    assert _grow_to(0.25) == _grow_to(0.1) == 0
    assert _grow_to(1.0) == 6 + 3 and _grow_to(2.0) == 0
    assert _huge_bytes() - before == 12 * SIZE, "a part of a page at the end stays as it is"
    assert (keys[3], keys[3 * SIZE], values[5]) == (7, 11, 9) and not any(keys[4:SIZE])
    assert _resident_pages(other) == 0


def test_a_kernel_that_cannot_touch_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = zeroed(4 * SIZE, grows=True)
    memory[0] = 3
    monkeypatch.setattr(huge_pages, "_MADV_POPULATE_WRITE", 10_000)
    assert _grow_to(1.0) == 0 and not huge_pages._growing
    assert memory[0] == 3


def test_what_grew_and_is_gone_is_passed_over() -> None:
    memory = zeroed(4 * SIZE, grows=True)
    del memory
    assert make_huge() == 0 and _grow_to(1.0) == 0


@can_make_huge
def test_what_grows_waits_while_others_work() -> None:
    memory = zeroed(8 * SIZE, grows=True)
    answers = [True, True, True, False]
    assert grow_to(1.0, may_go_on=lambda: answers.pop(0)) == 3
    assert _resident_pages(memory) == 3 * SIZE // PAGE and not answers
    assert _grow_to(0.5) == 1


@can_make_huge
def test_it_rests_while_others_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = zeroed(4 * SIZE)
    _write(memory)
    rests: list[float] = []
    monkeypatch.setattr(huge_pages.time, "sleep", rests.append)
    answers = [True, False, True, False]
    assert make_huge(others_compute=lambda: answers.pop(0)) == 4
    assert len(rests) == 2 and min(rests) > 0.0
