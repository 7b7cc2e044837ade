"""No error is longer than what the platform shows of one (1 KB), whatever a client sends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.api.app import create_app
from serving.config import ServerConfig, Stage
from tests.api.fake_engine import FakeEngine, FakeText
from tests.api.openai_client import MESSAGES, OpenAIFront, says


@pytest.fixture
def front() -> OpenAIFront:
    return OpenAIFront(says("ok"))


LONG = "\u00e9" * 20_000
QUOTES = '"\\\x7f\u2028' * 5000


@pytest.mark.parametrize("long", [LONG, QUOTES, "x" * 20_000], ids=["letters", "escapes", "plain"])
@pytest.mark.parametrize("lines", [False, True])
def test_no_error_is_longer_than_the_platform_shows(front: OpenAIFront, long: str, lines: bool) -> None:
    deep: Any = long
    for _ in range(20):
        deep = {long: deep}
    bodies: list[Any] = [
        {long: 1},
        {"input": long},
        {"inputs": 1, long: 2},
        {"inputs": {long: long}},
        {"inputs": "a", "parameters": {"max_new_tokens": long}},
        {"inputs": "a", "parameters": {"grammar": {"type": long, "value": long}}},
        {"inputs": "a", "parameters": {"grammar": {"type": "regex", "value": deep}}},
        {"inputs": "a", "parameters": {"stop": [long, 1]}},
        {"inputs": "a", "adapter_id": long},
        {"inputs": long},
        {"prompt": "a", long: 1},
        {"prompt": "a", "response_format": {"type": long}},
        {"prompt": [long]},
        {"messages": [{"role": long, "content": "a"}]},
        {"messages": [{"role": "user", "content": [{"type": long}]}]},
        {"messages": [{"role": "user", "content": long}]},
        {"messages": MESSAGES, "tool_choice": {"type": "function", "function": {"name": long}}},
        {
            "messages": MESSAGES,
            "tools": [{"type": "function", "function": {"name": long}}],
            "tool_choice": long,
        },
        {"messages": MESSAGES, "logit_bias": {long: 1}},
        {"messages": MESSAGES, "model": 7, long: None},
        {
            "messages": MESSAGES,
            "response_format": {"type": "json_schema", "json_schema": {"name": long, "schema": deep}},
        },
    ]
    client = front.app.test_client()
    if lines:
        data = "".join(json.dumps(body) + "\n" for body in bodies)
        response = client.post("/invocations", data=data, content_type="application/jsonlines")
        answers = response.data.splitlines()
        assert len(answers) == len(bodies)
    else:
        responses = [client.post("/invocations", json=body) for body in bodies]
        assert [body for body, each in zip(bodies, responses, strict=True) if each.status_code < 400] == []
        answers = [each.data for each in responses]
    assert max(map(len, answers)) < 1024
    assert all("error" in json.loads(answer) for answer in answers)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "x/" + "y" * 7000},
        {"Content-Type": "application/json", "Content-Encoding": "z" * 7000},
        {"Content-Type": "application/json", "X-Amzn-SageMaker-Custom-Attributes": "route=" + "/x" * 3000},
        {"Content-Type": "application/json", "X-Amzn-SageMaker-Adapter-Identifier": "a" * 7000},
        {
            "Content-Type": "application/json",
            "X-Request-Id": "i" * 7000,
            "X-Amzn-SageMaker-Target-Model": "b" * 7000,
        },
    ],
)
def test_nor_where_headers_are_long(front: OpenAIFront, headers: dict[str, str]) -> None:
    response = front.app.test_client().post("/invocations", data=b'{"inputs": "a"}', headers=headers)
    assert response.status_code >= 400
    assert len(response.data) < 1024 and response.json["error"]


def test_nor_where_the_start_failed_for_a_long_reason() -> None:
    reason = Stage(stage="failed", detail="wéight " * 1000)
    app = create_app(FakeEngine(), FakeText, ServerConfig(), lambda: reason)
    client = app.test_client()
    for response in (client.get("/ping"), client.post("/invocations", json={"inputs": "a"})):
        assert response.status_code == 503
        assert len(response.data) < 1024 and "wéight" in json.dumps(response.json, ensure_ascii=False)
