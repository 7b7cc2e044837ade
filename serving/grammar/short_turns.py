"""How a process that compiles beside compute threads takes the processor: for a fraction of a millisecond at a time.

Compute threads work in step: while one of them has to wait, all do. Linux looks only once in a tick (1 to 10 ms) whether a
thread that does not sleep should make room, so this one makes room by itself.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal

_TURN_S = 0.0003
_SLICE_NS = 100_000  # the shortest that Linux gives: who yields loses a slice
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}


class ShortTurns:
    """While it is entered, the calling process yields after every turn. It must have one thread. Takes SIGALRM."""

    def __init__(self, niceness: int) -> None:
        set_slice(niceness)
        libc = ctypes.CDLL(None)
        libc.signal.restype = ctypes.c_void_p
        libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        # libc's own function: a handler in Python would wait for the end of a call into the compiler.
        libc.signal(signal.SIGALRM, ctypes.cast(libc.sched_yield, ctypes.c_void_p))

    def __enter__(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, _TURN_S, _TURN_S)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


def set_slice(niceness: int) -> None:
    """The calling thread is as nice as that, and gets its share of the processor in the shortest slices there are. Linux
    before 6.12 has one slice for all."""
    attributes = _Attributes(size=ctypes.sizeof(_Attributes), nice=niceness, runtime=_SLICE_NS)
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None or ctypes.CDLL(None).syscall(ctypes.c_long(number), 0, ctypes.byref(attributes), 0):
        os.setpriority(os.PRIO_PROCESS, 0, niceness)


class _Attributes(ctypes.Structure):
    """`struct sched_attr` of sched_setattr(2), as far as it has a slice."""

    _fields_ = [
        *((name, ctypes.c_uint32) for name in ("size", "policy")),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("runtime", "deadline", "period")),
    ]
