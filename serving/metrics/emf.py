"""The server's numbers as lines of CloudWatch's embedded metric format: one JSON object per interval, which CloudWatch Logs
turns into metrics. Knows neither who prints them nor how often.

Format: https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from serving.messages import EngineStats
from serving.metrics.engine import kv_use, saturation
from serving.metrics.exposition import Family

Unit = Literal["Count", "Count/Second", "Seconds", "Percent"]

_MAX_DIMENSION_CHARS = 250
_FIRST_TOKEN = "textgen_first_token_duration"


@dataclass(slots=True, frozen=True)
class Totals:
    """What the front counted since its start: counters by name, and the buckets of the time to the first token."""

    requests: float = 0.0
    errors: float = 0.0
    refused: float = 0.0
    first_token: Mapping[float, float] = field(default_factory=dict)
    """Observations up to each bound, seconds; the last bound is infinite."""

    @classmethod
    def of(cls, families: Iterable[Family]) -> Totals:
        by_name = {family.name: family.samples for family in families}
        failures = by_name["tgi_request_failure"]
        return cls(
            requests=sum(sample.value for sample in by_name["tgi_request_count"]),
            errors=sum(sample.value for sample in failures),
            refused=sum(sample.value for sample in failures if sample.labels.get("err") == "overloaded"),
            first_token={
                float(sample.labels["le"]): sample.value
                for sample in by_name[_FIRST_TOKEN]
                if sample.suffix == "_bucket"
            },
        )


@dataclass(slots=True, frozen=True)
class Reading:
    """All numbers at one time; `engine` is None where it did not answer."""

    at_s: float
    """Of a clock that never goes back."""
    totals: Totals
    engine: EngineStats | None


class EmbeddedMetrics:
    """Makes the line of each interval from the reading at its end; what happened before `first` is not counted."""

    def __init__(self, first: Reading, *, namespace: str, dimensions: Mapping[str, str]) -> None:
        """`dimensions` must hold one at least; values are cut to what CloudWatch takes."""
        self._last = first
        self._namespace = namespace
        self._dimensions = {name: _dimension(value) for name, value in dimensions.items()}

    def line(self, reading: Reading, *, timestamp_ms: int) -> str:
        """`timestamp_ms` counts from 1970, UTC."""
        metrics = list(_metrics(self._last, reading))
        self._last = reading
        document = {
            "_aws": {
                "Timestamp": timestamp_ms,
                "CloudWatchMetrics": [
                    {
                        "Namespace": self._namespace,
                        "Dimensions": [list(self._dimensions)],
                        "Metrics": [{"Name": name, "Unit": unit} for name, unit, _ in metrics],
                    }
                ],
            },
            **self._dimensions,
            **{name: value for name, _, value in metrics},
        }
        return msgspec.json.encode(document).decode()


def _metrics(last: Reading, now: Reading) -> Iterator[tuple[str, Unit, float]]:
    yield "Requests", "Count", now.totals.requests - last.totals.requests
    yield "Errors", "Count", now.totals.errors - last.totals.errors
    yield "Refused", "Count", now.totals.refused - last.totals.refused
    counted = {
        bound: value - last.totals.first_token.get(bound, 0.0)
        for bound, value in now.totals.first_token.items()
    }
    for share, name in ((0.5, "TimeToFirstTokenP50"), (0.99, "TimeToFirstTokenP99")):
        if (value := quantile(counted, share)) is not None:
            yield name, "Seconds", value
    if now.engine is None:
        return
    yield "QueueSize", "Count", now.engine.num_waiting
    yield "Running", "Count", now.engine.num_running
    yield "KVCacheUse", "Percent", 100.0 * kv_use(now.engine)
    yield "Saturation", "Percent", 100.0 * saturation(now.engine)
    if last.engine is None or now.at_s <= last.at_s:
        return
    interval_s = now.at_s - last.at_s
    prompt_tokens = now.engine.num_prompt_tokens - last.engine.num_prompt_tokens
    generated_tokens = now.engine.num_generated_tokens - last.engine.num_generated_tokens
    yield "InputTokensPerSecond", "Count/Second", prompt_tokens / interval_s
    yield "OutputTokensPerSecond", "Count/Second", generated_tokens / interval_s


def quantile(below: Mapping[float, float], share: float) -> float | None:
    """The value that `share` of the observations do not exceed, from the number of those up to each bound, as if they lay
    evenly between two bounds. None without an observation; the largest finite bound beyond it."""
    bounds = sorted(below)
    if not bounds or below[bounds[-1]] <= 0:
        return None
    rank, lower, num_lower = share * below[bounds[-1]], 0.0, 0.0
    for bound in bounds:
        if below[bound] >= rank and below[bound] > num_lower:
            if bound == float("inf"):
                break
            return lower + (bound - lower) * (rank - num_lower) / (below[bound] - num_lower)
        lower, num_lower = bound, below[bound]
    return lower


def _dimension(value: str) -> str:
    """CloudWatch takes ASCII without control characters, and no value that is empty or begins with a colon."""
    plain = "".join(c if c.isascii() and c.isprintable() else "?" for c in value[:_MAX_DIMENSION_CHARS])
    return plain.strip().lstrip(":") or "unknown"
