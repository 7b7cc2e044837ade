"""Prometheus metrics of the front: TGI's names and buckets, and the text page. Knows nothing of HTTP or of
the engine's insides; engine-owned numbers come in as `EngineStats`.

TGI's counters carry no `_total` suffix, which `prometheus_client` always adds, so the page is written here:
families are collected by the client library and the suffix is taken off the sample names. With several
gunicorn workers the library's multiprocess files are used (PROMETHEUS_MULTIPROC_DIR must be set before this
module is imported). Files are named after a *slot* that each worker holds by a file lock, not after its pid:
a worker that takes over a dead one's slot continues its counters, so files neither pile up nor lose counts.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator

import prometheus_client.values as prometheus_values
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.utils import floatToGoString

from serving.messages import EngineStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_DURATION_BUCKETS = tuple(0.0001 * 1.5**k for k in range(1, 36))

_held_slots: list[int] = []


def is_shared() -> bool:
    """True when values are kept in files that all workers of this server add up."""
    return bool(getattr(prometheus_values.ValueClass, "_multiprocess", False))


def claim_slot(directory: str) -> str:
    """Take the lowest free worker slot of `directory` for the life of this process and count under its name.

    Does nothing but return the slot when values are not shared. Must be called before `ServerMetrics` is
    made.
    """
    number = 0
    while True:
        descriptor = os.open(
            os.path.join(directory, f"metrics-slot-{number}.lock"), os.O_RDWR | os.O_CREAT, 0o600
        )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            number += 1
            continue
        _held_slots.append(descriptor)
        break
    slot = f"slot{number}"
    if is_shared():
        prometheus_values.ValueClass = prometheus_values.MultiProcessValue(process_identifier=lambda: slot)
    return slot


def _hundred_steps(upper: int) -> tuple[float, ...]:
    return tuple(upper * k / 100 for k in range(1, 101))


class ServerMetrics:
    """Counters and histograms of one front worker. Histograms over token counts appear with `bind_limits`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.request_count = self._counter("tgi_request_count", "Generation calls")
        self.request_success = self._counter("tgi_request_success", "Generations that finished")
        self.request_failure = self._counter("tgi_request_failure", "Generations that did not finish", "err")
        self.request_duration = self._duration("tgi_request_duration", "Whole request, seconds")
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
        self.ignored_parameters = self._counter("textgen_ignored_parameters", "Request fields nobody read")
        self.input_length: Histogram | None = None
        self.generated_tokens: Histogram | None = None
        self.max_new_tokens: Histogram | None = None

    def bind_limits(self, *, max_input_tokens: int, max_total_tokens: int) -> None:
        """Make the histograms whose buckets follow the model's limits. Later calls change nothing."""
        if self.input_length is not None:
            return
        steps = _hundred_steps(max_total_tokens)
        self.generated_tokens = self._histogram("tgi_request_generated_tokens", "Generated tokens", steps)
        self.max_new_tokens = self._histogram("tgi_request_max_new_tokens", "Permitted new tokens", steps)
        self.input_length = self._histogram(
            "tgi_request_input_length", "Prompt tokens", _hundred_steps(max_input_tokens)
        )

    def render(self, engine: EngineStats | None) -> bytes:
        """The page in Prometheus text format 0.0.4; `engine` None leaves the engine-owned families out."""
        lines: list[str] = []
        for family in self._families():
            lines.extend(_family_lines(family.name, family.type, family.documentation, _samples(family)))
        lines.extend(_engine_lines(engine))
        return "".join(lines).encode()

    def _families(self) -> Iterable[Metric]:
        if is_shared():
            shared: Iterable[Metric] = MultiProcessCollector(None).collect()
            return shared
        return self._registry.collect()

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(name, documentation, labels, registry=self._registry)

    def _duration(self, name: str, documentation: str) -> Histogram:
        return self._histogram(name, documentation, _DURATION_BUCKETS)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, documentation, registry=self._registry, buckets=buckets)


Sample = tuple[str, dict[str, str], float]


def _samples(family: Metric) -> Iterator[Sample]:
    for sample in family.samples:
        if sample.name.endswith("_created"):
            continue
        name = sample.name.removesuffix("_total") if family.type == "counter" else sample.name
        yield name, sample.labels, sample.value


def _family_lines(name: str, kind: str, documentation: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP {name} {documentation}\n# TYPE {name} {kind}\n"
    for sample_name, labels, value in samples:
        pairs = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
        yield (
            f"{sample_name}{{{pairs}}} {floatToGoString(value)}\n"
            if pairs
            else (f"{sample_name} {floatToGoString(value)}\n")
        )


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _engine_lines(stats: EngineStats | None) -> Iterator[str]:
    yield from _single(
        "textgen_engine_up", "gauge", "1 when the engine answered for this page", float(stats is not None)
    )
    if stats is None:
        return
    for name, kind, documentation, value in (
        ("tgi_queue_size", "gauge", "Requests that wait", stats.num_waiting),
        ("tgi_batch_current_size", "gauge", "Sequences that run", stats.num_running),
        ("textgen_waiting_tokens", "gauge", "Prompt tokens that wait", stats.num_waiting_tokens),
        ("textgen_kv_blocks", "gauge", "KV blocks in all", stats.num_blocks),
        ("textgen_kv_blocks_free", "gauge", "KV blocks that are free or evictable", stats.num_free_blocks),
        ("textgen_engine_steps", "counter", "Engine steps", stats.num_steps),
        ("textgen_sequences", "counter", "Sequences admitted", stats.num_sequences),
        ("textgen_sequences_finished", "counter", "Sequences that finished", stats.num_finished),
        ("textgen_sequences_failed", "counter", "Sequences that failed", stats.num_failed),
        ("textgen_sequences_aborted", "counter", "Sequences that were aborted", stats.num_aborted),
        (
            "textgen_preemptions",
            "counter",
            "Sequences preempted for lack of KV blocks",
            stats.num_preemptions,
        ),
        ("textgen_prompt_tokens", "counter", "Prompt tokens of admitted requests", stats.num_prompt_tokens),
        ("textgen_generated_tokens", "counter", "Tokens generated", stats.num_generated_tokens),
        (
            "textgen_cached_tokens",
            "counter",
            "Prompt tokens found in the prefix cache",
            stats.num_cached_tokens,
        ),
        ("textgen_forward_seconds", "counter", "Seconds spent in forward passes", stats.forward_s),
    ):
        yield from _single(name, kind, documentation, float(value))


def _single(name: str, kind: str, documentation: str, value: float) -> Iterator[str]:
    return _family_lines(name, kind, documentation, [(name, {}, value)])
