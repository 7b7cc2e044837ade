"""A real server with everything turned on: nothing a client wrote is in its log at any level, lines parse, spans arrive from
gunicorn's gevent workers and before they exit, and two workers show one set of numbers.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from local_mode.server_process import ServerProcess
from serving.api.access import FIELDS, PROMPT_FIELDS
from tests.e2e.conftest import serving, story, wait_until
from tests.otlp_collector import Collector
from tests.unit.test_metrics import TGI, parse

KEY = "CANARY-KEY-1"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@dataclass
class Watched:
    server: ServerProcess
    collector: Collector

    def call(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            sent = {"authorization": f"Bearer {KEY}", "x-secret": "CANARY-HEADER-2", **headers}
            data = body if body is None or isinstance(body, bytes) else json.dumps(body)
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def metrics(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        return parse(self.call("GET", "/metrics")[2])[1]

    def request_lines(self) -> list[dict[str, object]]:
        entries = [json.loads(line) for line in self.server.log.splitlines()]
        return [entry for entry in entries if entry["message"] == "request"]


@pytest.fixture(scope="module")
def watched(server_environment: dict[str, str]) -> Iterator[Watched]:
    settings = {"API_WORKERS": "2", "LOG_LEVEL": "debug", "JSON_OUTPUT": "true", "API_KEY": KEY}
    with (
        Collector() as collector,
        serving(server_environment, **settings, OTLP_ENDPOINT=collector.endpoint) as server,
    ):
        yield Watched(server, collector)


def body_of(text: str, **parameters: object) -> dict[str, object]:
    return {"inputs": text, "parameters": {"max_new_tokens": 5, **parameters}}


def test_nothing_a_client_wrote_is_logged_traced_or_counted(watched: Watched) -> None:
    answered = watched.call("POST", "/generate", body_of("CANARY-PROMPT-3 once upon a time"))
    assert answered[0] == 200
    answer = json.loads(answered[2])["generated_text"]
    refusals = [
        ("POST", "/generate?CANARY-QUERY-4", body_of("CANARY-PROMPT-5", top_k="CANARY-VALUE-6")),
        ("POST", "/generate", b'{"inputs": "CANARY-BROKEN-7'),
        ("POST", "/generate", {"inputs": ["CANARY-TYPE-8"]}),
        ("POST", "/generate", body_of("x", grammar={"type": "regex", "value": "(CANARY-REGEX-9"})),
        ("POST", "/v1/chat/completions", {"messages": [{"role": "CANARY-ROLE", "content": "CANARY-CHAT"}]}),
        ("GET", "/CANARY-PATH-10", None),
        ("CANARY", "/ping", None),
    ]
    for method, path, body in refusals:
        assert 400 <= watched.call(method, path, body)[0] < 500
    assert watched.call("GET", "/info", authorization="Bearer CANARY-WRONG-11")[0] == 401
    assert watched.call("GET", "/ping")[0] == 200
    with socket.create_connection(("127.0.0.1", watched.server.port)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nCANARY-BAD HEADER-12: CANARY\r\n\r\n")
        assert b" 400 " in sock.recv(1000)
    wait_until(lambda: len(watched.request_lines()) >= 9, limit_s=10, what="request lines")
    lines = watched.request_lines()
    assert len(lines) == 9 and not [line for line in lines if line["route"] == "/ping"]
    head = ["timestamp", "level", "process", "message"]
    assert all(list(line) == [*head, *FIELDS] for line in lines)
    watched.collector.wait(lambda spans: len([span for span in spans if " " in span.name]) >= 9)
    seen = watched.server.log + json.dumps(watched.metrics()) + watched.collector.raw.decode("latin-1")
    assert "CANARY" not in seen
    assert answer.strip() and answer not in seen


def test_spans_come_from_a_gevent_worker(watched: Watched) -> None:
    headers = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
    status, _, _ = watched.call("POST", "/generate_stream", story(20), **headers)
    assert status == 200
    names = {"POST /generate_stream", "tokenize", "queue", "prefill", "decode"}
    spans = watched.collector.wait(
        lambda spans: names <= {span.name for span in spans if span.trace_id == TRACE_ID}
    )
    by_name = {span.name: span for span in spans if span.trace_id == TRACE_ID}
    request, decode = by_name["POST /generate_stream"], by_name["decode"]
    assert request.parent_id == "b7ad6b7169203331" and request.attributes["gen_ai.usage.output_tokens"] == 20
    assert abs(request.end_ns - time.time_ns()) < 30e9
    assert by_name["prefill"].end_ns == decode.start_ns > by_name["queue"].start_ns
    assert 0 < decode.end_ns - decode.start_ns <= request.end_ns - request.start_ns


def test_two_workers_show_one_set_of_numbers(watched: Watched) -> None:
    before = watched.metrics()
    for _ in range(12):
        assert watched.call("POST", "/generate", body_of("a story"))[0] == 200
    pages = [watched.metrics() for _ in range(8)]
    for page in pages:
        assert page["tgi_request_success"][0][1] == before["tgi_request_success"][0][1] + 12
        assert page["textgen_generated_tokens"][0][1] == before["textgen_generated_tokens"][0][1] + 60
        count, (labels, done) = (
            before["tgi_batch_inference_count"][1][1],
            page["tgi_batch_inference_success"][1],
        )
        assert labels == {"method": "decode"} and done > count
        assert page["textgen_queue_duration_count"][0][1] == page["textgen_sequences"][0][1]
        assert page["tgi_batch_max_total_tokens"][0][1] > 0 and 0 <= page["textgen_saturation"][0][1] <= 1
        (served,) = [
            value
            for labels, value in page["textgen_http_requests"]
            if labels == {"route": "/generate", "method": "POST", "status": "200"}
        ]
        assert served == page["tgi_request_success"][0][1] - 1  # and one stream
    types, _ = parse(watched.call("GET", "/metrics")[2])
    assert {name: kind for name, kind in types.items() if name in TGI} == {
        n: kind for n, (kind, _) in TGI.items()
    }


def test_spans_are_sent_before_the_server_ends_and_prompts_logged_when_asked(
    server_environment: dict[str, str],
) -> None:
    with Collector() as collector:
        with serving(server_environment, OTLP_ENDPOINT=collector.endpoint, LOG_PROMPTS="true") as server:
            watched = Watched(server, collector)
            assert watched.call("POST", "/generate", body_of("CANARY-SHOWN"))[0] == 200
            server.terminate()
            assert server.wait(30) == 0
            assert "CANARY-SHOWN" in server.log and all(f" {name}=" in server.log for name in PROMPT_FIELDS)
        assert "POST /generate" in {span.name for span in collector.spans}
