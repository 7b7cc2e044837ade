"""Whoever takes short turns is reminded of it, alone and no longer than it asked for."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

from serving.grammar.short_turns import ShortTurns, set_slice

WAIT_S = 10.0


def test_a_thread_is_reminded_while_it_is_entered_and_keeps_its_niceness() -> None:
    def work() -> tuple[int, bool, bool]:
        # Blocked, what would have it yield can be waited for.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN})
        turns = ShortTurns(os.getpriority(os.PRIO_PROCESS, 0) + 1, turn_s=0.0005)
        with turns:
            reminded = all(signal.sigtimedwait({signal.SIGRTMIN}, WAIT_S) is not None for _ in range(3))
        signal.sigtimedwait({signal.SIGRTMIN}, 0)  # the last one
        return (
            os.getpriority(os.PRIO_PROCESS, 0),
            reminded,
            signal.sigtimedwait({signal.SIGRTMIN}, 0) is None,
        )

    before = os.getpriority(os.PRIO_PROCESS, 0)
    with ThreadPoolExecutor(max_workers=1) as thread:
        assert thread.submit(work).result() == (before + 1, True, True)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_what_is_done_in_short_turns_comes_out_the_same() -> None:
    def work() -> int:
        with ShortTurns(os.getpriority(os.PRIO_PROCESS, 0), turn_s=0.0001):
            return sum(i * i for i in range(200_000))

    with ThreadPoolExecutor(max_workers=2) as threads:
        assert {each.result() for each in [threads.submit(work) for _ in range(4)]} == {
            sum(i * i for i in range(200_000))
        }


def test_a_slice_is_set_for_the_calling_thread_alone() -> None:
    niceness: list[int] = []

    def work() -> None:
        set_slice(os.getpriority(os.PRIO_PROCESS, 0) + 2)
        niceness.append(os.getpriority(os.PRIO_PROCESS, 0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert niceness == [os.getpriority(os.PRIO_PROCESS, 0) + 2]
