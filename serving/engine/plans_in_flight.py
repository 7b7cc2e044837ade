"""What was planned and whose result has not arrived. Knows requests and counters, neither rows nor blocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from serving.engine.request import Request


class PlansInFlight:
    """Steps run in the order of their plans, and their results arrive in that order."""

    def __init__(self) -> None:
        self._plans: deque[dict[Request, int]] = deque()

    def add(self, requests: Iterable[Request]) -> None:
        """A step that computes up to the `num_computed_tokens` which these requests have now."""
        self._plans.append({request: request.num_computed_tokens for request in requests})

    def take(self) -> dict[Request, int]:
        """Of the oldest plan, the requests that nobody made it forget, with the tokens that they have in the cache now."""
        return self._plans.popleft()

    def forget(self, request: Request) -> None:
        """It ended or was preempted: what the steps in flight compute for it is dropped."""
        for plan in self._plans:
            plan.pop(request, None)
        request.num_pending_tokens = 0
