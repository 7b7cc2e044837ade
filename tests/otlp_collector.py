"""An OTLP/HTTP collector on a free port of the loopback: keeps the spans it is sent, decoded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class ReceivedSpan:
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start_ns: int
    end_ns: int
    attributes: dict[str, object]
    failed: bool
    service: str


class Collector:
    """Use as a context manager."""

    def __init__(self, status: int = 200) -> None:
        self.spans: list[ReceivedSpan] = []
        self.raw = b""
        self.num_calls = 0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.num_calls += 1
                if self.path == "/v1/traces" and status == 200:
                    collector.take(body)
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def take(self, body: bytes) -> None:
        self.raw += body
        message = ExportTraceServiceRequest.FromString(body)
        for resource in message.resource_spans:
            service = next(
                a.value.string_value for a in resource.resource.attributes if a.key == "service.name"
            )
            for scope in resource.scope_spans:
                self.spans += [_received(span, service) for span in scope.spans]

    def wait(
        self, condition: Callable[[list[ReceivedSpan]], bool], limit_s: float = 30.0
    ) -> list[ReceivedSpan]:
        deadline_s = time.monotonic() + limit_s
        while not condition(list(self.spans)):
            assert time.monotonic() < deadline_s, [span.name for span in self.spans]
            time.sleep(0.02)
        return list(self.spans)

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _received(span: object, service: str) -> ReceivedSpan:
    attributes = {item.key: _value(item.value) for item in span.attributes}  # type: ignore[attr-defined]
    return ReceivedSpan(
        name=span.name,  # type: ignore[attr-defined]
        trace_id=span.trace_id.hex(),  # type: ignore[attr-defined]
        span_id=span.span_id.hex(),  # type: ignore[attr-defined]
        parent_id=span.parent_span_id.hex(),  # type: ignore[attr-defined]
        kind=span.kind,  # type: ignore[attr-defined]
        start_ns=span.start_time_unix_nano,  # type: ignore[attr-defined]
        end_ns=span.end_time_unix_nano,  # type: ignore[attr-defined]
        attributes=attributes,
        failed=span.status.code == 2,  # type: ignore[attr-defined]
        service=service,
    )


def _value(value: object) -> object:
    kind = value.WhichOneof("value")  # type: ignore[attr-defined]
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]  # type: ignore[attr-defined]
    return getattr(value, kind)
