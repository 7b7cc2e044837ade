"""Bodies of JSON lines on `/invocations`: every line a request, one line of the answer for each, in the same order."""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import Any

import gevent
import pytest

from serving.api import json_body, json_lines
from serving.api.call import CUSTOM_ATTRIBUTES
from serving.api.connection import ClientConnection
from serving.api.context import EXTENSION
from serving.config import HttpConfig, LimitsConfig
from serving.errors import GenerationFailed, Overloaded
from tests.api.fake_engine import FakeStream
from tests.api.openai_client import MESSAGES, OpenAIFront, letters, says
from tests.unit.test_metrics import parse

TYPES = ["application/jsonlines", "application/x-jsonlines", "application/jsonl; charset=utf-8"]


def post(
    front: OpenAIFront,
    body: bytes | str,
    *,
    content_type: str = TYPES[0],
    path: str = "/invocations",
    **headers: str,
) -> Any:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return front.app.test_client().post(path, data=body, content_type=content_type, headers=names)


def lines_of(response: Any) -> list[Any]:
    assert response.status_code == 200, response.get_data(as_text=True)
    assert response.content_type == "application/jsonlines"
    text = response.get_data(as_text=True)
    assert text.endswith("\n")
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


def written(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


@pytest.fixture
def front() -> OpenAIFront:
    return OpenAIFront(letters)


@pytest.mark.parametrize("content_type", TYPES)
@pytest.mark.parametrize("end", ["\n", "", "\r\n"])
def test_every_line_is_answered_in_its_place(front: OpenAIFront, content_type: str, end: str) -> None:
    bodies = [{"inputs": "a"}, {"prompt": "b"}, {"messages": MESSAGES}, {"inputs": "c"}]
    body = ("\r\n" if end == "\r\n" else "\n").join(map(json.dumps, bodies)) + end
    first, second, third, fourth = lines_of(post(front, body, content_type=content_type, Accept="text/csv"))
    assert first == [{"generated_text": "aA0"}] and fourth == [{"generated_text": "cC0"}]
    assert (second["object"], second["choices"][0]["text"]) == ("text_completion", "B0")
    assert third["object"] == "chat.completion"


def test_a_bad_line_is_an_error_in_its_place(front: OpenAIFront) -> None:
    bad = [
        "{",
        "",
        "[1]",
        "7",
        '{"inputs":"a","inputs":"b"}',
        "\u00a0",
        '{"inputs":""}',
        '{"messages":[]}',
        "{}",
    ]
    body = "\n".join(['{"inputs":"a"}', *bad, '{"inputs":"z"}']) + "\n"
    answers = lines_of(post(front, body))
    assert answers[0] == [{"generated_text": "aA0"}] and answers[-1] == [{"generated_text": "zZ0"}]
    errors = answers[1:-1]
    assert len(errors) == len(bad)
    assert [error["status"] for error in errors] == [400, 400, 422, 422, 400, 400, 422, 400, 422]
    assert all(len(json.dumps(error)) < 1024 for error in errors)
    native, chat = errors[0], errors[7]
    assert set(native) == {"error", "error_type", "request_id", "status"}
    assert chat["error"]["param"] == "messages" and set(chat) == {"error", "status"}
    assert "the body is empty" in errors[1]["error"]
    assert errors[2]["error"].endswith("the body must be a JSON object, not an array")


def test_a_line_that_fails_leaves_the_others_alone() -> None:
    def script(stream: FakeStream) -> None:
        if bytes(stream.request.prompt_token_ids) == b"bad":
            stream.accept()
            stream.put(GenerationFailed("broken"))
        else:
            letters(stream)

    answers = lines_of(
        post(OpenAIFront(script), written({"inputs": "a"}, {"inputs": "bad"}, {"inputs": "c"}))
    )
    assert answers[0] == [{"generated_text": "aA0"}] and answers[2] == [{"generated_text": "cC0"}]
    assert (answers[1]["status"], answers[1]["error_type"]) == (424, "generation")


@pytest.mark.parametrize("body", [{"inputs": "a"}, {"prompt": "a"}, {"messages": MESSAGES}])
def test_a_line_is_not_streamed(front: OpenAIFront, body: dict[str, Any]) -> None:
    (answer,) = lines_of(post(front, written({**body, "stream": True})))
    assert answer["status"] in (400, 422) and "`stream`" in json.dumps(answer)
    routed = {"X_Amzn_SageMaker_Custom_Attributes": "route=/generate_stream"}
    (answer,) = lines_of(post(front, written({"inputs": "a"}), **routed))
    assert answer["status"] == 422
    assert front.engine.requests == []


def test_sessions_and_adapters_are_refused(front: OpenAIFront) -> None:
    (answer,) = lines_of(post(front, written({"requestType": "NEW_SESSION"})))
    assert answer["status"] == 422 and "`requestType`" in answer["error"]
    (answer,) = lines_of(post(front, written({"inputs": "a"}), X_Amzn_SageMaker_Adapter_Identifier="mine"))
    assert answer["status"] == 404
    assert post(front, written({"inputs": "a"}), X_Amzn_SageMaker_Session_Id="x").status_code == 422
    assert post(front, written({"inputs": "a"}), X_Amzn_SageMaker_Target_Model="x").status_code == 404
    assert front.engine.requests == []


@pytest.mark.parametrize(("body", "status"), [(b"", 400), (b"\n", 400), (b" \r\n", 400), (b"x" * 1001, 413)])
def test_a_body_without_lines_or_too_large(body: bytes, status: int) -> None:
    front = OpenAIFront(letters, limits=LimitsConfig(payload_limit_bytes=1000))
    response = post(front, body)
    assert (response.status_code, response.content_type) == (status, "application/json")


def test_the_number_of_lines_is_limited(front: OpenAIFront, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_body, "MAX_LINES", 3)
    line = written({"inputs": "a"})
    assert len(lines_of(post(front, line * 3))) == 3
    assert post(front, line * 4).status_code == 413


@pytest.mark.parametrize("path", ["/", "/generate", "/v1/chat/completions"])
def test_other_routes_take_no_lines(front: OpenAIFront, path: str) -> None:
    assert post(front, written({"inputs": "a"}), path=path).status_code == 415


def test_a_list_is_no_batch(front: OpenAIFront) -> None:
    response = front.app.test_client().post("/invocations", json=[{"inputs": "a"}])
    assert response.status_code == 422


def test_not_ready_refuses_the_body() -> None:
    assert post(OpenAIFront(letters, stage="loading"), written({"inputs": "a"})).status_code == 503


def test_a_busy_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "_RETRY_S", 0.01)
    refusals = [Overloaded("full"), Overloaded("full")]

    def script(stream: FakeStream) -> None:
        if refusals:
            stream.put(refusals.pop())
        else:
            letters(stream)

    assert lines_of(post(OpenAIFront(script), written({"inputs": "a"}))) == [[{"generated_text": "aA0"}]]
    assert refusals == []

    monkeypatch.setattr(json_lines, "_GIVE_UP_S", 0.0)
    front = OpenAIFront(lambda stream: stream.put(Overloaded("full")))
    (answer,) = lines_of(post(front, written({"inputs": "a"})))
    assert (answer["status"], answer["error_type"]) == (429, "overloaded")


