"""Today's `openai` client on the OpenAI routes: what it reads is what was generated."""

from __future__ import annotations

import json
import re
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

from serving.config import LimitsConfig, ModelConfig
from serving.errors import GenerationFailed, Overloaded
from serving.messages import SequenceOutput, TopToken
from tests.api.fake_engine import FakeStream, FakeText
from tests.api.openai_client import OpenAIFront, ToolText, letters, says

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TWO_CALLS = (
    'Look.<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
)


def test_chat() -> None:
    front = OpenAIFront(says("hellö"))
    answer = front.client.chat.completions.create(model="demo", messages=HI)
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", answer.id)
    assert (answer.object, answer.model) == ("chat.completion", "demo")
    assert answer.system_fingerprint is not None and answer.system_fingerprint.startswith("fp_")
    [choice] = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert choice.message.model_dump(exclude_unset=True) == {
        "role": "assistant",
        "content": "hellö",
        "refusal": None,
    }
    usage = answer.usage
    assert usage is not None and usage.prompt_tokens_details is not None
    prompt = "user: hi\nassistant: "
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(prompt), 7)
    assert usage.total_tokens == len(prompt) + 7
    [request] = front.engine.requests
    assert bytes(request.prompt_token_ids).decode() == prompt
    assert request.params.max_new_tokens == 256 - len(prompt)
    again = front.client.chat.completions.create(model="demo", messages=HI)
    assert again.id != answer.id and again.system_fingerprint == answer.system_fingerprint


def test_chat_usage_counts_cached_tokens() -> None:
    front = OpenAIFront(says("a", num_cached_tokens=16))
    usage = front.client.chat.completions.create(model="", messages=HI).usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 16


def test_sharing_a_prompt_is_no_cache_hit() -> None:
    def script(stream: FakeStream) -> None:
        stream.accept()
        stream.tokens("a", "length")
        stream.tokens("b", "length", index=1, num_cached_tokens=19)

    usage = OpenAIFront(script).client.chat.completions.create(model="", messages=HI, n=2).usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 0


def test_chat_stream() -> None:
    front = OpenAIFront(says("hellö"))
    chunks = list(
        front.client.chat.completions.create(
            model="demo", messages=HI, stream=True, stream_options={"include_usage": True}
        )
    )
    assert len({(chunk.id, chunk.created, chunk.model, chunk.system_fingerprint) for chunk in chunks}) == 1
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert deltas[0].model_dump(exclude_unset=True) == {"role": "assistant", "content": "", "refusal": None}
    assert [delta.content for delta in deltas[1:-1]] == list("hellö")
    assert deltas[-1].model_dump(exclude_unset=True) == {}
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * 6 + ["stop"]
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 7
    plain = list(front.client.chat.completions.create(model="demo", messages=HI, stream=True))
    assert len(plain) == len(chunks) - 1
    assert not any("usage" in chunk.model_fields_set for chunk in plain)


@pytest.mark.parametrize("route", ["chat", "completions"])
def test_usage_so_far_in_every_chunk(route: str) -> None:
    """vLLM's extension, which load generators ask for."""
    client = OpenAIFront(says("hellö", finish="length")).client
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks: list[Any]
    if route == "chat":
        chunks = list(
            client.chat.completions.create(model="demo", messages=HI, stream=True, stream_options=options)
        )
        counts = [1, 1, 2, 3, 4, 6, 6, 6]  # the first only begins; two bytes make the last character
    else:
        chunks = list(
            client.completions.create(model="demo", prompt="hi", stream=True, stream_options=options)
        )
        counts = [1, 2, 3, 4, 6, 6]
    assert [chunk.usage.completion_tokens for chunk in chunks] == counts
    assert {chunk.usage.total_tokens - chunk.usage.completion_tokens for chunk in chunks} == {
        chunks[-1].usage.prompt_tokens
    }
    assert chunks[-1].choices == []


def test_stream_ends_with_done() -> None:
    front = OpenAIFront(says("a"))
    body = {"messages": HI, "stream": True}
    response = front.app.test_client().post("/v1/chat/completions", json=body)
    assert response.content_type == "text/event-stream"
    events = response.get_data(as_text=True).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: ")) for event in events[:-2])


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices(stream: bool) -> None:
    front = OpenAIFront(says("one", "second", "3"))
    texts = ["", "", ""]
    if stream:
        order = []
        for chunk in front.client.chat.completions.create(model="demo", messages=HI, n=3, stream=True):
            [choice] = chunk.choices
            order.append(choice.index)
            texts[choice.index] += choice.delta.content or ""
        assert order[:6] == [0, 0, 1, 1, 2, 2]
    else:
        answer = front.client.chat.completions.create(model="demo", messages=HI, n=3)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        texts = [choice.message.content or "" for choice in answer.choices]
        assert answer.usage is not None and answer.usage.completion_tokens == 4 + 7 + 2
    assert texts == ["one", "second", "3"]
    assert front.engine.requests[0].params.n == 3


