"""What the platform's headers decide on `/invocations`, and what they do not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.config import HttpConfig
from tests.api.openai_client import OpenAIFront, says
from tests.api.test_invocations import CHAT, post


@pytest.fixture
def front() -> OpenAIFront:
    return OpenAIFront(says("ok"))


@pytest.mark.parametrize("accept", [None, "", "*/*", "*/*;q=0.8"])
@pytest.mark.parametrize(
    ("default", "content_type"),
    [
        ("application/jsonlines", "application/jsonlines"),
        ("application/JSONLines; q=1", "application/jsonlines"),
        ("application/json", "text/event-stream"),
        ("nonsense", "text/event-stream"),
        (None, "text/event-stream"),
    ],
)
def test_the_default_accept_is_for_those_who_say_nothing(
    accept: str | None, default: str | None, content_type: str
) -> None:
    client = OpenAIFront(says("ok"), http=HttpConfig(default_accept=default)).app.test_client()
    headers = {} if accept is None else {"Accept": accept}
    streamed = client.post("/invocations", json={"inputs": "a", "stream": True}, headers=headers)
    assert (streamed.status_code, streamed.content_type) == (200, content_type)
    assert (
        client.post("/invocations", json={"inputs": "a"}, headers=headers).content_type == "application/json"
    )
    named = client.post(
        "/invocations", json={"inputs": "a", "stream": True}, headers={"Accept": "text/event-stream"}
    )
    assert named.content_type == "text/event-stream"


@pytest.mark.parametrize("name", ["other.tar.gz", "s3://bucket/adapter/", "x" * 5000])
@pytest.mark.parametrize("body", [{"inputs": "a"}, CHAT, {"prompt": "a"}])
def test_a_target_model_is_never_the_base_model(front: OpenAIFront, body: dict[str, Any], name: str) -> None:
    error = post(front, body, 404, X_Amzn_SageMaker_Target_Model=name)
    assert "target model" in error["error"] and "inference components" in error["error"]
    assert len(json.dumps(error)) < 1024
    assert front.engine.requests == []


def test_headers_of_the_platform_that_mean_nothing_here(front: OpenAIFront) -> None:
    headers = {
        "X_Amzn_SageMaker_Target_Variant": "blue",
        "X_Amzn_SageMaker_Target_Container_Hostname": "container-0.local",
        "X_Amzn_SageMaker_Enable_Explanations": "`true`",
        "X_Amzn_SageMaker_Inference_Component": "component",
        "X_Amzn_SageMaker_Prefix_Aware_Id": "prefix",
        "X_Amzn_SageMaker_Inference_Id": "x" * 64,
        "X_Amzn_SageMaker_Something_New": "y" * 1024,
        "X_Amzn_SageMaker_Target_Model": "",
        "User_Agent": "AHC/2.0",
        "Host": "model.aws.local:8080",
    }
    assert post(front, {"inputs": "a"}, **headers) == [{"generated_text": "aok"}]
