"""`/invocations`: which API a body speaks, how its answer is framed, and whose errors it gets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.api.routes.invocations import ROUTES
from serving.config import ModelConfig
from serving.errors import GenerationFailed
from tests.api.fake_engine import FakeStream
from tests.api.openai_client import OpenAIFront, says

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = {"messages": MESSAGES}


@pytest.fixture
def front() -> OpenAIFront:
    return OpenAIFront(says("ok"))


def post(front: OpenAIFront, body: Any, status: int = 200, **headers: str) -> Any:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    response = front.app.test_client().post("/invocations", json=body, headers=names)
    assert response.status_code == status, response.get_data(as_text=True)
    return response.json


@pytest.mark.parametrize(
    ("body", "api"),
    [
        ({"inputs": "a"}, "native"),
        ({"inputs": "a", "messages": MESSAGES, "prompt": "b", "input": "c"}, "native"),
        ({"messages": MESSAGES}, "chat.completion"),
        ({"prompt": "a"}, "text_completion"),
    ],
)
def test_the_first_known_key_decides(front: OpenAIFront, body: dict[str, Any], api: str) -> None:
    answer = post(front, body)
    assert answer == [{"generated_text": "aok"}] if api == "native" else answer["object"] == api


def test_what_is_not_supported_is_named(front: OpenAIFront) -> None:
    for body in ({"input": "a"}, {"input": [], "model": "x"}):
        error = post(front, body, 422)["error"]
        assert "`input` is not supported" in error and "`messages`" in error and "`prompt`" in error
    assert "`inputs` is missing" in post(front, {}, 422)["error"]
    assert front.engine.requests == []


def test_openai_bodies_get_openai_errors(front: OpenAIFront) -> None:
    for body in ({"messages": MESSAGES, "n": 0}, {"prompt": "a", "n": 0}):
        error = post(front, body, 400)["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", "n")
    assert post(front, {"messages": [], "prompt": "a"}, 400)["error"]["param"] == "messages"
    assert post(front, {"messages": MESSAGES, "prompt": "a"}, 400)["error"]["param"] == "prompt"
    assert post(front, {"inputs": "a", "parameters": {"top_k": 0}}, 422)["error_type"] == "validation"


def test_any_model_means_the_served_one(front: OpenAIFront) -> None:
    for name in ("anything", "", "tgi", "demo"):
        for body in ({"messages": MESSAGES, "model": name}, {"prompt": "a", "model": name}):
            assert post(front, body)["model"] == (name or "demo")
    renamed = OpenAIFront(says("ok"), model=ModelConfig(served_names=("other",)))
    assert post(renamed, {"prompt": "a", "model": "x"})["model"] == "x"


@pytest.mark.parametrize("body", [{"inputs": "a"}, {"messages": MESSAGES}, {"prompt": "a"}])
def test_adapters_are_strict(front: OpenAIFront, body: dict[str, Any]) -> None:
    post(front, body, 404, X_Amzn_SageMaker_Adapter_Identifier="mine")
    if "inputs" not in body:
        assert post(front, {**body, "adapter_id": "mine"}, 404)["error"]["param"] == "adapter_id"
    assert front.engine.requests == []


@pytest.mark.parametrize("accept", ["application/jsonlines", "text/html, application/jsonlines;q=0.9"])
@pytest.mark.parametrize("body", [{"inputs": "a"}, {"messages": MESSAGES}, {"prompt": "a"}])
def test_json_lines(front: OpenAIFront, body: dict[str, Any], accept: str) -> None:
    client = front.app.test_client()
    response = client.post("/invocations", json={**body, "stream": True}, headers={"Accept": accept})
    assert response.status_code == 200
    assert response.content_type == "application/jsonlines"
    text = response.get_data(as_text=True)
    assert text.endswith("\n") and "data:" not in text and "DONE" not in text
    events = [json.loads(line) for line in text.splitlines()]
    if "inputs" in body:
        assert "".join(event["token"]["text"] for event in events[:-1]) == "ok"
    else:
        assert events[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json", "*/*", "text/html", None])
@pytest.mark.parametrize("body", [{"inputs": "a"}, {"messages": MESSAGES}, {"prompt": "a"}])
def test_everything_else_is_server_sent_events(
    front: OpenAIFront, body: dict[str, Any], accept: str | None
) -> None:
    headers = {} if accept is None else {"Accept": accept}
    response = front.app.test_client().post("/invocations", json={**body, "stream": True}, headers=headers)
    assert (response.status_code, response.content_type) == (200, "text/event-stream")
    events = response.get_data(as_text=True).removesuffix("\n\n").split("\n\n")
    assert all(event.startswith("data: ") for event in events)
    assert (events[-1] == "data: [DONE]") == ("inputs" not in body)


def test_an_error_in_json_lines() -> None:
    def script(stream: FakeStream) -> None:
        stream.accept()
        stream.tokens("a")
        stream.put(GenerationFailed("broken"))

    front = OpenAIFront(script)
    for body in ({"inputs": "a"}, {"messages": MESSAGES}):
        response = front.app.test_client().post(
            "/invocations", json={**body, "stream": True}, headers={"Accept": "application/jsonlines"}
        )
        last = json.loads(response.get_data(as_text=True).splitlines()[-1])
        assert "broken" in json.dumps(last["error"])


@pytest.mark.parametrize("content_type", [None, "", "application/octet-stream", "application/json"])
def test_content_type_may_be_missing(front: OpenAIFront, content_type: str | None) -> None:
    for body in ({"inputs": "a"}, CHAT, {"prompt": "a"}):
        response = front.app.test_client().post(
            "/invocations", data=json.dumps(body), content_type=content_type
        )
        assert response.status_code == 200


@pytest.mark.parametrize("attributes", ["route={}", "a=b, route={}", "a=b;route={} ;c=d", "route = {}"])
def test_route_attribute(front: OpenAIFront, attributes: str) -> None:
    body = {"inputs": "a", "prompt": "b", "messages": MESSAGES}

    def ask(route: str, body: Any, status: int = 200) -> Any:
        named = attributes.format(route)
        return post(front, body, status, X_Amzn_SageMaker_Custom_Attributes=named)

    assert ask("/", {"inputs": "a"}) == [{"generated_text": "aok"}]
    assert ask("/generate", {"inputs": "a"}) == {"generated_text": "ok"}
    assert ask("/v1/chat/completions", CHAT)["object"] == "chat.completion"
    assert ask("/v1/completions", {"prompt": "a"})["object"] == "text_completion"
    assert ask("/v1/completions", body, 400)["error"]["type"] == "invalid_request_error"
    error = ask("/v2/x", body, 422)["error"]
    assert "/v2/x" in error and all(route in error for route in ROUTES)


def test_route_attribute_streams(front: OpenAIFront) -> None:
    headers = {"X-Amzn-SageMaker-Custom-Attributes": "route=/generate_stream"}
    response = front.app.test_client().post("/invocations", json={"inputs": "a"}, headers=headers)
    assert response.content_type == "text/event-stream"
    assert response.get_data(as_text=True).count("data:") == 3


def test_other_custom_attributes_decide_nothing(front: OpenAIFront) -> None:
    for attributes in ("", "c000b4f9-df62", "myroute=/x", "a=b,c=d"):
        assert post(front, CHAT, X_Amzn_SageMaker_Custom_Attributes=attributes)["object"] == "chat.completion"
