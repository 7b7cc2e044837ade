"""Today's `openai` client on `/v1/responses`: what it reads is what was generated."""

from __future__ import annotations

import json
import re
from typing import Any

import openai
import pytest
from openai.types.responses import FunctionToolParam, Response
from pydantic import BaseModel

from serving.config import LimitsConfig
from serving.errors import InvalidRequest, Overloaded
from tests.api.openai_client import OpenAIFront, ToolText, says

WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "weather",
    "description": "the weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
TIME: FunctionToolParam = {"type": "function", "name": "time", "parameters": None, "strict": None}
TWO_CALLS = (
    'Look.<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
)


class Sum(BaseModel):
    total: int


def post(front: OpenAIFront, **fields: object) -> Response:
    """The raw answer, which the client's type takes without any leniency."""
    answer = front.app.test_client().post("/v1/responses", json=fields)
    assert answer.status_code == 200, answer.get_data(as_text=True)
    return Response.model_validate(answer.json, strict=True)


def prompt_of(front: OpenAIFront) -> str:
    return bytes(front.engine.requests[-1].prompt_token_ids).decode()


def test_text() -> None:
    front = OpenAIFront(says("hellö", num_cached_tokens=16))
    answer = front.client.responses.create(model="demo", input="hi")
    assert re.fullmatch(r"resp_[0-9a-f]{32}", answer.id)
    assert (answer.object, answer.model, answer.status) == ("response", "demo", "completed")
    assert answer.output_text == "hellö"
    [message] = answer.output
    assert message.type == "message" and re.fullmatch(r"msg_[0-9a-f]{32}", message.id)
    assert message.model_dump(exclude={"id", "phase"}) == {
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "hellö", "annotations": [], "logprobs": []}],
    }
    prompt = "user: hi\nassistant: "
    assert prompt_of(front) == prompt
    assert front.engine.requests[0].params.max_new_tokens == 256 - len(prompt)
    assert answer.usage is not None
    assert answer.usage.model_dump(exclude_none=True) == {
        "input_tokens": len(prompt),
        "input_tokens_details": {"cached_tokens": 16, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": len(prompt) + 7,
    }


def test_request_comes_back_with_the_answer() -> None:
    asked: dict[str, Any] = {
        "model": "tgi",
        "instructions": "Be brief.",
        "max_output_tokens": 9,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_logprobs": 0,
        "truncation": "disabled",
        "prompt_cache_key": "key",
        "safety_identifier": "someone",
        "user": "me",
        "store": False,
        "background": False,
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
    }
    front = OpenAIFront(says("ok"))
    answer = post(front, input="hi", previous_response_id=None, **asked)
    shown = answer.model_dump(exclude_unset=True)
    assert {name: shown[name] for name in asked} == asked
    assert (answer.error, answer.incomplete_details, answer.tools, answer.tool_choice) == (
        None,
        None,
        [],
        "auto",
    )
    assert answer.completed_at is not None and answer.completed_at >= answer.created_at
    assert prompt_of(front) == "system: Be brief.\nuser: hi\nassistant: "
    params = front.engine.requests[0].params
    assert (params.max_new_tokens, params.temperature, params.top_p) == (9, 0.5, 0.25)


def test_defaults() -> None:
    answer = post(OpenAIFront(says("ok")), input="hi")
    assert (answer.model, answer.temperature, answer.top_p, answer.top_logprobs) == ("demo", 1.0, 1.0, 0)
    assert answer.text is not None and answer.text.format is not None and answer.text.format.type == "text"
    assert (answer.instructions, answer.max_output_tokens, answer.metadata) == (None, None, {})
    assert answer.parallel_tool_calls and answer.truncation == "disabled"


def test_answer_that_is_cut_off() -> None:
    answer = post(OpenAIFront(says("hello", finish="length")), input="hi", max_output_tokens=5)
    assert answer.status == "incomplete" and answer.completed_at is None
    assert answer.incomplete_details is not None and answer.incomplete_details.reason == "max_output_tokens"
    [message] = answer.output
    assert message.type == "message" and message.status == "incomplete"
    assert answer.output_text == "hello"


def test_answer_of_nothing_is_an_empty_message() -> None:
    answer = post(OpenAIFront(says("")), input="hi")
    [message] = answer.output
    assert message.type == "message" and message.status == "completed" and answer.output_text == ""


def test_logprobs() -> None:
    front = OpenAIFront(says("ö!"))
    answer = post(front, input="hi", include=["message.output_text.logprobs"], top_logprobs=2)
    [message] = answer.output
    assert message.type == "message" and message.content[0].type == "output_text"
    logprobs = message.content[0].logprobs
    assert logprobs is not None
    assert bytes(byte for token in logprobs for byte in token.bytes).decode() == "ö!"
    assert [(token.logprob, len(token.top_logprobs)) for token in logprobs] == [(-0.25, 2)] * 3
    params = front.engine.requests[0].params
    assert params.raw_logprobs and params.top_n_tokens == 2


def test_tool_calls() -> None:
    text = ToolText()
    front = OpenAIFront(says(TWO_CALLS), text=text)
    answer = front.client.responses.create(model="demo", input="weather?", tools=[WEATHER, TIME])
    message, first, second = answer.output
    assert message.type == "message" and answer.output_text == "Look."
    assert first.type == "function_call" and second.type == "function_call"
    assert (first.name, json.loads(first.arguments), first.status) == (
        "weather",
        {"city": "Köln"},
        "completed",
    )
    assert json.loads(second.arguments) == {"city": "Ulm"}
    assert first.call_id != second.call_id and first.call_id.startswith("call_")
    assert first.id is not None and re.fullmatch(r"fc_[0-9a-f]{32}", first.id)
    assert [tool["function"]["name"] for tool in text.asked.tools] == ["weather", "time"]
    assert (
        text.asked.tools[0]["function"]["strict"] is True and "strict" not in text.asked.tools[1]["function"]
    )
    assert text.asked.parallel_tool_calls and text.asked.tool_choice == "auto"
    assert [tool.type for tool in answer.tools] == ["function", "function"]


@pytest.mark.parametrize(
    ("choice", "word", "named", "offered"),
    [
        ("none", "none", False, ["weather", "time"]),
        ("required", "required", False, ["weather", "time"]),
        ({"type": "function", "name": "time"}, "time", True, ["weather", "time"]),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "time"}]},
            "required",
            False,
            ["time"],
        ),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]},
            "auto",
            False,
            ["weather"],
        ),
    ],
)
def test_tool_choice(choice: object, word: str, named: bool, offered: list[str]) -> None:
    text = ToolText()
    front = OpenAIFront(says("ok"), text=text)
    answer = post(front, input="hi", tools=[WEATHER, TIME], tool_choice=choice)
    assert (text.asked.tool_choice, text.asked.named_tool) == (word, named)
    assert [tool["function"]["name"] for tool in text.asked.tools] == offered
    shown = answer.tool_choice if isinstance(answer.tool_choice, str) else answer.tool_choice.model_dump()
    assert shown == choice and len(answer.tools) == 2


