"""What a client of the native routes sees of errors: before a stream begins, inside of it, and of a bug."""

from __future__ import annotations

import json

import pytest

from serving.errors import Draining, GenerationFailed, InvalidRequest, NotReady, Overloaded, RequestError
from serving.messages import SequenceOutput
from tests.api.conftest import Front
from tests.api.fake_engine import FakeStream
from tests.api.test_native_replies import events_of

REFUSALS: list[tuple[RequestError, int, str]] = [
    (InvalidRequest("`x` is bad", field="x"), 422, "validation"),
    (Overloaded("full", retry_after_s=2.5), 429, "overloaded"),
    (Draining("stopping"), 503, "draining"),
    (NotReady("starting"), 503, "healthcheck"),
    (GenerationFailed("lost"), 424, "generation"),
]


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/invocations"])
@pytest.mark.parametrize(("error", "status", "error_type"), REFUSALS)
def test_refusals_before_admission_are_statuses(
    front: Front, error: RequestError, status: int, error_type: str, path: str
) -> None:
    front.engine.script = lambda stream: stream.put(error)
    for attempt in range(2):
        if attempt:
            front.engine.submit_error = error
        response = front.client.post(path, json={"inputs": "a", "stream": True})
        assert response.status_code == status
        assert response.json["error_type"] == error_type
        assert response.headers.get("retry-after") == ("3" if status == 429 else None)
        assert response.json.get("retry_after_s") == (3 if status == 429 else None)
    assert response.headers.get("connection") == ("close" if error_type == "draining" else None)


@pytest.mark.parametrize(("error", "status", "error_type"), REFUSALS[1:])
def test_errors_after_admission_are_the_last_event(
    front: Front, error: RequestError, status: int, error_type: str
) -> None:
    def script(stream: FakeStream) -> None:
        stream.accept()
        stream.tokens("a")
        stream.put(error)

    front.engine.script = script
    events = events_of(front, {"inputs": "a"})
    assert events[0]["index"] == 1
    assert events[1]["error_type"] == error_type
    assert len(events) == 2
    assert front.client.post("/generate", json={"inputs": "a"}).status_code == status


@pytest.mark.parametrize("finish", ["abort", "error"])
def test_an_engine_that_gives_up_is_an_incomplete_generation(front: Front, finish: str) -> None:
    def script(stream: FakeStream) -> None:
        stream.accept()
        stream.tokens("a")
        stream.tokens("", finish)

    front.engine.script = script
    error = {"error": "Incomplete generation stream", "error_type": "incomplete_generation_stream"}
    headers = {"x-request-id": "named-by-the-client"}
    streamed = front.client.post("/generate_stream", json={"inputs": "a"}, headers=headers)
    last = json.loads(streamed.get_data(as_text=True).split("data: ")[-1])
    assert last == {**error, "request_id": "named-by-the-client"}
    response = front.client.post("/generate", json={"inputs": "a"})
    assert response.status_code == 500
    assert response.json == {
        "error": "Incomplete generation",
        "error_type": "incomplete_generation",
        "request_id": response.headers["x-request-id"],
    }


def test_an_end_without_a_token(front: Front) -> None:
    def script(stream: FakeStream) -> None:
        stream.accept()
        stream.tokens("a")
        stream.tokens("", "length")

    front.engine.script = script
    assert front.client.post("/generate", json={"inputs": "a"}).json == {"generated_text": "a"}
    assert events_of(front, {"inputs": "a"})[-1]["error_type"] == "incomplete_generation_stream"


def test_a_bug_shows_no_details(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    def script(stream: FakeStream) -> None:
        stream.accept()
        stream.put(SequenceOutput(request_id="x", token_ids=[1], logprobs=[]))

    front.engine.script = script
    response = front.client.post("/generate", json={"inputs": "a"})
    assert response.status_code == 500
    assert response.json["error_type"] == "internal"
    event = events_of(front, {"inputs": "a"})[-1]
    assert event["error_type"] == "internal"
    for answer in (response.json, event):
        error_id = answer["request_id"]
        assert answer["error"] == f"internal error, reported in the server's log as {error_id}"
        assert any(
            getattr(record, "request_id", None) == error_id and record.exc_info for record in caplog.records
        )
