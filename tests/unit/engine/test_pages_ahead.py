from __future__ import annotations

import queue

import pytest

from serving.engine import pages_ahead
from serving.engine.pages_ahead import PagesAhead

LIMIT_S = 30.0


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> queue.Queue[object]:
    """What is done for the memory, in order."""
    log: queue.Queue[object] = queue.Queue()
    monkeypatch.setattr(pages_ahead, "load_meta_kernels", lambda: log.put("import"))
    monkeypatch.setattr(
        pages_ahead.huge_pages, "make_huge", lambda others_compute: log.put(("huge", others_compute()))
    )
    monkeypatch.setattr(
        pages_ahead.huge_pages, "grow_to", lambda share, may_go_on: log.put((share, may_go_on()))
    )
    return log


def test_twice_what_was_used_is_kept_ready_and_no_more_than_all(done: queue.Queue[object]) -> None:
    used = 0.1
    busy = False
    pages = PagesAhead(lambda: used, lambda: busy)
    pages.engine_is_idle()
    assert [done.get(timeout=LIMIT_S) for _ in range(3)] == ["import", ("huge", False), (0.2, True)]
    used = 0.3
    pages.engine_is_idle()
    assert done.get(timeout=LIMIT_S) == (0.6, True)
    used, busy = 0.7, True
    pages.engine_is_idle()
    assert done.get(timeout=LIMIT_S) == (1.0, False)


def test_nothing_happens_before_the_first_requests_are_done(done: queue.Queue[object]) -> None:
    PagesAhead(lambda: 0.5, lambda: False)
    assert done.empty()
