"""Counts per bucket, for histograms that are filled in plain Python: the engine's, which travel to the front, and one
request's. Knows no exposition format.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

DURATION_S = tuple(0.0001 * 1.5**k for k in range(1, 36))
"""TGI's bounds of everything whose name ends in `duration`, seconds (up to about 145 s)."""

BATCH_SIZE = tuple(float(size) for size in range(1, 1025))
"""TGI's bounds of `tgi_batch_next_size`."""

TOKENS_PER_STEP = tuple(float(tokens) for tokens in range(64))
"""One bound per whole number, so that quantiles of a step's extra tokens are exact."""


class BucketCounts:
    """`counts[i]` observations were at most `bounds[i]` and above the bound before; the last ones above all bounds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def num_observations(self) -> int:
        return sum(self.counts)

    def shortened(self) -> list[int]:
        """The counts without the zeros at their end."""
        used = len(self.counts)
        while used and not self.counts[used - 1]:
            used -= 1
        return self.counts[:used]
