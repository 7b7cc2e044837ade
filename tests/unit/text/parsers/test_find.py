"""Formats found in chat templates, reasoning taken off answers, and the checks of offered tools."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.errors import ConfigError, ToolError
from serving.text.parsers import find_reasoning_format, find_tool_format, new_parser, offered_tools
from tests.unit.text.parsers.answers import FORMATS, REASONING, TOOLS, function, read

# The telling lines of templates, in the style of the families' own.
TEMPLATES: list[tuple[str, str | None, str]] = [
    (
        "hermes",
        None,
        '{%- for t in tools %}{{ t | tojson }}{% endfor %}<tool_call>\\n{"name": <function-name>}',
    ),
    (
        "hermes",
        "think",
        '{{- \'<tool_call>\\n{"name": "\' }}{%- if enable_thinking is false %}<think>\\n\\n</think>',
    ),
    (
        "llama3_json",
        None,
        'Respond in the format {"name": function name, "parameters": dictionary of argument name}',
    ),
    ("llama3_json", None, "{{- '<|python_tag|>' + tool_call.name + '.call(' }}"),
    (
        "pythonic",
        None,
        "You SHOULD write [func_name1(params_name1=params_value1), func_name2(params)] <|python_start|>",
    ),
    (
        "mistral",
        None,
        "{{- '[TOOL_CALLS] [' }}{% for t in tool_calls %}{{ t.function | tojson }}{% endfor %}]",
    ),
    ("mistral_args", "mistral", "{{- '[TOOL_CALLS]' + name + '[ARGS]' + arguments }}{{ '[THINK]' }}"),
    ("deepseek_v3", "think", "{{'<｜tool▁calls▁begin｜>' + '\\n```json\\n'}}{% if '</think>' in content %}"),
    ("deepseek_v31", "think", "{{'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>'+ name}}</think>"),
    (
        "granite",
        "granite",
        "{{ '<|tool_call|>' }} 'Here is my thought process:' after 'Here is my response:'",
    ),
    ("command_r", "command_r", '<|START_THINKING|>…<|END_THINKING|><|START_ACTION|>[{"tool_name":'),
    ("command_r_fenced", None, "Write 'Action:' followed by a json-formatted list: ```json"),
    ("json", None, "{% for message in messages %}{{ message.content }}{% endfor %}"),
    ("json", "reasoning", "Answer in <reasoning> and </reasoning>."),
]


@pytest.mark.parametrize(("tools", "reasoning", "template"), TEMPLATES)
def test_formats_are_found_in_templates(tools: str, reasoning: str | None, template: str) -> None:
    assert find_tool_format(template, {}).name == tools
    found = find_reasoning_format(template, {})
    assert (found and found.name) == reasoning


def test_special_tokens_tell_the_format_when_there_is_no_template() -> None:
    special = {"<s>": 1, "[TOOL_CALLS]": 5, "[ARGS]": 32, "[THINK]": 34}
    found = find_tool_format(None, special)
    assert found.name == "mistral_args"
    assert found.special_ids == {"[TOOL_CALLS]": 5, "[ARGS]": 32}
    reasoning = find_reasoning_format(None, special)
    assert reasoning is not None
    assert (reasoning.name, reasoning.special_ids) == ("mistral", {"[THINK]": 34})
    assert find_tool_format(None, {}).name == "json"


def test_names_override_what_is_found() -> None:
    assert find_tool_format("<tool_call>", {}, name="pythonic").name == "pythonic"
    assert find_reasoning_format("<think>", {}, name="none") is None
    with pytest.raises(ConfigError, match="TOOL_FORMAT is 'xml', must be one of hermes, "):
        find_tool_format(None, {}, name="xml")
    with pytest.raises(ConfigError, match="REASONING_FORMAT is 'xml', must be one of think, .*none"):
        find_reasoning_format(None, {}, name="xml")


CALL = '<tool_call>{"name": "ping"}'
OPEN, CLOSED = "user<think>\n", "user<think>\n\n</think>\n\n"
THOUGHTS: list[tuple[str, str, str, tuple[str, str, list[tuple[str, str]]]]] = [
    ("think", "", "<think>\nwhy not\n</think>\n\nYes ", ("Yes ", "why not", [])),
    ("think", "", " \n plain ", (" \n plain ", "", [])),
    ("think", "", "<thinking> is text", ("<thinking> is text", "", [])),
    ("think", "", "<thin", ("<thin", "", [])),
    ("think", "", "<think>endless ", ("", "endless ", [])),
    ("think", "", f"<think>{CALL}</think>{CALL}", ("", CALL, [("ping", "{}")])),
    ("think", OPEN, f"so </ </thin so\n</think>\n{CALL}", ("", "so </ </thin so", [("ping", "{}")])),
    ("think", OPEN, "<think>again</think>Yes", ("Yes", "again", [])),
    ("think", OPEN, "</think>Yes", ("Yes", "", [])),
    ("think", OPEN, "no end", ("", "no end", [])),
    ("think", CLOSED, "Yes </think>", ("Yes </think>", "", [])),
    ("think_implicit", "", "so\n</think>\nYes", ("Yes", "so", [])),
    ("mistral", "", "[THINK]so[/THINK]Yes", ("Yes", "so", [])),
    ("reasoning", "", "<reasoning>so</reasoning>Yes", ("Yes", "so", [])),
    ("command_r", "", "<|START_THINKING|>so<|END_THINKING|>Yes", ("Yes", "so", [])),
    ("granite", "", "Here is my thought process:\n\nso\n\nHere is my response:\n\nYes", ("Yes", "so", [])),
    ("granite", "", "Here is my dog.", ("Here is my dog.", "", [])),
]


@pytest.mark.parametrize(("name", "prompt_text", "text", "message"), THOUGHTS)
def test_reasoning_is_taken_off(name: str, prompt_text: str, text: str, message: Any) -> None:
    for pieces in ([text], list(text), *([text[:n], text[n:]] for n in range(1, len(text)))):
        assert read(pieces, FORMATS["hermes"], reasoning=REASONING[name], prompt_text=prompt_text) == message
    if not message[2]:
        assert read([text], reasoning=REASONING[name], prompt_text=prompt_text)[:2] == message[:2]


def test_reasoning_between_special_tokens() -> None:
    reasoning = find_reasoning_format(None, {"<|START_THINKING|>": 3, "<|END_THINKING|>": 4})
    assert reasoning is not None
    pieces = [
        ("<|START_THINKING|>",),
        " why <|END_THINKING|> ",
        ("<|END_THINKING|>",),
        ("<|START_RESPONSE|>",),
        "Yes",
    ]
    assert read(pieces, FORMATS["command_r"], reasoning=reasoning) == ("Yes", "why <|END_THINKING|>", [])
    call = [("<|START_ACTION|>",), '[{"tool_name": "ping", "parameters": {}}]', ("<|END_ACTION|>",)]
    assert read(["Plan", *call], FORMATS["command_r"], reasoning=reasoning) == ("Plan", "", [("ping", "{}")])


def test_no_parser_without_anything_to_find() -> None:
    assert new_parser(None) is None
    assert new_parser(FORMATS["hermes"], ()) is None
    assert new_parser(FORMATS["hermes"], TOOLS) is not None


def test_tools_are_read() -> None:
    (tool,) = offered_tools([function("a", {"properties": {"x": {}}}, description="does", strict=True)])
    assert tool.parameters == {"type": "object", "properties": {"x": {}}, "additionalProperties": False}
    assert tool.description == "does"
    (tool,) = offered_tools(
        [function("a", {"type": "object", "properties": {}, "additionalProperties": True})]
    )
    assert tool.parameters["additionalProperties"] is True
    assert [tool.name for tool in offered_tools([function("a"), function("b")], named="b")] == ["b"]


@pytest.mark.parametrize(
    ("tools", "named", "message"),
    [
        ([function("a b")], None, r"tools\[0\].function.name` is 'a b', must be 1 to 64 letters"),
        ([function("x" * 65)], None, "must be 1 to 64"),
        ([function("")], None, "is '', must be"),
        ([{"type": "function", "function": {"name": 5}}], None, "is a int"),
        ([function("a"), function("a")], None, "two functions called 'a'"),
        ([function(f"f{n}") for n in range(129)], None, "has 129 entries, the limit is 128"),
        ([function("a")], "b", "names 'b', which is not in `tools`"),
        ([{"type": "retrieval"}], None, '"type": "function"'),
        ([{"type": "function"}], None, "function` must be an object"),
        (["a"], None, r"tools\[0\]` must be an object"),
        ([function("a", {"type": "string"})], None, "type` is 'string', must be 'object'"),
        ([{"type": "function", "function": {"name": "a", "parameters": []}}], None, "must be a JSON schema"),
    ],
)
def test_tools_that_cannot_be_used_are_refused(tools: list[Any], named: str | None, message: str) -> None:
    with pytest.raises(ToolError, match=message):
        offered_tools(tools, named=named)


@pytest.mark.parametrize("name", FORMATS)
def test_instructions_show_the_tools_and_a_call(name: str) -> None:
    tools = offered_tools([function("function_name", description="does")])
    separator, offered, prompt = FORMATS[name].instructions(tools).removeprefix("\n").split("\n", 2)
    assert separator == "---"
    assert json.loads(offered)[0]["function"]["description"] == "does"
    # The call that is shown is one that we read.
    example = prompt.partition("in this form:\n")[2]
    parser = new_parser(FORMATS[name], tools)
    assert parser is not None
    assert [call.name for call in parser.push(example).tool_calls] == ["function_name"]
    assert FORMATS[name].instructions(tools, "Do as I say.").endswith("\nDo as I say.")
