"""What a front worker counts itself, and the whole page. With several workers every worker's page shows the sum."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from serving.buckets import DURATION_S, BucketCounts
from serving.messages import EngineStats
from serving.metrics.engine import engine_families
from serving.metrics.exposition import Family, Kind, Sample
from serving.metrics.slots import is_shared


def _hundred_steps(upper: int) -> tuple[float, ...]:
    return tuple(upper * k / 100 for k in range(1, 101))


class ServerMetrics:
    """Counters and histograms of one front worker. Histograms over token counts take values after `bind_limits`.

    `err` of `tgi_request_failure` is one of `overloaded`, `validation`, `generation`, `incomplete`, `dropped`, `template`.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._binding = threading.Lock()
        self._declared: dict[str, tuple[Kind, str]] = {}
        self.request_count = self._counter("tgi_request_count", "Generation calls")
        self.request_success = self._counter("tgi_request_success", "Generation calls that succeeded")
        self.request_failure = self._counter("tgi_request_failure", "Generation calls that failed", "err")
        self.request_duration = self._duration("tgi_request_duration", "Whole successful call, seconds")
        self.validation_duration = self._duration(
            "tgi_request_validation_duration", "Start to queued, seconds"
        )
        self.queue_duration = self._duration(
            "tgi_request_queue_duration", "Queued to first scheduled, seconds"
        )
        self.inference_duration = self._duration(
            "tgi_request_inference_duration", "First scheduled to end, seconds"
        )
        self.time_per_token = self._duration(
            "tgi_request_mean_time_per_token_duration", "Inference time per generated token, seconds"
        )
        self.first_token_duration = self._duration(
            "textgen_first_token_duration", "Start to first token, seconds"
        )
        self.inter_token_duration = self._duration(
            "textgen_inter_token_duration", "Between two tokens of a sequence, seconds"
        )
        self.call_duration = self._duration(
            "textgen_request_duration", "Whole call, however it ended, seconds", "outcome"
        )
        self.ignored_parameters = self._counter("textgen_ignored_parameters", "Request fields nobody read")
        self.deadlines = self._counter(
            "textgen_deadline_reached", "Calls that were not complete at UNARY_DEADLINE_S", "answer"
        )
        self.hook_duration = self._duration(
            "textgen_handler_duration", "Call of a custom handler's hook with its wait, seconds", "hook"
        )
        self.hook_failures = self._counter(
            "textgen_handler_failures", "Calls of a custom handler's hook that failed", "hook"
        )
        self.http_requests = self._counter(
            "textgen_http_requests", "Answered requests, by the route's rule", "route", "method", "status"
        )
        self._declare("tgi_request_input_length", "histogram", "Prompt tokens")
        self._declare("tgi_request_generated_tokens", "histogram", "Generated tokens")
        self._declare("tgi_request_max_new_tokens", "histogram", "Permitted new tokens")
        self.input_length: Histogram | None = None
        self.generated_tokens: Histogram | None = None
        self.max_new_tokens: Histogram | None = None

    def bind_limits(self, *, max_input_tokens: int, max_total_tokens: int) -> None:
        """Make the histograms whose buckets follow the model's limits. Later calls, and calls beside it, change nothing."""
        with self._binding:
            if self.input_length is not None:
                return
            steps = _hundred_steps(max_total_tokens)
            self.generated_tokens = self._histogram("tgi_request_generated_tokens", steps)
            self.max_new_tokens = self._histogram("tgi_request_max_new_tokens", steps)
            self.input_length = self._histogram("tgi_request_input_length", _hundred_steps(max_input_tokens))

    def observe_token_gaps(self, gaps: BucketCounts) -> None:
        """Add a request's `gaps` (bounds `DURATION_S`) to the inter-token latency, bucket by bucket: one call per
        token would cost more than the token. The client library has no public way to do that."""
        histogram = self.inter_token_duration
        for bucket, count in zip(histogram._buckets, gaps.counts, strict=True):
            if count:
                bucket.inc(count)
        if gaps.total:
            histogram._sum.inc(gaps.total)

    def render(self, engine: EngineStats | None) -> bytes:
        """The page in Prometheus text format 0.0.4; `engine` None leaves the engine-owned values out."""
        families = [*self.families(), *engine_families(engine)]
        return "".join(line for family in families for line in family.lines()).encode()

    def families(self) -> Iterator[Family]:
        """Every declared family of the front, all workers together; those without a value too."""
        collected: Iterable[Metric]
        collected = MultiProcessCollector(None).collect() if is_shared() else self._registry.collect()
        found = {family.name: family for family in collected}
        for name, (kind, help_text) in self._declared.items():
            yield Family(name, kind, help_text, _samples(found[name]) if name in found else [])

    def _declare(self, name: str, kind: Kind, help_text: str) -> None:
        self._declared[name] = kind, help_text

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        self._declare(name, "counter", help_text)
        return Counter(name, help_text, labels, registry=self._registry)

    def _duration(self, name: str, help_text: str, *labels: str) -> Histogram:
        self._declare(name, "histogram", help_text)
        return self._histogram(name, DURATION_S, *labels)

    def _histogram(self, name: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, self._declared[name][1], labels, registry=self._registry, buckets=buckets)


def _samples(family: Metric) -> Sequence[Sample]:
    return [
        Sample(sample.value, sample.labels, _suffix(family, sample.name))
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]


def _suffix(family: Metric, sample_name: str) -> str:
    suffix = sample_name.removeprefix(family.name)
    return "" if family.type == "counter" else suffix
