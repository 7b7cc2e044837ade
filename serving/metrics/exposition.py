"""Prometheus text format 0.0.4: families and samples to lines. Knows no metric by name.

TGI's counters carry no `_total` suffix, which the client library always adds, and it has no quantiles; so pages are
written here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client.utils import floatToGoString

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Kind = Literal["counter", "gauge", "histogram", "summary"]

QUANTILES = (0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)
"""TGI's, in all its summaries."""


@dataclass(slots=True, frozen=True)
class Sample:
    """`suffix` is what follows the family's name (`_bucket`)."""

    value: float
    labels: Mapping[str, str] = field(default_factory=dict)
    suffix: str = ""


@dataclass(slots=True, frozen=True)
class Family:
    """One name with its samples; none yet is fine."""

    name: str
    kind: Kind
    help: str
    samples: Sequence[Sample]

    def lines(self) -> Iterator[str]:
        yield f"# HELP {self.name} {self.help}\n# TYPE {self.name} {self.kind}\n"
        for sample in self.samples:
            pairs = ",".join(f'{key}="{_escape(text)}"' for key, text in sample.labels.items())
            labels = f"{{{pairs}}}" if pairs else ""
            yield f"{self.name}{sample.suffix}{labels} {floatToGoString(sample.value)}\n"


def single(name: str, kind: Kind, help_text: str, value: float) -> Family:
    return Family(name, kind, help_text, [Sample(float(value))])


def histogram_samples(
    counts: Sequence[int], total: float, bounds: Sequence[float], labels: Mapping[str, str] | None = None
) -> Iterator[Sample]:
    """Cumulative buckets, sum and count; nothing without an observation. `counts` may lack zeros at its end."""
    if not any(counts):
        return
    labels = labels or {}
    below = 0
    for index, bound in enumerate(bounds):
        below += counts[index] if index < len(counts) else 0
        yield Sample(below, {**labels, "le": floatToGoString(bound)}, "_bucket")
    yield Sample(sum(counts), {**labels, "le": "+Inf"}, "_bucket")
    yield Sample(total, labels, "_sum")
    yield Sample(sum(counts), labels, "_count")


def summary_samples(counts: Sequence[int], total: float, bounds: Sequence[float]) -> Iterator[Sample]:
    """TGI's quantiles of everything counted so far, each the bound of the bucket it falls into; sum and count."""
    num_observations = sum(counts)
    if not num_observations:
        return
    for quantile in QUANTILES:
        rank, below = max(1.0, quantile * num_observations), 0
        for index, count in enumerate(counts):
            below += count
            if below >= rank:
                yield Sample(bounds[min(index, len(bounds) - 1)], {"quantile": f"{quantile:g}"})
                break
    yield Sample(total, suffix="_sum")
    yield Sample(num_observations, suffix="_count")


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
