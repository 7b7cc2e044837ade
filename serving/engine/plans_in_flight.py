"""What was planned and whose result has not arrived. Knows requests and counters, neither rows nor blocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from serving.engine.request import Request
from serving.engine.step_cost import StepLoad


class PlansInFlight:
    """Steps run in the order of their plans, and their results arrive in that order."""

    def __init__(self) -> None:
        self._plans: deque[tuple[dict[Request, int], StepLoad | None]] = deque()

    def add(self, requests: Iterable[Request], load: StepLoad | None) -> None:
        """A step that computes up to the `num_computed_tokens` which these requests have now; `load`: all of it, if somebody
        wants to know what it takes."""
        self._plans.append(({request: request.num_computed_tokens for request in requests}, load))

    def take(self) -> tuple[dict[Request, int], StepLoad | None]:
        """Of the oldest plan, the requests that nobody made it forget, with the tokens that they have in the cache now; and
        its load."""
        return self._plans.popleft()

    def forget(self, request: Request) -> None:
        """It ended or was preempted: what the steps in flight compute for it is dropped."""
        for plan, _ in self._plans:
            plan.pop(request, None)
        request.num_pending_tokens = 0