def test_reasoning() -> None:
    front = OpenAIFront(says("<think>so</think>yes"), text=ToolText(thinks=True))
    answer = post(front, input="hi", include=["message.output_text.logprobs"])
    reasoning, message = answer.output
    assert reasoning.type == "reasoning" and reasoning.content is not None
    assert [part.text for part in reasoning.content] == ["so"]
    assert (reasoning.summary, reasoning.status) == ([], "completed")
    assert answer.output_text == "yes" and answer.usage is not None
    assert 2 <= answer.usage.output_tokens_details.reasoning_tokens <= len("<think>so</think>")
    assert message.type == "message" and message.content[0].type == "output_text"
    logprobs = message.content[0].logprobs
    assert logprobs is not None and [token.token for token in logprobs] == ["y", "e", "s"]


def test_parse() -> None:
    front = OpenAIFront(says('{"total": 3}'))
    answer = front.client.responses.parse(model="demo", input="1+2", text_format=Sum)
    assert answer.output_parsed == Sum(total=3)
    grammar = front.engine.requests[0].params.grammar
    assert grammar is not None and grammar.kind == "json_schema"
    assert json.loads(grammar.source)["properties"]["total"]["type"] == "integer"
    assert answer.text is not None and answer.text.format is not None
    assert answer.text.format.type == "json_schema" and answer.text.format.name == "Sum"


def test_parse_of_tool_arguments() -> None:
    call = '<tool_call>\n{"name": "Sum", "arguments": {"total": 3}}\n</tool_call>'
    front = OpenAIFront(says(call), text=ToolText())
    tool = openai.pydantic_function_tool(Sum)["function"]
    given: FunctionToolParam = {
        "type": "function",
        "name": tool["name"],
        "parameters": tool["parameters"],
        "strict": True,
    }
    [output] = front.client.responses.parse(model="demo", input="1+2", tools=[given]).output
    assert output.type == "function_call" and output.parsed_arguments == {"total": 3}


def test_json_object() -> None:
    front = OpenAIFront(says("{}"))
    post(front, input="hi", text={"format": {"type": "json_object"}})
    grammar = front.engine.requests[0].params.grammar
    assert grammar is not None and json.loads(grammar.source) == {"type": "object"}