@pytest.mark.parametrize("stream", [False, True])
def test_stop_string_is_not_shown(stream: bool) -> None:
    front = OpenAIFront(says("one, two; three"))
    arguments: dict[str, Any] = {
        "model": "demo",
        "messages": HI,
        "stop": ["; three", "o;!"],
        "logprobs": True,
    }
    if stream:
        chunks = list(front.client.chat.completions.create(**arguments, stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        tokens = [
            t.token for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content or []
        ]
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        choice = front.client.chat.completions.create(**arguments).choices[0]
        assert choice.message.content is not None and choice.logprobs is not None
        text = choice.message.content
        tokens = [token.token for token in choice.logprobs.content or []]
        assert choice.finish_reason == "stop"
    assert (text, tokens) == ("one, two", list("one, two"))
    assert front.engine.streams[0].closed


def test_chat_logprobs() -> None:
    def script(stream: FakeStream) -> None:
        says("ö")(stream)
        assert stream.request.params.raw_logprobs and stream.request.params.top_n_tokens == 2

    front = OpenAIFront(script)
    arguments: dict[str, Any] = {"model": "demo", "messages": HI, "logprobs": True, "top_logprobs": 2}
    logprobs = front.client.chat.completions.create(**arguments).choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and logprobs.refusal is None
    assert b"".join(bytes(token.bytes or []) for token in logprobs.content).decode() == "ö"
    assert [token.logprob for token in logprobs.content] == [-0.25, -0.25]
    assert [len(token.top_logprobs) for token in logprobs.content] == [2, 2]
    assert logprobs.content[0].top_logprobs[0].bytes == [0xC3]
    streamed = [
        token
        for chunk in front.client.chat.completions.create(**arguments, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content or []
    ]
    assert [token.model_dump() for token in streamed] == [token.model_dump() for token in logprobs.content]


def test_impossible_tokens_have_a_logprob_that_json_can_hold() -> None:
    def script(stream: FakeStream) -> None:
        stream.accept()
        output = SequenceOutput(
            request_id=stream.request.request_id,
            token_ids=[97],
            logprobs=[-0.25],
            top_tokens=[[TopToken(97, -0.25), TopToken(98, float("-inf"))]],
            finish_reason="length",
        )
        stream.put(output)

    answer = OpenAIFront(script).client.chat.completions.create(
        model="demo", messages=HI, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert logprobs.content[0].top_logprobs[1].logprob == -9999.0


def test_tool_calls() -> None:
    text = ToolText()
    front = OpenAIFront(says(TWO_CALLS), text=text)
    choice = front.client.chat.completions.create(model="demo", messages=HI, tools=[WEATHER]).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Look.")
    calls = choice.message.tool_calls or []
    assert [call.type for call in calls] == ["function", "function"]
    assert len({call.id for call in calls}) == 2
    functions = [call.function for call in calls if call.type == "function"]
    assert [function.name for function in functions] == ["weather", "weather"]
    assert [json.loads(function.arguments) for function in functions] == [{"city": "Köln"}, {"city": "Ulm"}]
    sent = [
        *HI,
        choice.message.model_dump(),
        {"role": "tool", "tool_call_id": calls[0].id, "content": "rain"},
    ]
    assert front.client.chat.completions.create(model="demo", messages=sent, tools=[WEATHER]).choices  # type: ignore[arg-type]
    assert text.asked.messages[1]["tool_calls"][0]["id"] == calls[0].id
    assert text.asked.messages[2] == {"role": "tool", "tool_call_id": calls[0].id, "content": "rain"}


def test_only_tool_calls_leave_no_content() -> None:
    front = OpenAIFront(says(TWO_CALLS.removeprefix("Look.")), text=ToolText())
    choice = front.client.chat.completions.create(model="demo", messages=HI, tools=[WEATHER]).choices[0]
    assert choice.message.content is None and len(choice.message.tool_calls or []) == 2


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_streamed_tool_calls(cut: int) -> None:
    front = OpenAIFront(says(TWO_CALLS, cut=cut), text=ToolText())
    calls: dict[int, dict[str, str]] = {}
    content, finish = "", None
    for chunk in front.client.chat.completions.create(
        model="demo", messages=HI, tools=[WEATHER], stream=True
    ):
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        finish = choice.finish_reason or finish
        for piece in choice.delta.tool_calls or []:
            assert piece.function is not None
            if piece.index not in calls:
                assert piece.type == "function" and piece.id and piece.function.name
                calls[piece.index] = {"id": piece.id, "name": piece.function.name, "arguments": ""}
            else:
                assert piece.id is None and piece.type is None and piece.function.name is None
            calls[piece.index]["arguments"] += piece.function.arguments or ""
    assert (content, finish) == ("Look.", "tool_calls")
    assert [json.loads(call["arguments"]) for call in calls.values()] == [{"city": "Köln"}, {"city": "Ulm"}]
    assert len({call["id"] for call in calls.values()}) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_is_kept_apart(stream: bool) -> None:
    front = OpenAIFront(says("<think>why</think>because"), text=ToolText(thinks=True))
    reasoning, content = "", ""
    if stream:
        for chunk in front.client.chat.completions.create(model="demo", messages=HI, stream=True):
            delta = chunk.choices[0].delta
            reasoning += getattr(delta, "reasoning_content", "") or ""
            content += delta.content or ""
    else:
        message = front.client.chat.completions.create(model="demo", messages=HI).choices[0].message
        reasoning, content = message.reasoning_content, message.content or ""  # type: ignore[attr-defined]
    assert (reasoning, content) == ("why", "because")


def test_parse_helper_sends_a_schema() -> None:
    class Answer(BaseModel):
        city: str

    front = OpenAIFront(says('{"city":"Ulm"}'))
    parsed = front.client.chat.completions.parse(model="demo", messages=HI, response_format=Answer)
    assert parsed.choices[0].message.parsed == Answer(city="Ulm")
    grammar = front.engine.requests[0].params.grammar
    assert grammar is not None and grammar.kind == "json_schema"
    assert json.loads(grammar.source)["properties"]["city"]["type"] == "string"


def test_models() -> None:
    front = OpenAIFront(model=ModelConfig(served_names=("org/other", "demo")))
    models = list(front.client.models.list())
    assert [model.id for model in models] == ["demo", "org/other"]
    assert {model.object for model in models} == {"model"}
    assert front.client.models.retrieve("org/other") == models[1]
    with pytest.raises(openai.NotFoundError) as caught:
        front.client.models.retrieve("nobody/nothing")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("name", ["", "tgi", "dummy", "demo", "org/other"])
def test_names_of_the_served_model(name: str) -> None:
    front = OpenAIFront(model=ModelConfig(served_names=("org/other",)))
    answer = front.client.chat.completions.create(model=name, messages=HI)
    assert answer.model == (name or "demo")


def test_another_model_is_not_found() -> None:
    front = OpenAIFront()
    with pytest.raises(openai.NotFoundError) as caught:
        front.client.chat.completions.create(model="gpt-5", messages=HI)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        front.client.completions.create(model="gpt-5", prompt="a")
    assert front.engine.requests == []


def test_errors_are_the_clients_own() -> None:
    front = OpenAIFront()
    with pytest.raises(openai.BadRequestError) as refused:
        front.client.chat.completions.create(model="demo", messages=HI, temperature=2.5)
    assert (refused.value.type, refused.value.param) == ("invalid_request_error", "temperature")
    assert refused.value.request_id is not None
    with pytest.raises(openai.BadRequestError) as too_long:
        front.client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "a" * 300}])
    assert too_long.value.code == "context_length_exceeded"
    front.engine.submit_error = Overloaded("the queue is full", retry_after_s=2.0)
    with pytest.raises(openai.RateLimitError) as busy:
        front.client.chat.completions.create(model="demo", messages=HI)
    assert (busy.value.type, busy.value.response.headers["retry-after"]) == ("rate_limit_error", "2")
    assert busy.value.body["retry_after_s"] == 2


def test_error_in_a_stream() -> None:
    def script(stream: FakeStream) -> None:
        stream.accept()
        stream.tokens("a")
        stream.put(GenerationFailed("the device is gone"))

    front = OpenAIFront(script)
    with pytest.raises(openai.APIError, match="the device is gone"):
        list(front.client.chat.completions.create(model="demo", messages=HI, stream=True))
    body = {"messages": HI, "stream": True}
    response = front.app.test_client().post(
        "/v1/chat/completions", json=body, headers={"x-request-id": "r-1"}
    )
    events = response.get_data(as_text=True).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert json.loads(events[-3].removeprefix("data: "))["error"] == {
        "message": "Request failed during generation: the device is gone",
        "type": "server_error",
        "param": None,
        "code": "generation",
        "request_id": "r-1",
    }


def test_without_a_template_chats_are_refused() -> None:
    front = OpenAIFront(text=FakeText(None))
    with pytest.raises(openai.BadRequestError, match="template not found"):
        front.client.chat.completions.create(model="demo", messages=HI)
    assert front.client.completions.create(model="demo", prompt="a").choices[0].text == "hello"


def test_limits_of_the_configuration() -> None:
    front = OpenAIFront(letters, limits=LimitsConfig(max_n=1, max_client_batch_size=2))
    with pytest.raises(openai.BadRequestError, match="`n` is 2, must be from 1 to 1"):
        front.client.completions.create(model="demo", prompt="a", n=2)
    with pytest.raises(openai.BadRequestError, match="at most 2 prompts"):
        front.client.completions.create(model="demo", prompt=["a", "b", "c"])
