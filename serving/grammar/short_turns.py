"""How a thread that compiles beside compute threads takes the processor: for a millisecond or less at a time.

Compute threads work in step: while one of them has to wait, all do. Linux looks only once in a tick (1 to 10 ms) whether a
thread that does not sleep should make room, so this one makes room by itself.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import threading
import time

_SLICE_NS = 100_000  # the shortest that Linux gives: who yields loses a slice
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_SIGEV_THREAD_ID = 4


class ShortTurns:
    """While it is entered, the thread that made it yields every `turn_s`. Takes the first real-time signal. Where
    libc has no timers, the thread makes room when Linux has it so."""

    def __init__(self, niceness: int, *, turn_s: float) -> None:
        self._turn_ns = round(1e9 * turn_s)
        set_slice(niceness)
        self._libc = ctypes.CDLL(None)
        self._timer: ctypes.c_void_p | None = None
        self._event = _Event(
            signal=signal.SIGRTMIN, notify=_SIGEV_THREAD_ID, thread_id=threading.get_native_id()
        )
        self._has_timers = hasattr(self._libc, "timer_create")
        if self._has_timers:
            self._libc.signal.restype = ctypes.c_void_p
            self._libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
            # libc's own function: a handler in Python would wait for the end of a call into the compiler.
            self._libc.signal(signal.SIGRTMIN, ctypes.cast(self._libc.sched_yield, ctypes.c_void_p))

    def __enter__(self) -> None:
        if not self._has_timers:
            return
        # A timer's number, and `struct itimerspec`.
        timer, times = ctypes.c_void_p(), (ctypes.c_long * 4)(0, self._turn_ns, 0, self._turn_ns)
        if self._libc.timer_create(time.CLOCK_MONOTONIC, ctypes.byref(self._event), ctypes.byref(timer)) == 0:
            self._timer = timer
            self._libc.timer_settime(timer, 0, times, None)

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._libc.timer_delete(self._timer)
            self._timer = None


def set_slice(niceness: int) -> None:
    """The calling thread is as nice as that, and gets its share of the processor in the shortest slices there are. Linux
    before 6.12 has one slice for all."""
    attributes = _Attributes(size=ctypes.sizeof(_Attributes), nice=niceness, runtime=_SLICE_NS)
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None or ctypes.CDLL(None).syscall(ctypes.c_long(number), 0, ctypes.byref(attributes), 0):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


class _Attributes(ctypes.Structure):
    """`struct sched_attr` of sched_setattr(2), as far as it has a slice."""

    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("size", "policy")),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("runtime", "deadline", "period")),
    ]


class _Event(ctypes.Structure):
    """`struct sigevent` of sigevent(3type), for a thread; filled up to its 64 bytes."""

    _fields_ = [
        ("value", ctypes.c_uint64),
        *((name, ctypes.c_int32) for name in ("signal", "notify", "thread_id")),
        ("rest", ctypes.c_char * 44),
    ]
