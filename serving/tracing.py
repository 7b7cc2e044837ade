"""OpenTelemetry traces over OTLP/HTTP: one span per request with children, sent in the background. Knows neither HTTP nor
generations. The OpenTelemetry packages are imported when an endpoint is set, not before.

Times are readings of `time.monotonic`; a request's start ties them to the wall clock.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from serving import logs
from serving.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Span, Tracer

logger = logging.getLogger(__name__)

Attribute = str | bool | int | float | Sequence[str] | None

PARENT_HEADERS = ("traceparent", "tracestate")
"""W3C trace context: who called, and whether they record this trace."""

_TRACES_PATH = "/v1/traces"
_HTTP_PORT = 4318
_GRPC_PORT = 4317
_EXPORT_TIMEOUT_S = 5.0
_EXPORT_INTERVAL_S = 1.0
_MAX_QUEUED_SPANS = 4096
_MAX_BATCH_SPANS = 256
_FLUSH_S = 1.5
_COMPLAINT_INTERVAL_S = 60.0


def endpoint_problem(endpoint: str) -> str | None:
    """Why no traces can be sent to `endpoint`, with the form that works, or None."""
    url = urlsplit(_with_scheme(endpoint))
    host = url.hostname or "collector"
    works = f"traces are sent over HTTP: set OTLP_ENDPOINT=http://{host}:{_HTTP_PORT}"
    try:
        port = url.port
    except ValueError:
        return f"OTLP_ENDPOINT has no valid port, {works}"
    if url.scheme not in ("http", "https") or not url.hostname:
        return f"OTLP_ENDPOINT must be an http:// or https:// address, {works}"
    if port == _GRPC_PORT:
        return f"OTLP_ENDPOINT has port {_GRPC_PORT}, which is OTLP over gRPC; {works}"
    return None


@dataclass(slots=True)
class RequestSpan:
    """The span of a request that runs. Thread-safe; after `end` it does nothing more."""

    span: Span
    tracer: Tracer
    started_s: float
    started_ns: int

    @property
    def trace_id(self) -> str:
        return f"{self.span.get_span_context().trace_id:032x}"

    def child(self, name: str, start_s: float, end_s: float) -> None:
        """Add what a part of the request took; one that would end before it began is left out."""
        from opentelemetry.trace import set_span_in_context

        if not self.span.is_recording() or end_s < start_s:
            return
        context = set_span_in_context(self.span)
        child = self.tracer.start_span(name, context=context, start_time=self._ns(start_s))
        child.end(self._ns(end_s))

    def end(self, end_s: float, attributes: Mapping[str, Attribute], *, error_type: str | None) -> None:
        """`error_type` marks a failure of ours; a refusal of a bad request is none."""
        from opentelemetry.trace import StatusCode

        for name, value in attributes.items():
            if value is not None:
                self.span.set_attribute(name, value)
        if error_type is not None:
            self.span.set_status(StatusCode.ERROR, error_type)
        self.span.end(self._ns(end_s))

    def _ns(self, reading_s: float) -> int:
        return self.started_ns + int((reading_s - self.started_s) * 1e9)


class Tracing:
    """Sends the spans of one process. Make it after a fork, and after gevent has patched the standard library."""

    def __init__(self, endpoint: str, service_name: str) -> None:
        """`endpoint` is a collector's base address, or the full one of its traces."""
        provider = _provider(_traces_url(endpoint), service_name)
        self._tracer = provider.get_tracer("serving", VERSION)
        # The library waits up to 30 s for a collector that does not answer, and at exit no thread can be started.
        self._closing, self._closed = threading.Event(), threading.Event()
        threading.Thread(
            target=self._run_closer, args=(provider,), name="tracing-closer", daemon=True
        ).start()

    def begin(self, name: str, started_s: float, headers: Mapping[str, str]) -> RequestSpan:
        """A span of a request that began at `started_s`, below the caller's if `headers` name one. Whether it is
        recorded is the caller's choice; without a caller it is."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        started_ns = time.time_ns() - int((time.monotonic() - started_s) * 1e9)
        parent = TraceContextTextMapPropagator().extract(headers)
        span = self._tracer.start_span(name, context=parent, kind=SpanKind.SERVER, start_time=started_ns)
        return RequestSpan(span=span, tracer=self._tracer, started_s=started_s, started_ns=started_ns)

    def close(self) -> None:
        """Send what is left, for a moment at most."""
        self._closing.set()
        self._closed.wait(_FLUSH_S)

    def _run_closer(self, provider: TracerProvider) -> None:
        self._closing.wait()
        provider.shutdown()
        self._closed.set()


class _Exporter:
    """What the library calls an exporter, around its own: failures become one line per minute."""

    def __init__(self, exporter: SpanExporter, address: str) -> None:
        self._exporter = exporter
        self._address = address
        self._num_lost = 0
        self._complained_s = -math.inf

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result.name != "SUCCESS":
            self._complain(len(spans))
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def _complain(self, num_spans: int) -> None:
        self._num_lost += num_spans
        now_s = time.monotonic()
        if now_s - self._complained_s < _COMPLAINT_INTERVAL_S:
            return
        logs.event(
            logger,
            logging.WARNING,
            "traces lost: the collector does not take them",
            collector=self._address,
            spans=self._num_lost,
        )
        self._complained_s, self._num_lost = now_s, 0


def _with_scheme(endpoint: str) -> str:
    return endpoint if "://" in endpoint else f"http://{endpoint}"


def _traces_url(endpoint: str) -> str:
    url = urlsplit(_with_scheme(endpoint))
    path = url.path.rstrip("/")
    return url._replace(path=path if path.endswith(_TRACES_PATH) else path + _TRACES_PATH).geturl()


def _provider(url: str, service_name: str) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased

    # A dead collector would fill the log with retries and tracebacks; `_Exporter` says it once a minute.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
    address = urlsplit(url).netloc.rpartition("@")[2]
    exporter = _Exporter(OTLPSpanExporter(endpoint=url, timeout=_EXPORT_TIMEOUT_S), address)
    processor = BatchSpanProcessor(
        cast("SpanExporter", exporter),
        max_queue_size=_MAX_QUEUED_SPANS,
        schedule_delay_millis=int(_EXPORT_INTERVAL_S * 1000),
        max_export_batch_size=_MAX_BATCH_SPANS,
    )
    provider = TracerProvider(
        sampler=ParentBased(ALWAYS_ON),
        resource=Resource.create({"service.name": service_name, "service.version": VERSION}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(processor)
    return provider
