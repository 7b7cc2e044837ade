"""UNARY_DEADLINE_S on `/invocations`: the text so far, marked, or an error where a part is of no use."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import pytest

from serving.api.call import CUSTOM_ATTRIBUTES
from serving.config import HttpConfig
from serving.messages import RequestAccepted, SequenceOutput
from tests.api.fake_engine import FakeStream
from tests.api.openai_client import MESSAGES, OpenAIFront, ToolText, says
from tests.unit.test_metrics import parse

DEADLINE_S = 0.5  # more than a busy machine takes to hand a request to the engine
CHAT = {"messages": MESSAGES}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}


def unfinished(*texts: str) -> Any:
    """Sequence i of every prompt says `texts[i]` and then nothing more."""

    def script(stream: FakeStream) -> None:
        stream.put(RequestAccepted(request_id=stream.request.request_id))
        for index, text in enumerate(texts[: stream.request.params.n]):
            if text:
                stream.tokens(text, index=index)

    return script


def new_front(script: Any, *, deadline_s: float = DEADLINE_S, **options: Any) -> OpenAIFront:
    http = HttpConfig(unary_deadline_s=deadline_s, batch_transform=options.pop("batch_transform", False))
    return OpenAIFront(script, http=http, **options)


def post(front: OpenAIFront, body: Any, path: str = "/invocations") -> Any:
    return front.app.test_client().post(path, json=body)


def cut(front: OpenAIFront, body: Any) -> Any:
    """The answer of a call that the deadline ended, with the signs that it did."""
    started_s = time.monotonic()
    response = post(front, body)
    assert DEADLINE_S <= time.monotonic() - started_s < DEADLINE_S + 10.0
    assert response.status_code == 200, response.get_data(as_text=True)
    assert response.headers[CUSTOM_ATTRIBUTES] == "deadline=reached"
    assert response.content_type == "application/json"
    assert {request_id for request_id, _ in front.engine.aborted} == {
        request.request_id for request in front.engine.requests
    }
    return response.json


def refused(front: OpenAIFront, body: Any) -> Any:
    response = post(front, body)
    assert CUSTOM_ATTRIBUTES not in response.headers
    assert len(response.data) < 1024
    assert front.engine.aborted
    return response


def test_native_text_so_far() -> None:
    body = {
        "inputs": "a",
        "parameters": {"details": True, "return_full_text": False, "decoder_input_details": True},
    }
    (answer,) = cut(new_front(unfinished("hel")), body)
    assert answer["generated_text"] == "hel"
    details = answer["details"]
    assert (details["finish_reason"], details["generated_tokens"]) == ("length", 3)
    assert [token["text"] for token in details["tokens"]] == ["h", "e", "l"]


def test_best_of_is_the_best_of_those_that_began() -> None:
    body = {"inputs": "a", "parameters": {"details": True, "best_of": 2, "do_sample": True}}
    (answer,) = cut(new_front(unfinished("", "so")), body)
    assert answer["generated_text"] == "aso"
    (other,) = answer["details"]["best_of_sequences"]
    assert (other["finish_reason"], other["generated_tokens"], other["generated_text"]) == ("length", 0, "a")


def test_chat_text_so_far() -> None:
    answer = cut(new_front(unfinished("one", "")), {**CHAT, "n": 2, "logprobs": True})
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["one", ""]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length", "length"]
    assert len(answer["choices"][0]["logprobs"]["content"]) == 3
    assert answer["usage"]["completion_tokens"] == 3


def test_a_choice_that_ended_keeps_its_end() -> None:
    def script(stream: FakeStream) -> None:
        stream.accept()
        stream.tokens("done$", "eos_token", index=0)
        stream.tokens("half", index=1)

    answer = cut(new_front(script), {**CHAT, "n": 2})
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop", "length"]
    assert answer["usage"]["completion_tokens"] == 9


@pytest.mark.parametrize("logprobs", [None, 1])
def test_completions_of_several_prompts(logprobs: int | None) -> None:
    def script(stream: FakeStream) -> None:
        """The second prompt is still waiting to be admitted."""
        if bytes(stream.request.prompt_token_ids) == b"first":
            unfinished("x", "yz")(stream)

    body = {"prompt": ["first", "second"], "n": 2, "best_of": 2, "echo": True, "logprobs": logprobs}
    answer = cut(new_front(script), {**body, "seed": 1})
    assert [choice["text"] for choice in answer["choices"]] == ["firstx", "firstyz", "second", "second"]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert answer["usage"] == {
        "prompt_tokens": 11,
        "completion_tokens": 3,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_half_a_character_and_half_a_stop_string() -> None:
    def script(stream: FakeStream) -> None:
        stream.accept()
        stream.put(
            SequenceOutput(
                request_id=stream.request.request_id,
                token_ids=list(b"hi EN\xe2\x82"),
                logprobs=[-0.25] * 7,
            )
        )

    answer = cut(new_front(script), {**CHAT, "stop": ["END"]})
    assert answer["choices"][0]["message"]["content"] == "hi EN"


@pytest.mark.parametrize(
    ("body", "style"),
    [
        ({"inputs": "a", "parameters": {"grammar": {"type": "regex", "value": "a+"}}}, "native"),
        ({**CHAT, "response_format": SCHEMA}, "openai"),
        ({**CHAT, "tools": TOOLS, "tool_choice": "required"}, "openai"),
        (
            {**CHAT, "tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "weather"}}},
            "openai",
        ),
        ({"prompt": "a", "response_format": SCHEMA}, "openai"),
    ],
)
def test_part_of_a_given_format_is_an_error(body: dict[str, Any], style: str) -> None:
    response = refused(new_front(unfinished("{"), text=ToolText()), body)
    assert response.status_code == 424
    answer = response.json
    message = answer["error"] if style == "native" else answer["error"]["message"]
    assert (answer["error_type"] if style == "native" else answer["error"]["code"]) == "deadline"
    for fix in ("stream", "fewer tokens", "asynchronous inference", "UNARY_DEADLINE_S"):
        assert fix in message
    assert f"{DEADLINE_S} s" in message


@pytest.mark.parametrize("accepted", [False, True])
@pytest.mark.parametrize("body", [{"inputs": "a"}, CHAT, {"prompt": ["a", "b"]}])
def test_no_token_by_then_is_overload(body: dict[str, Any], accepted: bool) -> None:
    response = refused(new_front(unfinished("") if accepted else lambda stream: None), body)
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert "no token" in response.get_data(as_text=True)


def test_calls_that_are_whole_stay_and_the_cut_one_goes() -> None:
    whole = '<tool_call>{"name": "weather", "arguments": {"a": 1}}</tool_call>'
    half = '<tool_call>{"name": "weather", "arguments": {"b": '
    body = {**CHAT, "tools": TOOLS}
    answer = cut(new_front(unfinished(whole + half), text=ToolText()), body)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "length"
    (call,) = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"a": 1}

    answer = cut(new_front(unfinished("I look. " + half), text=ToolText()), body)
    message = answer["choices"][0]["message"]
    assert message["content"].strip() == "I look." and "tool_calls" not in message

    response = refused(new_front(unfinished(half), text=ToolText()), body)
    assert response.status_code == 424 and "a tool call" in response.json["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/invocations", {"inputs": "a", "stream": True}),
        ("/invocations", {**CHAT, "stream": True}),
        ("/generate", {"inputs": "a"}),
        ("/", {"inputs": "a"}),
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": "a"}),
    ],
)
def test_streams_and_other_routes_have_no_deadline(path: str, body: dict[str, Any]) -> None:
    front = new_front(says("hello"), deadline_s=1e-9)
    response = post(front, body, path)
    assert response.status_code == 200
    assert CUSTOM_ATTRIBUTES not in response.headers
    response.close()


@pytest.mark.parametrize("options", [{"deadline_s": 0.0}, {"deadline_s": 1e-9, "batch_transform": True}])
def test_no_deadline_where_it_is_off(options: dict[str, Any]) -> None:
    response = post(new_front(says("hello"), **options), {"inputs": "a"})
    assert (response.status_code, response.json) == (200, [{"generated_text": "ahello"}])
    assert CUSTOM_ATTRIBUTES not in response.headers


def test_an_answer_in_time_bears_no_mark() -> None:
    response = post(new_front(says("hello"), deadline_s=60.0), {"inputs": "a"})
    assert response.status_code == 200 and CUSTOM_ATTRIBUTES not in response.headers


def test_a_deadline_that_passed_before_the_engine_was_asked() -> None:
    front = new_front(says("hello"), deadline_s=1e-9)
    assert post(front, {"inputs": "a"}).status_code == 429
    assert front.engine.requests == []


def test_it_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    front = new_front(unfinished("hel"))
    post(front, {"inputs": "a"})
    front.engine.script = lambda stream: None
    post(front, {"inputs": "a"})
    lines = [vars(record) for record in caplog.records if record.message == "request"]
    assert [(line["status"], line["deadline"], line["finish_reason"]) for line in lines] == [
        (200, "reached", "length"),
        (429, "reached", "none"),
    ]
    page = parse(front.app.test_client().get("/metrics").data)[1]
    assert sorted((labels["answer"], n) for labels, n in page["textgen_deadline_reached"]) == [
        ("none", 1.0),
        ("partial", 1.0),
    ]
    assert [(labels["err"], n) for labels, n in page["tgi_request_failure"]] == [("overloaded", 1.0)]
