"""Whatever is generated, a stream says the same as the whole answer; whatever is sent, the answer is a result or a 4xx in
OpenAI's shape.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from serving.api.schema.openai_chat import ChatCompletionRequest
from serving.api.schema.openai_completions import CompletionRequest
from serving.api.schema.parity import REFUSED
from tests.api.openai_client import BOTH, CHAT, COMPLETIONS, OpenAIFront, ToolText, says
from tests.api.test_fuzz import LEAKS, values

FRONT = OpenAIFront(text=ToolText(thinks=True, grammars=False))
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "ü!"}}\n</tool_call>'

pieces = st.sampled_from(
    ["a", "b", "!", "ü", "😀", "<tool_call>", "</think>", "<think>", CALL, " ", "\n", "ab!"]
)
texts = st.lists(pieces, max_size=8).map("".join)
stops = st.lists(st.sampled_from(["!", "ab", "b!", "😀", "ü!", "\n"]), max_size=3, unique=True)


def post(path: str, body: dict[str, Any]) -> Any:
    response = FRONT.app.test_client().post(path, json=body)
    assert response.status_code == 200, response.get_data(as_text=True)
    return response


def chunks(path: str, body: dict[str, Any]) -> list[Any]:
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    text = post(path, {**body, **stream}).get_data(as_text=True)
    events = text.removesuffix("\n\n").split("\n\n")
    assert events.pop() == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events if event != ":"]


def joined_message(deltas: list[Any]) -> dict[str, Any]:
    """What a client makes of a stream's deltas; ids of calls are left out, they are new each time."""
    calls: list[dict[str, str]] = []
    for delta in deltas:
        for piece in delta.get("tool_calls", []):
            if piece["index"] == len(calls):
                calls.append({"name": piece["function"]["name"], "arguments": ""})
            calls[piece["index"]]["arguments"] += piece["function"]["arguments"]
    return {
        "content": "".join(delta.get("content") or "" for delta in deltas),
        "reasoning": "".join(delta.get("reasoning_content", "") for delta in deltas),
        "calls": calls,
    }


@given(
    answers=st.lists(texts, min_size=2, max_size=2), stop=stops, cut=st.integers(1, 9), tools=st.booleans()
)
def test_a_streamed_chat_is_the_whole_one(answers: list[str], stop: list[str], cut: int, tools: bool) -> None:
    FRONT.engine.script = says(*answers, cut=cut)
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "n": 2, "stop": stop}
    body |= {"logprobs": True, "top_logprobs": 1, "tools": [TOOL] if tools else None}
    whole = post(CHAT, body).json
    streamed = chunks(CHAT, body)
    assert streamed[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        mine = [c["choices"][0] for c in streamed[:-1] if c["choices"][0]["index"] == choice["index"]]
        message = choice["message"]
        calls = [call["function"] for call in message.get("tool_calls", [])]
        assert joined_message([c["delta"] for c in mine]) == {
            "content": message["content"] or "",
            "reasoning": message.get("reasoning_content", ""),
            "calls": calls,
        }
        logprobs = [token for c in mine if c["logprobs"] for token in c["logprobs"]["content"]]
        assert logprobs == choice["logprobs"]["content"]
        reasons = [c["finish_reason"] for c in mine]
        assert reasons == [None] * (len(mine) - 1) + [choice["finish_reason"]]
        assert (choice["finish_reason"] == "tool_calls") == bool(calls)
        assert "�" not in (message["content"] or "")
        if not any(each in answers[choice["index"]] for each in stop):
            assert all(isinstance(json.loads(call["arguments"]), dict) for call in calls)


@given(
    answer=texts,
    stop=stops,
    cut=st.integers(1, 9),
    echo=st.booleans(),
    prompt=st.text(min_size=1, max_size=9),
)
def test_a_streamed_completion_is_the_whole_one(
    answer: str, stop: list[str], cut: int, echo: bool, prompt: str
) -> None:
    FRONT.engine.script = says(answer, cut=cut)
    body = {"prompt": prompt, "stop": stop, "echo": echo, "logprobs": 1}
    whole = post(COMPLETIONS, body).json
    streamed = [chunk["choices"][0] for chunk in chunks(COMPLETIONS, body)[:-1]]
    [choice] = whole["choices"]
    assert "".join(chunk["text"] for chunk in streamed) == choice["text"]
    assert streamed[-1]["finish_reason"] == choice["finish_reason"] == "stop"
    for name, column in choice["logprobs"].items():
        assert [value for chunk in streamed for value in chunk["logprobs"][name]] == column
    ends = [at for stop_string in stop if (at := answer.find(stop_string)) >= 0]
    shown = answer[: min(ends)] if ends else answer
    assert choice["text"] == (prompt if echo else "") + shown
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    offsets = choice["logprobs"]["text_offset"]
    assert all(
        choice["text"][at:].startswith(t) for at, t in zip(offsets, choice["logprobs"]["tokens"], strict=True)
    )


def bodies(schema: Any, api: str, key: str, good: Any) -> st.SearchStrategy[Any]:
    names = st.sampled_from([*schema.__struct_encode_fields__, *list(REFUSED[api])[:3], "unknown"])
    fields = st.dictionaries(names, values, max_size=4)
    wanted = st.one_of(st.just(good), values)
    return st.one_of(values, st.builds(lambda more, value: {**more, key: value}, fields, wanted))


any_body = st.one_of(
    bodies(ChatCompletionRequest, "chat", "messages", [{"role": "user", "content": "a"}]),
    bodies(CompletionRequest, "completions", "prompt", "a"),
)


@given(body=any_body, path=st.sampled_from([*BOTH, "/invocations"]))
def test_any_json(body: Any, path: str) -> None:
    FRONT.engine.script = says(*["a"] * 16)
    sent = json.dumps(body)
    response = FRONT.app.test_client().post(path, data=sent, content_type="application/json")
    text = response.get_data(as_text=True)
    assert response.status_code in (200, 400, 404, 422), text
    if response.status_code != 200:
        assert len(response.data) < 1024
        assert not LEAKS.search(text) or LEAKS.search(sent)
        answer = json.loads(text)
        native = {"error", "error_type", "request_id"}
        if path != "/invocations" or set(answer) != native:
            assert set(answer["error"]) == {"message", "type", "param", "code", "request_id"}


def test_models_and_errors_before_the_server_is_ready() -> None:
    front = OpenAIFront(stage="loading")
    client = front.app.test_client()
    for response in (client.get("/v1/models"), client.post(CHAT, json={}), client.post(COMPLETIONS, json={})):
        assert response.status_code == 503
        assert (response.json["error"]["type"], response.json["error"]["code"]) == (
            "server_error",
            "not_ready",
        )