def refusal(front: OpenAIFront, fields: dict[str, object], status: int = 400) -> dict[str, Any]:
    answer = front.app.test_client().post("/v1/responses", json=fields)
    assert answer.status_code == status, answer.get_data(as_text=True)
    assert answer.json is not None and set(answer.json) == {"error"}
    error: dict[str, Any] = answer.json["error"]
    assert error["request_id"] == answer.headers["x-request-id"]
    return error


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "no state"),
        ({"conversation": "conv_1"}, "conversation", "no state"),
        ({"prompt": {"id": "p"}}, "prompt", "no stored prompts"),
        ({"max_tool_calls": 1}, "max_tool_calls", "runs none"),
        ({"store": True}, "store", "nothing is stored"),
        ({"background": True}, "background", "only false"),
        ({"truncation": "auto"}, "truncation", 'only "disabled"'),
        ({"seed": 1}, "seed", "/v1/chat/completions"),
        ({"stop": "x"}, "stop", "/v1/chat/completions"),
        ({"messages": []}, "messages", "send `input`"),
        ({"max_tokens": 3}, "max_tokens", "max_output_tokens"),
        ({"response_format": {}}, "response_format", "text.format"),
        ({"nonsense": 1}, "nonsense", "not a parameter"),
        ({"temperature": 2.5}, "temperature", "from 0 to 2"),
        ({"max_output_tokens": 0}, "max_output_tokens", "at least 1"),
        ({"max_output_tokens": 1000}, "max_output_tokens", "1000 as `max_output_tokens`"),
        ({"input": "x" * 300}, "input", "maximum context length"),
        ({"input": 3}, "input", "3"),
        ({"input": []}, "input", "1 to 4096"),
        ({"top_logprobs": 3}, "top_logprobs", "include"),
        ({"top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
        ({"include": ["reasoning.encrypted_content"]}, "include", "in full"),
        ({"include": ["other"]}, "include", "only"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", 'only "medium"'),
        ({"text": {"format": {"type": "regex"}}}, "text.format.type", "regex"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema", "missing"),
        (
            {"text": {"format": {"type": "json_schema", "name": "", "schema": {}}}},
            "text.format.name",
            "1 to 64",
        ),
        ({"text": {"stop": "a"}}, "text", "stop"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "huge"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary", "in full"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options", "stream: true"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "not padded",
        ),
        ({"metadata": {"a": 1}}, "metadata[...]", "int"),
        ({"metadata": {"a": "b" * 513}}, "metadata", "512"),
        ({"metadata": {"a" * 65: "b"}}, "metadata", "64"),
        ({"metadata": {str(i): "b" for i in range(17)}}, "metadata", "16"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name", "letters"),
        ({"tools": [TIME, TIME]}, "tools[1].name", "another tool"),
        ({"tool_choice": "required"}, "tool_choice", "needs `tools`"),
        ({"tool_choice": "sometimes"}, "tool_choice", "sometimes"),
        ({"tools": [TIME], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice", "none of the"),
        (
            {"tools": [TIME], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}},
            "tool_choice.tools",
            "at least one",
        ),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type", "web_search"),
    ],
)
def test_refused_fields(fields: dict[str, object], param: str, said: str) -> None:
    error = refusal(OpenAIFront(says("ok")), {"input": "hi", **fields})
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param and said in error["message"], error


def test_input_is_required() -> None:
    assert refusal(OpenAIFront(), {"model": "demo"})["param"] == "input"


def test_other_models_and_adapters_are_not_found() -> None:
    front = OpenAIFront()
    with pytest.raises(openai.NotFoundError) as error:
        front.client.responses.create(model="gpt-9", input="hi")
    assert error.value.code == "model_not_found"
    assert refusal(front, {"input": "hi", "adapter_id": "a"}, 404)["param"] == "adapter_id"


def test_format_and_tools_exclude_each_other() -> None:
    fields: dict[str, object] = {"input": "hi", "tools": [TIME], "text": {"format": {"type": "json_object"}}}
    assert "cannot be combined" in refusal(OpenAIFront(says("ok"), text=ToolText()), fields)["message"]
    front = OpenAIFront(says("{}"), text=ToolText())
    assert post(front, **fields, tool_choice="none").output_text == "{}"


def test_structured_output_can_be_switched_off() -> None:
    front = OpenAIFront(says("{}"), limits=LimitsConfig(grammar_support=False), text=ToolText(grammars=False))
    error = refusal(front, {"input": "hi", "text": {"format": {"type": "json_object"}}})
    assert error["param"] == "text.format" and "switched off" in error["message"]
    error = refusal(front, {"input": "hi", "tools": [TIME], "tool_choice": "required"})
    assert error["code"] == "tool_error" and "switched off" in error["message"]
    assert post(front, input="hi", tools=[TIME]).output_text == "{}"


@pytest.mark.parametrize("stream", [False, True])
def test_refusals_of_the_engine_are_plain_errors(stream: bool) -> None:
    front = OpenAIFront(lambda stream: stream.put(InvalidRequest("`grammar` is too large", field="grammar")))
    assert refusal(front, {"input": "hi", "stream": stream})["param"] == "text.format"
    front.engine.submit_error = Overloaded("full", retry_after_s=3)
    with pytest.raises(openai.RateLimitError) as error:
        front.client.responses.create(model="demo", input="hi", stream=stream)
    assert error.value.response.headers["retry-after"] == "3"
