"""Tools and structured output on the OpenAI routes: what is accepted, and the grammar that the engine gets."""

from __future__ import annotations

import json
from typing import Any

import llguidance
import pytest

from serving.config import LimitsConfig
from serving.errors import InvalidRequest
from serving.sampling_params import Grammar
from tests.api.fake_engine import FakeStream, hello
from tests.api.openai_client import BODIES, BOTH, CHAT, COMPLETIONS, OpenAIFront, ToolText, params, refusal

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.fixture
def front() -> OpenAIFront:
    return OpenAIFront()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL] * 2}, "tools[1].function.name"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a" * 65}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 1}}]}, "tools[0].function.parameters"),
        ({"tools": [TOOL], "tool_choice": "f"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
    ],
)  # fmt: skip
def test_tools(front: OpenAIFront, fields: dict[str, Any], param: str) -> None:
    assert refusal(front, CHAT, fields)["param"].startswith(param)


def test_tool_choices_reach_the_text_side() -> None:
    text = ToolText()
    front = OpenAIFront(text=text)
    named = {"type": "function", "function": {"name": "f"}}
    for choice, expected in ((None, "auto"), ("none", "none"), ("required", "required"), (named, "f")):
        params(front, CHAT, {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False})
        assert (text.asked.tool_choice, text.asked.named_tool) == (expected, choice is named)
        assert text.asked.tools == [TOOL] and not text.asked.parallel_tool_calls


@pytest.mark.parametrize("path", BOTH)
@pytest.mark.parametrize(
    ("fields", "kind", "source"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", {"type": "object"}),
        ({"response_format": {"type": "json", "value": SCHEMA}}, "json_schema", SCHEMA),
        ({"response_format": {"type": "json_object", "value": json.dumps(SCHEMA)}}, "json_schema", SCHEMA),
        ({"response_format": {"type": "json_schema", "value": {"name": "x", "schema": SCHEMA}}}, "json_schema", SCHEMA),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
            "json_schema",
            SCHEMA,
        ),
        ({"response_format": {"type": "regex", "value": "a+"}}, "regex", "a+"),
        ({"guided_json": SCHEMA}, "json_schema", SCHEMA),
        ({"guided_json": json.dumps(SCHEMA)}, "json_schema", SCHEMA),
        ({"guided_regex": "a|b"}, "regex", "a|b"),
        ({"guided_grammar": 'start: "a"'}, "lark", 'start: "a"'),
        ({"guided_choice": ["yes", 'n"o']}, "lark", 'start: "yes" | "n\\"o"\n'),
    ],
)  # fmt: skip
def test_structured_output(
    front: OpenAIFront, path: str, fields: dict[str, Any], kind: str, source: Any
) -> None:
    grammar = params(front, path, fields).grammar
    assert grammar is not None and grammar.kind == kind
    assert (json.loads(grammar.source) if kind == "json_schema" else grammar.source) == source


@pytest.mark.parametrize("path", BOTH)
def test_free_text(front: OpenAIFront, path: str) -> None:
    assert params(front, path, {"response_format": {"type": "text"}}).grammar is None


@pytest.mark.parametrize("path", BOTH)
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json", "value": "{"}}, "response_format.value"),
        ({"response_format": {"type": "json", "value": [1]}}, "response_format.value"),
        ({"response_format": {"type": "regex"}}, "response_format.value"),
        ({"response_format": {"type": "text", "foo": 1}}, "response_format.foo"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "response_format"),
        ({"guided_json": SCHEMA, "guided_choice": ["a"]}, "guided_choice"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a"] * 1025}, "guided_choice"),
        ({"guided_choice": ["a", ""]}, "guided_choice"),
        ({"guided_regex": "a" * 300_000}, "guided_regex"),
    ],
)  # fmt: skip
def test_bad_formats(front: OpenAIFront, path: str, fields: dict[str, Any], param: str) -> None:
    assert refusal(front, path, fields)["param"] == param


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "fields", "field"),
    [
        (CHAT, {"guided_regex": "(("}, "guided_regex"),
        (COMPLETIONS, {"guided_grammar": "x"}, "guided_grammar"),
        (CHAT, {"response_format": {"type": "json_object"}}, "response_format"),
        (COMPLETIONS, {"response_format": {"type": "json_object"}}, "response_format"),
        (CHAT, {"tools": [TOOL], "tool_choice": "required", "response_format": {"type": "text"}}, "tools"),
        (
            "/generate",
            {"inputs": "a", "parameters": {"grammar": {"type": "regex", "value": "(("}}},
            "parameters.grammar",
        ),
    ],
)
def test_the_engines_refusal_names_the_clients_field(
    path: str, fields: dict[str, Any], field: str, stream: bool
) -> None:
    def script(stream: FakeStream) -> None:
        assert stream.request.params.grammar is not None
        stream.put(InvalidRequest("`grammar` is refused: no", field="grammar"))

    front = OpenAIFront(script, text=ToolText())
    response = front.app.test_client().post(path, json={**BODIES.get(path, {}), **fields, "stream": stream})
    error = response.json["error"]
    assert f"`{field}` is refused: no" in (error if path == "/generate" else error["message"])
    assert path == "/generate" or (response.status_code, error["param"]) == (400, field)


def test_formats_and_tools_exclude_each_other() -> None:
    front = OpenAIFront(text=ToolText())
    both = {"tools": [TOOL], "response_format": {"type": "json_object"}}
    assert refusal(front, CHAT, both)["code"] == "tool_error"
    assert refusal(front, CHAT, {**both, "tool_choice": "required"})["code"] == "tool_error"
    assert refusal(front, CHAT, {"tools": [TOOL], "guided_regex": "a"})["code"] == "tool_error"


def test_grammars_switched_off() -> None:
    front = OpenAIFront(hello, text=ToolText(grammars=False), limits=LimitsConfig(grammar_support=False))
    for path in BOTH:
        assert (
            refusal(front, path, {"response_format": {"type": "json_object"}})["param"] == "response_format"
        )
        assert refusal(front, path, {"guided_regex": "a"})["param"] == "guided_regex"
    forced = {"tools": [TOOL], "tool_choice": "required"}
    assert refusal(front, CHAT, forced)["code"] == "tool_error"
    assert params(front, CHAT, {"tools": [TOOL]}).grammar is None


def test_the_choice_grammar_compiles() -> None:
    source = 'start: "yes" | "n\\"o\\n" | "ö"\n'
    grammar = Grammar(kind="lark", source=source)
    matcher = llguidance.LLMatcher.validate_grammar(llguidance.LLMatcher.grammar_from_lark(grammar.source))
    assert not matcher
