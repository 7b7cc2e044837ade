"""What `/v1/responses` makes of `input`: the messages that the chat template gets."""

from __future__ import annotations

from typing import Any

import pytest

from serving.text.chat import ChatRequest, PreparedChat
from tests.api.openai_client import OpenAIFront, ToolText, says

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
WEATHER: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": None}


class Recorder(ToolText):
    def prepare_chat(self, chat: ChatRequest, *, max_chars: int | None = None) -> PreparedChat:
        self.messages = chat.messages
        self.variables = chat.template_variables
        return super().prepare_chat(chat, max_chars=max_chars)


def messages_of(given: object, **fields: object) -> list[dict[str, Any]]:
    text = Recorder(thinks=True)
    front = OpenAIFront(says("ok"), text=text)
    answer = front.app.test_client().post("/v1/responses", json={"input": given, **fields})
    assert answer.status_code == 200, answer.get_data(as_text=True)
    return text.messages


def assistant(text: str) -> dict[str, object]:
    return {"role": "assistant", "content": [{"type": "output_text", "text": text}]}


def call(name: str, call_id: str) -> dict[str, object]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": "{}"}


def reasoning(text: str) -> dict[str, object]:
    return {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": text}],
    }


def test_string() -> None:
    assert messages_of("hi", instructions="Be brief.") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
    ]


def test_messages() -> None:
    two = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert messages_of(
        [
            {"role": "developer", "content": "d"},
            {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "hi"}],
                "status": "completed",
            },
            assistant("one"),
            assistant("two"),
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "phase": "commentary"},
            {"role": "user", "content": two},
        ]
    ) == [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]


def test_items_of_one_turn_are_one_message() -> None:
    output = {
        "type": "function_call_output",
        "call_id": "b",
        "output": [{"type": "input_text", "text": "12:00"}],
    }
    calls = [
        {"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
        {"id": "b", "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ]
    assert messages_of(
        [
            {"role": "user", "content": "hi"},
            reasoning("so"),
            assistant("Look."),
            call("weather", "a"),
            call("time", "b"),
            assistant(" Wait."),
            {"type": "function_call_output", "call_id": "a", "output": "rain"},
            output,
            reasoning("then"),
            assistant("done"),
        ]
    ) == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Look. Wait.", "tool_calls": calls, "reasoning_content": "so"},
        {"role": "tool", "tool_call_id": "a", "name": "weather", "content": "rain"},
        {"role": "tool", "tool_call_id": "b", "name": "time", "content": "12:00"},
        {"role": "assistant", "content": "done", "reasoning_content": "then"},
    ]


def test_reasoning_that_led_to_nothing_is_dropped() -> None:
    user = {"role": "user", "content": "hi"}
    assert messages_of([user, reasoning("so"), user, {"type": "reasoning", "summary": []}]) == [user, user]
    assert messages_of([user, assistant("a"), reasoning("so"), assistant("b")])[1:] == [
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "so"},
    ]


def test_effort_is_a_variable_of_the_template() -> None:
    text = Recorder()
    front = OpenAIFront(says("ok"), text=text)
    front.client.responses.create(model="demo", input="hi", reasoning={"effort": "high"})
    assert text.variables == {"reasoning_effort": "high"}


@pytest.mark.parametrize("dumped", [False, True])
def test_an_answer_can_be_sent_back(dumped: bool) -> None:
    text = Recorder(thinks=True)
    front = OpenAIFront(says(f"<think>so</think>Look.{CALL}"), text=text)
    first = front.client.responses.create(model="demo", input="hi", tools=[WEATHER])
    back: list[Any] = [item.model_dump() for item in first.output] if dumped else list(first.output)
    made = first.output[-1]
    assert made.type == "function_call"
    front.client.responses.create(
        model="demo",
        tools=[WEATHER],
        input=[
            {"role": "user", "content": "hi"},
            *back,
            {"type": "function_call_output", "call_id": made.call_id, "output": "rain"},
        ],
    )
    assert text.messages[1:] == [
        {
            "role": "assistant",
            "content": "Look.",
            "reasoning_content": "so",
            "tool_calls": [
                {
                    "id": made.call_id,
                    "type": "function",
                    "function": {"name": "weather", "arguments": made.arguments},
                }
            ],
        },
        {"role": "tool", "tool_call_id": made.call_id, "name": "weather", "content": "rain"},
    ]


@pytest.mark.parametrize(
    ("item", "param", "said"),
    [
        ({"type": "item_reference", "id": "msg_1"}, "input[0]", "no state"),
        ({"type": "web_search_call"}, "input[0].type", "web_search_call"),
        ({"role": "user", "content": [{"type": "input_image"}]}, "input[0].content[0]", "images"),
        ({"role": "user", "content": [{"type": "input_file"}]}, "input[0].content[0]", "files"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}]}, "input[0].content[0].type", "text"),
        ({"role": "tool", "content": "a"}, "input[0].role", "tool"),
        ({"role": "user"}, "input[0].content", "missing"),
        ({"role": "user", "content": None}, "input[0].content", "missing"),
        ({"role": "user", "content": "a", "nonsense": 1}, "input[0]", "nonsense"),
        ({"type": "function_call", "call_id": "a", "name": "b"}, "input[0].arguments", "missing"),
        (
            {"type": "function_call_output", "call_id": "a", "output": "b"},
            "input[0].call_id",
            "no `function_call`",
        ),
        ({"type": "reasoning", "encrypted_content": "gAAA"}, "input[0].encrypted_content", "null"),
        ("hi", "input[0]", "object"),
        ({"type": 3}, "input[0].type", "str"),
        ({"type": None, "role": "user", "content": "a"}, "input[0].type", "null"),
    ],
)
def test_refused_items(item: object, param: str, said: str) -> None:
    answer = OpenAIFront().app.test_client().post("/v1/responses", json={"input": [item]})
    assert answer.status_code == 400 and answer.json is not None
    error = answer.json["error"]
    assert error["param"] == param and said in error["message"], error
