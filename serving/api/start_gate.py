"""Keeps a burst of costly work from holding up everything else in a worker: few at a time do it, the rest wait without a
claim to the loop, so that `/ping` and running streams go between. New calls pass one gate with their start (checks,
template, tokens), long texts of `/tokenize` another.
"""

from __future__ import annotations

from gevent.lock import BoundedSemaphore

from serving.api.connection import cooperative

NUM_STARTING = 16
"""Also the number of long prompts that may be tokenized in threads before a short one has to wait for them."""

NUM_SPELLING = 2
"""Each of them makes up to a million objects in a thread, and takes its share of the interpreter from the loop."""


class StartGate:
    def __init__(self, num_places: int = NUM_STARTING) -> None:
        self._free = BoundedSemaphore(num_places)

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
