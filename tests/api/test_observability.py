"""Each request is one line with constant keys, one count by its rule, and one span: whichever route, however it ended."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from flask import Flask
from flask.testing import FlaskClient

from serving.api.access import FIELDS
from serving.api.app import create_app
from serving.config import HttpConfig, RuntimeConfig, ServerConfig, Stage
from serving.errors import GenerationFailed, InvalidRequest, Overloaded, TemplateError
from serving.tracing import Tracing
from tests.api.fake_engine import FakeEngine, FakeStream, FakeText, hello
from tests.otlp_collector import Collector, ReceivedSpan
from tests.unit.test_metrics import parse

CANARIES = ("CANARY-PROMPT", "CANARY-KEY", "CANARY-HEADER", "CANARY-QUERY", "CANARY-FIELD", "CANARY-PATH")


@dataclass
class Server:
    app: Flask
    client: FlaskClient
    engine: FakeEngine
    caplog: pytest.LogCaptureFixture
    stage: list[Stage] = field(default_factory=list)

    @property
    def lines(self) -> list[dict[str, object]]:
        return [vars(record) for record in self.caplog.records if record.message == "request"]

    def metrics(self, name: str) -> list[tuple[dict[str, str], float]]:
        return parse(self.client.get("/metrics").data)[1].get(name, [])

    def failures(self) -> dict[str, float]:
        return {labels["err"]: value for labels, value in self.metrics("tgi_request_failure")}


ServerFactory = Callable[..., Server]


@pytest.fixture
def new_server(caplog: pytest.LogCaptureFixture) -> ServerFactory:
    caplog.set_level(logging.DEBUG)

    def make(
        script: Callable[[FakeStream], None] = hello, *, tracing: Tracing | None = None, **config: object
    ) -> Server:
        engine, text, stage = FakeEngine(script), FakeText(), [Stage(stage="ready")]
        declared = ServerConfig(**config)  # type: ignore[arg-type]
        app = create_app(engine, lambda: text, declared, lambda: stage[-1], tracing=tracing)
        return Server(app, app.test_client(), engine, caplog, stage)

    return make


def refuse(error: Exception) -> Callable[[FakeStream], None]:
    return lambda stream: stream.put(error)  # type: ignore[arg-type]


def fail_midway(stream: FakeStream) -> None:
    stream.accept()
    stream.tokens("he")
    stream.put(GenerationFailed("CANARY-PROMPT"))


def test_a_generation_is_one_line_with_everything(new_server: ServerFactory) -> None:
    server = new_server()
    body = {"inputs": "CANARY-PROMPT", "parameters": {"CANARY FIELD\n": 1, "seed": 3, "do_sample": True}}
    response = server.client.post(
        "/generate?q=CANARY-QUERY", json=body, headers={"x-request-id": "abc", "x-other": "CANARY-HEADER"}
    )
    assert response.status_code == 200
    (line,) = server.lines
    assert list(FIELDS) == [name for name in line if name in FIELDS]
    expected = {
        "request_id": "abc",
        "engine_request_id": "fake-1",
        "method": "POST",
        "route": "/generate",
        "status": 200,
        "api": "native",
        "model": "demo",
        "stream": False,
        "n": 1,
        "input_tokens": 13,
        "cached_tokens": 0,
        "generated_tokens": 5,
        "queue_s": 0.002,
        "inference_s": 0.5,
        "finish_reason": "length",
        "seed": 3,
        "error_type": None,
        "field": None,
        "ignored_parameters": "parameters.CANARY?FIELD?",
        "inference_id": None,
        "trace_id": None,
    }
    assert {name: line[name] for name in expected} == expected
    for name in ("validation_s", "ttft_s", "total_s"):
        assert isinstance(line[name], float) and line[name] >= 0
    assert "prompt" not in line and "answer" not in line


def test_streams_are_logged_when_they_end(new_server: ServerFactory) -> None:
    server = new_server()
    with server.client.post("/generate_stream", json={"inputs": "x"}) as response:
        assert not server.lines
        assert b"generated_text" in response.data
    assert [(line["route"], line["status"], line["stream"]) for line in server.lines] == [
        ("/generate_stream", 200, True)
    ]
    gaps = server.metrics("textgen_inter_token_duration_count")
    assert gaps == [({}, 4.0)] and server.metrics("textgen_first_token_duration_count") == [({}, 1.0)]


def test_a_client_that_leaves_is_an_abort(new_server: ServerFactory) -> None:
    server = new_server(lambda stream: stream.accept())
    response = server.client.post("/generate_stream", json={"inputs": "x"})
    response.close()
    (line,) = server.lines
    assert (line["status"], line["error_type"], line["stream"]) == (499, "client_closed", True)
    assert server.failures() == {"dropped": 1.0}
    assert server.metrics("textgen_request_duration_count") == [({"outcome": "aborted"}, 1.0)]


def test_a_stream_that_fails_midway(new_server: ServerFactory) -> None:
    server = new_server(fail_midway)
    assert server.client.post("/generate_stream", json={"inputs": "x"}).data
    (line,) = server.lines
    assert (line["status"], line["error_type"], line["generated_tokens"]) == (424, "generation", 2)
    assert server.failures() == {"generation": 1.0}
    assert "CANARY" not in server.caplog.text


@pytest.mark.parametrize(
    ("error", "label", "status"),
    [
        (Overloaded("full"), "overloaded", 429),
        (InvalidRequest("CANARY", field="top_k"), "validation", 422),
        (TemplateError("CANARY"), "template", 422),
        (GenerationFailed("CANARY"), "generation", 424),
    ],
)
def test_failures_have_tgis_labels(
    new_server: ServerFactory, error: Exception, label: str, status: int
) -> None:
    server = new_server(refuse(error))
    assert server.client.post("/generate", json={"inputs": "x"}).status_code == status
    assert server.failures() == {label: 1.0}
    (line,) = server.lines
    assert (line["status"], line["field"]) == (status, getattr(error, "field", None))
    assert "CANARY" not in server.caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status", "route", "error_type"),
    [
        ("GET", "/CANARY-PATH", 404, "unknown", "not_found"),
        ("DELETE", "/generate", 405, "unknown", "method_not_allowed"),
        ("BREW", "/ping", 405, "unknown", "method_not_allowed"),
        ("POST", "/generate", 422, "/generate", "validation"),
        ("POST", "/tokenize", 422, "/tokenize", "validation"),
        ("POST", "/v1/chat/completions", 400, "/v1/chat/completions", "validation"),
        ("GET", "/v1/models/CANARY-PATH", 404, "/v1/models/<path:model_id>", "not_found"),
        ("GET", "/info", 200, "/info", None),
    ],
)
def test_every_route_has_one_line_and_one_count(
    new_server: ServerFactory, method: str, path: str, status: int, route: str, error_type: str | None
) -> None:
    server = new_server()
    body = {"json": {"CANARY-FIELD": "CANARY-PROMPT"}} if method == "POST" else {}
    response = server.client.open(path, method=method, **body)
    assert response.status_code == status
    (line,) = server.lines
    if path.startswith("/v1/models/"):
        route = str(line["route"])
        assert route.startswith("/v1/models/<")
    assert (line["status"], line["route"], line["error_type"]) == (status, route, error_type)
    assert set(FIELDS) <= set(line)
    counted = {
        (labels["route"], labels["status"]): n for labels, n in server.metrics("textgen_http_requests")
    }
    assert counted[route, str(status)] == 1.0
    assert "CANARY-P" not in server.caplog.text
    assert "CANARY" not in server.client.get("/metrics").text


@pytest.mark.parametrize("path", ["/ping", "/health", "/metrics", "/"])
def test_probes_are_counted_and_not_logged(new_server: ServerFactory, path: str) -> None:
    server = new_server()
    server.client.get(path)
    server.stage.append(Stage(stage="loading"))
    server.client.get(path)
    assert not server.lines
    counted = [labels for labels, _ in server.metrics("textgen_http_requests") if labels["route"] == path]
    assert counted and all(labels["method"] == "GET" for labels in counted)


def test_a_missing_key_is_one_line(new_server: ServerFactory) -> None:
    server = new_server(http=HttpConfig(api_key="CANARY-KEY"))
    for headers in ({}, {"authorization": "Bearer CANARY-HEADER"}):
        assert server.client.post("/generate", json={"inputs": "x"}, headers=headers).status_code == 401
    assert [line["error_type"] for line in server.lines] == ["unauthorized"] * 2
    assert server.metrics("tgi_request_count") == [({}, 0.0)]
    assert "CANARY" not in server.caplog.text


def test_labels_stay_few_whatever_is_asked(new_server: ServerFactory) -> None:
    server = new_server()
    for number in range(50):
        server.client.open(f"/nothing/{number}", method=f"M{number}")
        server.client.get(f"/v1/models/{number}")
    series = server.metrics("textgen_http_requests")
    assert len(series) <= 4


def test_prompts_are_logged_only_when_asked(new_server: ServerFactory) -> None:
    server = new_server(runtime=RuntimeConfig(log_prompts=True))
    server.client.post("/generate", json={"inputs": "p" * 190 + "é" * 5})
    (line,) = server.lines
    assert line["prompt"] == "p" * 190 + "é" * 5 and line["answer"] == "hello"


def test_chats_count_once(new_server: ServerFactory) -> None:
    server = new_server()
    server.client.post("/v1/completions", json={"model": "demo", "prompt": ["a", "b"], "max_tokens": 5})
    assert server.metrics("tgi_request_count") == [({}, 1.0)]
    (line,) = server.lines
    assert (line["api"], line["n"]) == ("completions", 2)


# ------------------------------------------------------------------------------------------------ traces


def by_name(spans: list[ReceivedSpan]) -> dict[str, ReceivedSpan]:
    return {span.name: span for span in spans}


def test_spans_of_a_generation(new_server: ServerFactory) -> None:
    with Collector() as collector:
        tracing = Tracing(collector.endpoint, "s")
        server = new_server(tracing=tracing)
        trace_id = "0af7651916cd43dd8448eb211c80319c"
        headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01", "x-request-id": "abc"}
        server.client.post("/generate", json={"inputs": "CANARY-PROMPT"}, headers=headers)
        tracing.close()
    spans = by_name(collector.spans)
    assert set(spans) == {"POST /generate", "tokenize", "queue", "prefill", "decode"}
    request = spans["POST /generate"]
    assert request.parent_id == "b7ad6b7169203331"
    assert {span.trace_id for span in spans.values()} == {trace_id}
    edges = [request.start_ns]
    for name in ("tokenize", "queue", "prefill", "decode"):
        assert spans[name].parent_id == request.span_id
        edges += [spans[name].start_ns, spans[name].end_ns]
    edges.append(request.end_ns)
    assert edges == sorted(edges)
    expected = {
        "http.request.method": "POST",
        "http.route": "/generate",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": "demo",
        "gen_ai.usage.input_tokens": 13,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.response.finish_reasons": ["length"],
        "textgen.request_id": "abc",
    }
    assert {name: request.attributes.get(name) for name in expected} == expected
    assert b"CANARY" not in collector.raw
    assert server.lines[0]["trace_id"] == trace_id


def test_spans_of_refusals_and_probes(new_server: ServerFactory) -> None:
    with Collector() as collector:
        tracing = Tracing(collector.endpoint, "s")
        server = new_server(refuse(GenerationFailed("CANARY")), tracing=tracing)
        server.client.get("/ping")
        server.client.get("/CANARY-PATH?q=CANARY-QUERY")
        server.client.post("/generate", json={"inputs": "x"})
        tracing.close()
    spans = by_name(collector.spans)
    assert {name for name in spans if " " in name} == {"GET unknown", "POST /generate"}
    assert not spans["GET unknown"].failed and spans["GET unknown"].attributes["error.type"] == "not_found"
    assert spans["POST /generate"].failed
    assert b"CANARY" not in collector.raw
