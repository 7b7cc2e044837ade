"""Templates of every shape in use render as transformers renders them, or are refused where it refuses them."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from transformers import PreTrainedTokenizerFast

from serving.errors import TemplateError
from serving.text.chat_messages import MessageShape, find_shape
from serving.text.chat_template import ChatTemplate
from tests.unit.text import template_shapes, template_shapes_tools
from tests.unit.text.vocabularies import byte_level

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
SHAPES = {**template_shapes.SHAPES, **template_shapes_tools.SHAPES}

Message = dict[str, Any]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, **fields: Any) -> Message:
    return {"role": "assistant", "content": text, **fields}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "count", "arguments": {"n": 3, "where": "Häfen & <Docks>"}},
}
CHATS: dict[str, list[Message]] = {
    "one": [user("How many <boats> & 'ships'?")],
    "system": [system("Be brief."), user("Hi")],
    "empty system": [system(""), user("Hi")],
    "turns": [system("Sei kurz.\n"), user("Eins"), assistant("Zwei"), user("Drei")],
    "six turns": [user("a"), assistant("b"), user("c"), assistant("d"), user("e"), assistant("f")],
    "blanks": [user("  two  \n\n"), assistant(" \tthree \n"), user("\n four\r\n\r\n")],
    "unicode": [user("海辺の町 👨‍👩‍👧‍👦 שלום \u202e ñ \u2028"), assistant("家族"), user("\U0010ffff")],
    "reasoning": [
        user("Q"),
        assistant("<think>\nhm\n</think>\n\nA"),
        user("R"),
        assistant("x", reasoning_content="why"),
    ],
    "call": [
        system("Use tools."),
        user("Count"),
        assistant("", tool_calls=[CALL]),
        {"role": "tool", "content": '{"n": 3}', "tool_call_id": "abcdefghi", "name": "count"},
        assistant("Three."),
        user("Thanks"),
    ],
    "null call": [
        user("Count"),
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "3", "tool_call_id": "abcdefghi"},
    ],
    "two systems": [system("One"), user("x"), system("Two"), user("y")],
    "wrong order": [assistant("I begin"), user("x"), user("y")],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": " one"}, {"type": "text", "text": " two"}]}
    ],
    "like a tool": [
        user("<tool_response>x</tool_response>"),
        assistant("ok"),
        user("{{ messages }} {% if %}"),
    ],
}
TOOLS: list[Message] = [
    {
        "type": "function",
        "function": {
            "name": "count",
            "description": "Zählt <Boote> & \"Schiffe\" 'hier'",
            "parameters": {
                "type": "object",
                "properties": {
                    "n": {"type": "integer", "minimum": 0.5},
                    "where": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["n"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}},
    },
]
DOCUMENTS = [{"title": "Häfen", "text": "Boats & docks"}, {"title": "", "text": "\n"}]
EXTRAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "prompt": {"add_generation_prompt": True},
    "tools": {"add_generation_prompt": True, "tools": TOOLS},
    "documents": {"add_generation_prompt": True, "documents": DOCUMENTS},
    "variables": {
        "add_generation_prompt": True,
        "enable_thinking": False,
        "date_string": "1 Jan 2026",
        "today": "now",
        "controls": {"citations": True},
        "contexts": ["c"],
    },
    "continue": {"continue_final_message": True},
}
OWN_ARGUMENTS = ("add_generation_prompt", "tools", "documents", "continue_final_message")


@pytest.fixture(scope="module")
def reference() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=byte_level(), **TOKENS)


def test_there_are_enough_shapes() -> None:
    assert len(SHAPES) >= 24


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_renders_as_in_transformers(
    reference: PreTrainedTokenizerFast, name: str, extra: str
) -> None:
    template = ChatTemplate(SHAPES[name], TOKENS)
    given = EXTRAS[extra]
    own = {"add_generation_prompt": False, **{k: v for k, v in given.items() if k in OWN_ARGUMENTS}}
    variables = {k: v for k, v in given.items() if k not in OWN_ARGUMENTS}
    # What transformers does to every template: null is as good as absent.
    shape = MessageShape(takes_parts=True)
    rendered = 0
    for chat in CHATS.values():
        try:
            expected = reference.apply_chat_template(
                chat, chat_template=SHAPES[name], tokenize=False, **given
            )
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError):
            with pytest.raises(TemplateError):
                template.render(shape.apply(chat), variables=variables, **own)
            continue
        assert template.render(shape.apply(chat), variables=variables, **own) == expected
        rendered += 1
    # Some templates need tools, or cut every message.
    assert rendered >= (0 if "tool_use" in name or (name, extra) == ("controls", "continue") else 2)


STRINGS_ONLY = {"chatml", "llama_2", "mistral_1", "gemma_2", "qwen_25", "zephyr", "phi_3", "internlm"}
PARTS_TOO = {"llama_32_vision", "glm_4"}


@pytest.mark.parametrize("name", sorted(STRINGS_ONLY | PARTS_TOO))
def test_parts_become_one_text_where_a_template_cannot_read_them(name: str) -> None:
    template = ChatTemplate(SHAPES[name], TOKENS)
    shape = find_shape(template)
    assert shape.takes_parts == (name in PARTS_TOO)
    text = template.render(shape.apply([user(" one two")]))
    assert template.render(shape.apply(CHATS["parts"])) == text


@pytest.mark.parametrize(
    ("name", "no_content", "arguments_text"),
    [
        ("deepseek", "null", True),
        ("qwen_25", "absent", False),
        ("llama_31", "absent", False),
        ("mistral_3", "absent", False),
        ("glm_4", "absent", False),
    ],
)
def test_past_calls_get_the_form_that_the_template_shows(
    name: str, no_content: str, arguments_text: bool
) -> None:
    template = ChatTemplate(SHAPES[name], TOKENS)
    shape = find_shape(template)
    assert (shape.no_content, shape.arguments_text) == (no_content, arguments_text)
    call = {**CALL, "function": {"name": "count", "arguments": '{"n": 3}'}}
    chat = [user("x"), {"role": "assistant", "content": None, "tool_calls": [call]}]
    rendered = template.render(shape.apply(chat))
    assert '{"n": 3}' in rendered or "<arg_key>n</arg_key>" in rendered
    assert "None" not in rendered


def test_what_clients_send_back_is_read_as_it_was_meant() -> None:
    template = ChatTemplate(SHAPES["llama_31"], TOKENS)
    shape = find_shape(template)
    reply = assistant("Two", refusal=None, tool_calls=None, audio=None)
    assert shape.apply([reply]) == [assistant("Two")]
    assert shape.apply([{"role": "developer", "content": "x"}]) == [system("x")]
    assert shape.apply([{"role": "user", "content": None}]) == [user("")]