def test_the_deadline_is_the_whole_bodys() -> None:
    def script(stream: FakeStream) -> None:
        if bytes(stream.request.prompt_token_ids) == b"slow":
            stream.accept()
            stream.tokens("so far")
        else:
            letters(stream)

    body = written({"inputs": "a"}, *[{"inputs": "slow"}] * 2, {"inputs": "b"})
    front = OpenAIFront(script, http=HttpConfig(unary_deadline_s=0.3))
    started_s = time.monotonic()
    response = post(front, body)
    assert time.monotonic() - started_s < 1.5
    assert response.headers[CUSTOM_ATTRIBUTES] == "deadline=reached"
    # Without gunicorn's worker lines run one after the other, so the first slow one takes all the time.
    first, second, *rest = lines_of(response)
    assert (first, second) == ([{"generated_text": "aA0"}], [{"generated_text": "slowso far"}])
    assert [error["status"] for error in rest] == [429, 429]
    assert all("deadline" in error["error"] for error in rest)
    assert len(front.engine.requests) == 2


def test_no_deadline_in_a_batch_transform_job() -> None:
    http = HttpConfig(unary_deadline_s=1e-9, batch_transform=True)
    response = post(OpenAIFront(letters, http=http), written({"inputs": "a"}))
    assert lines_of(response) == [[{"generated_text": "aA0"}]] and CUSTOM_ATTRIBUTES not in response.headers


def test_the_key_is_asked_for() -> None:
    front = OpenAIFront(letters, http=HttpConfig(api_key="k"))
    assert post(front, written({"inputs": "a"})).status_code == 401
    assert len(lines_of(post(front, written({"inputs": "a"}), Authorization="Bearer k"))) == 1


def test_lines_are_logged_and_counted_as_calls(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    front = OpenAIFront(says("ok"))
    body = written({"inputs": "a"}, {"messages": []}, {"inputs": "c"})
    post(front, body, X_Request_Id="job", X_Amzn_SageMaker_Inference_Id="inf")
    logged = [vars(record) for record in caplog.records if record.message == "request"]
    assert {(line["request_id"], line["status"], line["inference_id"]) for line in logged} == {
        ("job/1", 200, "inf"),
        ("job/2", 400, "inf"),
        ("job/3", 200, "inf"),
        ("job", 200, None),
    }
    page = parse(front.app.test_client().get("/metrics").data)[1]
    assert page["tgi_request_count"] == [({}, 3.0)]
    counted = [
        (labels["status"], n)
        for labels, n in page["textgen_http_requests"]
        if labels["route"] == "/invocations"
    ]
    assert counted == [("200", 1.0)]


def test_places_are_given_back(front: OpenAIFront) -> None:
    small = OpenAIFront(letters, limits=LimitsConfig(max_concurrent_requests=2))
    body = written(*({"inputs": letter} for letter in "abcdefgh"), {"inputs": ""})
    for _ in range(2):
        answers = lines_of(post(small, body))
        assert [answer[0]["generated_text"] for answer in answers[:-1]] == [
            f"{c}{c.upper()}0" for c in "abcdefgh"
        ]


def test_places_of_lines_that_never_began_are_given_back(
    front: OpenAIFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = front.app.extensions[EXTENSION].line_places
    before = places.counter
    # The client leaves when two lines have their places and neither has had a turn to begin.
    monkeypatch.setattr(ClientConnection, "is_gone", lambda _: places.counter <= before - 2)
    post(front, written({"inputs": "a"}, {"inputs": "b"}, {"inputs": "c"}))
    gevent.sleep(0)
    assert places.counter == before and front.engine.requests == []


def test_a_body_among_other_requests(front: OpenAIFront) -> None:
    """What a line chooses (here OpenAI's errors) is not seen by the body or by other lines."""
    answers = lines_of(post(front, written({"messages": []}, {"inputs": ""}, {"prompt": 1})))
    assert [type(answer["error"]) for answer in answers] == [dict, str, dict]
    assert threading.active_count() < 50
