"""Spans as a collector gets them: times, parents, failures; and what a dead collector costs."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from serving.api.wsgi import start_tracing
from serving.config import RuntimeConfig
from serving.tracing import Tracing, endpoint_problem
from tests.otlp_collector import Collector

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
SERVER = 2


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


def parent(flags: str) -> dict[str, str]:
    return {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-{flags}", "tracestate": "vendor=1"}


def test_a_request_and_its_parts(collector: Collector) -> None:
    tracing = Tracing(collector.endpoint, "my-service")
    started_s, wall_ns = time.monotonic() - 2.0, time.time_ns() - 2_000_000_000
    span = tracing.begin("POST /generate", started_s, {})
    span.child("queue", started_s + 0.5, started_s + 0.75)
    span.child("backwards", started_s + 0.5, started_s + 0.25)
    span.end(started_s + 1.0, {"a": 3, "b": "x", "c": None, "d": ["p", "q"]}, error_type="generation")
    tracing.close()
    assert [each.name for each in collector.spans] == ["queue", "POST /generate"]
    queue, request = collector.spans
    assert request.service == "my-service" and request.kind == SERVER and request.parent_id == ""
    assert request.attributes == {"a": 3, "b": "x", "d": ["p", "q"]} and request.failed
    assert queue.parent_id == request.span_id and queue.trace_id == request.trace_id == span.trace_id
    assert abs(request.start_ns - wall_ns) < 500_000_000
    assert request.end_ns - request.start_ns == pytest.approx(1e9, abs=1e3)
    assert queue.start_ns - request.start_ns == pytest.approx(0.5e9, abs=1e3)
    assert queue.end_ns - queue.start_ns == pytest.approx(0.25e9, abs=1e3)


def test_the_caller_decides_whether_its_trace_is_recorded(collector: Collector) -> None:
    tracing = Tracing(collector.endpoint + "/v1/traces", "s")
    for flags in ("00", "01"):
        span = tracing.begin(flags, time.monotonic(), parent(flags))
        assert span.trace_id == TRACE_ID
        span.child("part", span.started_s, span.started_s)
        span.end(time.monotonic(), {}, error_type=None)
    tracing.close()
    assert {each.name for each in collector.spans} == {"part", "01"}
    (request,) = [each for each in collector.spans if each.name == "01"]
    assert (request.trace_id, request.parent_id, request.failed) == (TRACE_ID, PARENT_ID, False)


@pytest.mark.parametrize(
    "value", ["", "nonsense", f"ff-{TRACE_ID}-{PARENT_ID}-01", f"00-{'0' * 32}-{PARENT_ID}-01"]
)
def test_a_broken_parent_is_none(collector: Collector, value: str) -> None:
    tracing = Tracing(collector.endpoint, "s")
    span = tracing.begin("r", time.monotonic(), {"traceparent": value})
    span.end(time.monotonic(), {}, error_type=None)
    tracing.close()
    assert [each.parent_id for each in collector.spans] == [""]
    assert span.trace_id not in ("0" * 32, TRACE_ID)


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("http://collector:4317", "http://collector:4318"),
        ("collector:4317", "http://collector:4318"),
        ("https://[::1]:4317/", "4318"),
        ("grpc://collector:4318", "http://collector:4318"),
        ("http://:99", "http://collector:4318"),
        ("http://collector:port", "no valid port"),
    ],
)
def test_endpoints_that_cannot_work(endpoint: str, says: str) -> None:
    problem = endpoint_problem(endpoint)
    assert problem is not None and says in problem and "\n" not in problem


def test_a_grpc_port_is_one_line_of_the_first_worker(caplog: pytest.LogCaptureFixture) -> None:
    runtime = RuntimeConfig(otlp_endpoint="http://collector:4317")
    assert start_tracing(runtime, first_worker=False) is None and not caplog.records
    assert start_tracing(runtime, first_worker=True) is None
    (line,) = caplog.records
    assert line.message == "no traces" and "http://collector:4318" in vars(line)["reason"]


@pytest.mark.parametrize("endpoint", ["http://c:4318", "c:4318", "https://c", "http://c/otlp/v1/traces"])
def test_endpoints_that_can(endpoint: str) -> None:
    assert endpoint_problem(endpoint) is None


@pytest.mark.parametrize("status", [None, 400, 503])
def test_a_collector_that_fails_costs_one_line_and_no_time(
    caplog: pytest.LogCaptureFixture, status: int | None
) -> None:
    caplog.set_level(logging.INFO)
    with Collector(status or 200) as collector:
        endpoint = collector.endpoint if status else "http://127.0.0.1:9"
        tracing = Tracing(endpoint, "s")
        started_s = time.monotonic()
        for _ in range(1500):
            span = tracing.begin("r", time.monotonic(), {})
            span.end(time.monotonic(), {}, error_type=None)
        assert time.monotonic() - started_s < 5.0
        deadline_s = time.monotonic() + 20
        while not caplog.records and time.monotonic() < deadline_s:
            time.sleep(0.02)
        closed_s = time.monotonic()
        tracing.close()
        assert time.monotonic() - closed_s < 2.5
    lines = caplog.records
    assert [record.message for record in lines] == ["traces lost: the collector does not take them"]
    assert not any(record.exc_info for record in caplog.records)


def test_nothing_of_opentelemetry_is_imported_without_an_endpoint() -> None:
    program = (
        "import sys, serving.api.wsgi as wsgi\n"
        "from serving.config import RuntimeConfig\n"
        "assert wsgi.start_tracing(RuntimeConfig(), first_worker=True) is None\n"
        "assert wsgi.start_tracing(RuntimeConfig(otlp_endpoint='c:4317'), first_worker=True) is None\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr.strip() == "no traces"
