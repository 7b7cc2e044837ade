"""From the times of requests to the numbers of a record, and from repeats to a median and a spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.peers.contracts import Measured, RequestTimes, Workload

Metrics = dict[str, float]
Measure = Callable[[Workload, Measured], Metrics]


@dataclass(slots=True, frozen=True)
class Metric:
    """How a number of a record is shown and compared."""

    title: str
    more_is_better: bool
    unit: str = ""
    scale: float = 1.0  # shown value per stored value


METRICS = {
    "tokens_per_s": Metric("output tokens per second", True, "tok/s"),
    "requests_per_s": Metric("requests per second", True, "/s"),
    "goodput_per_s": Metric("requests per second within the limits", True, "/s"),
    "first_token_p50_s": Metric("first token, median", False, "ms", 1e3),
    "first_token_p99_s": Metric("first token, p99", False, "ms", 1e3),
    "per_token_p50_s": Metric("one stream per token, median", False, "ms", 1e3),
    "between_p50_s": Metric("between tokens, median", False, "ms", 1e3),
    "between_p99_s": Metric("between tokens, p99", False, "ms", 1e3),
    "between_max_s": Metric("between tokens, longest", False, "ms", 1e3),
    "long_first_token_s": Metric("first token of the long prompt", False, "s"),
    "refused": Metric("refused", False),
    "ready_s": Metric("process start until it takes requests", False, "s"),
    "start_s": Metric("process start to first token", False, "s"),
    "tokens_per_core_s": Metric("tokens per second of a core of the front", True, "tok/s"),
    "ping_p50_s": Metric("/ping, median", False, "ms", 1e3),
    "ping_max_s": Metric("/ping, longest", False, "ms", 1e3),
}


@dataclass(slots=True, frozen=True)
class Summary:
    """Repeats of one number. `spread`: largest minus smallest, over the median."""

    median: float
    spread: float
    count: int


def summarize(values: Sequence[float]) -> Summary | None:
    """None for no values."""
    if not values:
        return None
    median = statistics.median(values)
    return Summary(median, (max(values) - min(values)) / median if median else 0.0, len(values))


def ratio(metric: str, ours: float, theirs: float) -> float:
    """Above 1, ours is better."""
    over, under = (ours, theirs) if METRICS[metric].more_is_better else (theirs, ours)
    return over / under if under else math.inf


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not below `share` of all. Raises `ValueError` for no values."""
    if not values:
        raise ValueError("there is no percentile of nothing")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def gaps_s(times: RequestTimes) -> list[float]:
    return [after - before for before, after in pairwise(times.token_s)]


def steady(workload: Workload, measured: Measured) -> Metrics:
    """A closed loop in which every request ends as asked; times count from when a request was sent."""
    done = measured.requests
    numbers = {
        "tokens_per_s": measured.tokens_per_s,
        "requests_per_s": len(done) / measured.wall_s,
        "per_token_p50_s": statistics.median((one.end_s - one.start_s) / one.num_tokens for one in done),
    }
    first = [one.first_token_s - one.start_s for one in done if one.first_token_s is not None]
    if first:
        numbers |= {
            "first_token_p50_s": statistics.median(first),
            "first_token_p99_s": percentile(first, 0.99),
        }
    return numbers | _between([gap for one in done for gap in gaps_s(one)])


def beside_a_long_prompt(workload: Workload, measured: Measured) -> Metrics:
    """Gaps of the short streams once all of them run; with a long prompt, those until its first token.

    The long prompt is the last request, if there is one that has more than 1,000 tokens.
    """
    pairs = list(zip(workload.requests, measured.requests, strict=True))
    short = [times for asked, times in pairs if len(asked.prompt_ids) <= 1000]
    long = [times for asked, times in pairs if len(asked.prompt_ids) > 1000]
    from_s = max(times.token_s[0] for times in short)
    until_s = min(times.token_s[-1] for times in short)
    numbers: Metrics = {}
    if long:
        from_s = long[0].start_s
        if long[0].first_token_s is not None:
            until_s = min(until_s, long[0].first_token_s)
            numbers["long_first_token_s"] = long[0].first_token_s - long[0].start_s
    inside = [
        after - before
        for times in short
        for before, after in pairwise(times.token_s)
        if before >= from_s and after <= until_s
    ]
    if not inside:
        raise ValueError("no stream ran beside the long prompt; ask for more --new-tokens")
    return numbers | _between(inside) | {"tokens_per_s": len(inside) / (until_s - from_s)}


@dataclass(slots=True, frozen=True)
class Limits:
    """What a request must keep to count as good: seconds to its first token, and between two tokens on average."""

    first_token_s: float
    between_s: float

    def met(self, arrival_s: float, times: RequestTimes) -> bool:
        if times.error or times.first_token_s is None:
            return False
        mean_s = (times.end_s - times.first_token_s) / max(1, times.num_tokens - 1)
        return times.first_token_s - arrival_s <= self.first_token_s and mean_s <= self.between_s


def open_loop(limits: Limits) -> Measure:
    """Times count from when a request was due, so that a client that falls behind hides nothing."""

    def measure(workload: Workload, measured: Measured) -> Metrics:
        pairs = list(zip(workload.requests, measured.requests, strict=True))
        served = [(asked, times) for asked, times in pairs if not times.error]
        good = sum(limits.met(asked.arrival_s, times) for asked, times in pairs)
        # The time over which requests came; what drains after it is no offer.
        window_s = workload.requests[-1].arrival_s * len(pairs) / max(1, len(pairs) - 1) or measured.wall_s
        numbers = {
            "tokens_per_s": measured.tokens_per_s,
            "goodput_per_s": good / window_s,
            "refused": float(len(pairs) - len(served)),
        }
        first = [
            times.first_token_s - asked.arrival_s
            for asked, times in served
            if times.first_token_s is not None
        ]
        if first:
            numbers["first_token_p50_s"] = statistics.median(first)
            numbers["first_token_p99_s"] = percentile(first, 0.99)
        return numbers | _between([gap for _, times in served for gap in gaps_s(times)])

    return measure


def _between(gaps: Sequence[float]) -> Metrics:
    if not gaps:
        return {}
    return {
        "between_p50_s": statistics.median(gaps),
        "between_p99_s": percentile(gaps, 0.99),
        "between_max_s": max(gaps),
    }
