"""Python work that takes long and lets go of the GIL, done beside the event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import gevent

from serving.api.connection import cooperative
from serving.errors import ServingError

_Result = TypeVar("_Result")


def run_aside(work: Callable[[], _Result]) -> _Result:
    """Result of `work`, run in a real thread while other greenlets go on; without gevent, run here.

    Raises what `work` raises.
    """
    if not cooperative():
        return work()
    # gevent prints a traceback for every error in its thread pool, so ours travel as results.
    result, error = gevent.get_hub().threadpool.apply(_outcome, (work,))
    if error is not None:
        raise error
    outcome: _Result = result
    return outcome


def _outcome(work: Callable[[], _Result]) -> tuple[_Result | None, ServingError | None]:
    try:
        return work(), None
    except ServingError as error:
        return None, error
