"""Streams of `/v1/responses`: order and shape of the events, and that they join to the whole answer."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from serving.errors import GenerationFailed
from tests.api.fake_engine import FakeStream
from tests.api.openai_client import OpenAIFront, ToolText, says

WEATHER: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": None}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


class Sum(BaseModel):
    total: int


def events_of(front: OpenAIFront, **fields: object) -> list[dict[str, Any]]:
    """The raw events, each of which the client's types take without any leniency."""
    answer = front.app.test_client().post("/v1/responses", json={"input": "hi", "stream": True, **fields})
    assert answer.status_code == 200 and answer.content_type == "text/event-stream"
    *blocks, end = answer.get_data(as_text=True).split("\n\n")
    assert end == ""
    events = []
    for number, block in enumerate(blocks):
        name, _, data = block.partition("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}" and event["sequence_number"] == number
        EVENT.validate_json(data.removeprefix("data: "), strict=True)
        events.append(event)
    return events


def types_of(events: list[dict[str, Any]]) -> list[str]:
    """In order, without repetitions."""
    types = [event["type"].removeprefix("response.") for event in events]
    return [name for i, name in enumerate(types) if i == 0 or types[i - 1] != name]


def plain(response: dict[str, Any]) -> str:
    """What does not change from call to call."""
    shown = json.dumps({k: v for k, v in response.items() if k not in ("id", "created_at", "completed_at")})
    return re.sub(r'"(msg|rs|fc|call)_\w+"', '"id"', shown)


def test_order_of_events() -> None:
    front = OpenAIFront(says(f"<think>so</think>Look.{CALL}"), text=ToolText(thinks=True))
    events = events_of(front, tools=[WEATHER])
    assert types_of(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    added = [event for event in events if event["type"] == "response.output_item.added"]
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert (
        [event["output_index"] for event in added] == [event["output_index"] for event in done] == [0, 1, 2]
    )
    assert [event["item"]["id"] for event in added] == [event["item"]["id"] for event in done]
    assert {event["item"]["status"] for event in added} == {"in_progress"}
    assert added[2]["item"]["arguments"] == "" and added[2]["item"]["name"] == "weather"
    assert events[0]["response"]["output"] == [] and events[0]["response"]["usage"] is None
    assert events[0]["response"]["status"] == "in_progress"
    assert events[-1]["response"]["output"] == [event["item"] for event in done]
    assert len({event["response"]["id"] for event in (events[0], events[1], events[-1])}) == 1


TEXTS = st.lists(
    st.sampled_from(["<think>", "</think>", "a", "ö", "😀", "\n", " ", "<tool", "Look.", CALL, CALL + "\n"]),
    max_size=8,
).map("".join)


def check_stream(front: OpenAIFront, text: str, cut: int, finish: str) -> None:
    fields: dict[str, Any] = {"tools": [WEATHER], "include": ["message.output_text.logprobs"], "input": "hi"}
    front.engine.script = says(text, cut=cut, finish=finish)
    events = events_of(front, **fields)
    final = events[-1]["response"]
    assert events[-1]["type"] == ("response.incomplete" if finish == "length" else "response.completed")
    items: dict[int, str] = {}
    logprobs: dict[int, list[Any]] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            index = event["output_index"]
            items[index] = items.get(index, "") + event["delta"]
            logprobs.setdefault(index, []).extend(event.get("logprobs", []))
    for index, item in enumerate(final["output"]):
        part = item if item["type"] == "function_call" else item["content"][0]
        assert items.get(index, "") == part.get("arguments", part.get("text"))
        assert logprobs.get(index, []) == part.get("logprobs", [])
        if item["type"] == "message":
            assert (
                bytes(byte for token in part["logprobs"] for byte in token["bytes"]).decode() == part["text"]
            )
    front.engine.script = says(text, cut=1 + cut % 7, finish=finish)
    answer = front.app.test_client().post("/v1/responses", json=fields)
    assert answer.json is not None
    assert plain(answer.json) == plain(final)
    Response.model_validate(final, strict=True)


def test_stream_is_the_whole_answer(full: bool) -> None:
    front = OpenAIFront(text=ToolText(thinks=True))

    @settings(max_examples=2000 if full else 60, deadline=None)
    @given(TEXTS, st.integers(1, 40), st.sampled_from(["eos_token", "length"]))
    def check(text: str, cut: int, finish: str) -> None:
        check_stream(front, text or "a", cut, finish)

    check()


def test_helper_of_the_client() -> None:
    front = OpenAIFront(says('{"total": 3}'))
    with front.client.responses.stream(model="demo", input="1+2", text_format=Sum) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == '{"total": 3}' == final.output_text
    assert final.output_parsed == Sum(total=3)


def test_helper_of_the_client_with_tools() -> None:
    front = OpenAIFront(says(f"<think>so</think>Look.{CALL}{CALL}"), text=ToolText(thinks=True))
    with front.client.responses.stream(model="demo", input="hi", tools=[WEATHER]) as stream:
        types = {event.type for event in stream}
        final = stream.get_final_response()
    assert "response.function_call_arguments.delta" in types and "response.reasoning_text.delta" in types
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]


def test_stream_of_the_client() -> None:
    front = OpenAIFront(says("hellö"))
    events = list(
        front.client.responses.create(
            model="demo", input="hi", stream=True, stream_options={"include_obfuscation": False}
        )
    )
    assert [e.delta for e in events if e.type == "response.output_text.delta"] == list("hellö")
    assert events[-1].type == "response.completed" and events[-1].response.output_text == "hellö"


def test_text_behind_a_call_is_a_message_of_its_own() -> None:
    front = OpenAIFront(says(f"a{CALL}b"), text=ToolText())
    items = events_of(front, tools=[WEATHER])[-1]["response"]["output"]
    assert [item["type"] for item in items] == ["message", "function_call", "message"]


def fails(stream: FakeStream) -> None:
    stream.accept()
    stream.tokens("he")
    stream.put(GenerationFailed("the worker died"))


def test_failure_in_the_stream() -> None:
    events = events_of(OpenAIFront(fails))
    assert types_of(events)[-3:] == ["output_text.delta", "error", "failed"]
    error, failed = events[-2:]
    assert (error["code"], error["param"]) == ("server_error", None) and "the worker died" in error["message"]
    response = failed["response"]
    assert response["status"] == "failed" and response["error"]["code"] == "server_error"
    assert response["error"]["message"] == error["message"]
    [message] = response["output"]
    assert message["status"] == "incomplete" and message["content"][0]["text"] == "he"


def test_failure_of_the_whole_answer() -> None:
    answer = OpenAIFront(fails).app.test_client().post("/v1/responses", json={"input": "hi"})
    assert answer.status_code == 500 and answer.json is not None
    assert "the worker died" in answer.json["error"]["message"]


@pytest.mark.parametrize("finish", ["abort", "error"])
def test_generation_that_was_given_up(finish: str) -> None:
    events = events_of(OpenAIFront(says("ab", finish=finish)))
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
