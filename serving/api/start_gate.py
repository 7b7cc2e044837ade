"""Keeps a burst of new calls from holding up everything else in a worker: few at a time go through their costly start
(checks, template, tokens), the rest wait without a claim to the loop, so that `/ping` and running streams go between.
"""

from __future__ import annotations

from gevent.lock import BoundedSemaphore

from serving.api.connection import cooperative

_NUM_STARTING = 16
"""Also the number of long prompts that may be tokenized in threads before a short one has to wait for them."""


class StartGate:
    def __init__(self) -> None:
        self._free = BoundedSemaphore(_NUM_STARTING)

    def enter(self) -> StartPass:
        """Wait for a place. The pass must be given back; more than once does no harm."""
        if not cooperative():
            return StartPass(None)
        self._free.acquire()
        return StartPass(self._free)


class StartPass:
    __slots__ = ("_held",)

    def __init__(self, held: BoundedSemaphore | None) -> None:
        self._held = held

    def give_back(self) -> None:
        if self._held is not None:
            self._held.release()
            self._held = None
