"""What one more prompt token costs in time, learned from finished steps. Plain numbers: no clock, no tensors."""

from __future__ import annotations


class StepCost:
    """Turns a time budget into a token budget.

    Steps that compute many tokens are dominated by a per-token cost that grows with the context attended to, so the last
    steps say more than the first: an exponential average of seconds per token, over steps of at least `min_tokens`.
    """

    def __init__(self, *, min_tokens: int = 32, weight: float = 0.3) -> None:
        self._min_tokens = min_tokens
        self._weight = weight
        self._seconds_per_token: float | None = None

    @property
    def seconds_per_token(self) -> float | None:
        """None until a step of at least `min_tokens` was seen."""
        return self._seconds_per_token

    def observe(self, num_tokens: int, seconds: float) -> None:
        if num_tokens < self._min_tokens or seconds <= 0.0:
            return
        sample = seconds / num_tokens
        if self._seconds_per_token is None:
            self._seconds_per_token = sample
        else:
            self._seconds_per_token += self._weight * (sample - self._seconds_per_token)

    def max_tokens(self, budget_s: float) -> int | None:
        """Tokens that fit into `budget_s`, at least `min_tokens`; None while nothing is known."""
        if self._seconds_per_token is None:
            return None
        return max(self._min_tokens, int(budget_s / self._seconds_per_token))
