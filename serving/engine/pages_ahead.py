"""What an engine does for its memory while it has nothing else to do. Knows when, not how."""

from __future__ import annotations

import threading
from collections.abc import Callable

from serving import huge_pages
from serving.torch_import import load_meta_kernels

_AHEAD = 2.0
"""Of the cache, so many times the part that was used so far is kept ready. A busy engine goes through all of it in a
minute or several, and one that is asked now and then does not take what it will never need."""


class PagesAhead:
    """Works in a thread, which starts when the first requests are done: before that, it would keep them waiting. What the
    cache needs next is only touched while there are no others."""

    def __init__(self, share_ever_used: Callable[[], float], has_work: Callable[[], bool]) -> None:
        """`share_ever_used` of the cache, which is written from its beginning on. Both are called in the thread."""
        self._share_ever_used = share_ever_used
        self._has_work = has_work
        self._idle = threading.Event()
        self._started = False

    def engine_is_idle(self) -> None:
        """The last request is done. Returns at once."""
        if not self._started:
            self._started = True
            # A process that ends waits for the import, as a thread that is cut off inside of torch may abort it, and does
            # not wait for the pages.
            importing = threading.Thread(target=load_meta_kernels, name="import torch")
            importing.start()
            threading.Thread(target=self._work, args=[importing], name="huge pages", daemon=True).start()
        self._idle.set()

    def _work(self, importing: threading.Thread) -> None:
        importing.join()
        huge_pages.make_huge(others_compute=self._has_work)
        while True:
            self._idle.wait()
            self._idle.clear()
            share = min(1.0, _AHEAD * self._share_ever_used())
            huge_pages.grow_to(share, may_go_on=lambda: not self._has_work())
