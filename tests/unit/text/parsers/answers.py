"""Answers of models for the parser tests: a reader that joins the pieces, and a writer for every format."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from typing import Any

from serving.text.parsers import ReasoningFormat, Tool, ToolFormat, new_parser, offered_tools
from serving.text.parsers.families import REASONING_FORMATS, TOOL_FORMATS

FORMATS: dict[str, ToolFormat] = {tool_format.name: tool_format for tool_format in TOOL_FORMATS}
REASONING: dict[str, ReasoningFormat] = {reasoning.name: reasoning for reasoning in REASONING_FORMATS}


def function(name: str, parameters: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    described = (
        {"name": name, **more} if parameters is None else {"name": name, "parameters": parameters, **more}
    )
    return {"type": "function", "function": described}


WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "days": {"type": "integer", "minimum": 0, "maximum": 99},
        "exact": {"type": "boolean"},
        "place": {"type": "object", "properties": {"kind": {"enum": ["x", "y"]}}, "required": ["kind"]},
    },
    "required": ["city"],
}
EITHER = {
    "anyOf": [
        {"properties": {"a": {"type": "null"}}, "required": ["a"], "additionalProperties": False},
        {"properties": {"b": {"const": 3}}, "required": ["b"], "additionalProperties": False},
    ]
}
TOOLS: tuple[Tool, ...] = offered_tools(
    [function("get_weather", WEATHER), function("ping"), function("mcp.either-or", EITHER)]
)

Message = tuple[str, str, list[tuple[str, str]]]


def read(
    pieces: Iterable[str | tuple[str]],
    tool_format: ToolFormat | None = None,
    *,
    reasoning: ReasoningFormat | None = None,
    prompt_text: str = "",
    constrained: bool = False,
    forced: bool = False,
) -> Message:
    """(content, reasoning, [(name, arguments)]) of an answer that arrives in `pieces`; a tuple is a special token."""
    parser = new_parser(
        tool_format,
        TOOLS,
        reasoning=reasoning,
        prompt_text=prompt_text,
        constrained=constrained,
        forced=forced,
    )
    assert parser is not None
    deltas = [
        parser.push(piece) if isinstance(piece, str) else parser.push_special(*piece) for piece in pieces
    ]
    deltas.append(parser.finish())
    names: list[str] = []
    ids: set[str] = set()
    arguments: list[str] = []
    for piece in (call for delta in deltas for call in delta.tool_calls):
        if piece.name is not None:
            assert piece.index == len(names)
            assert piece.id is not None
            ids.add(piece.id)
            names.append(piece.name)
            arguments.append(piece.arguments)
        else:
            assert piece.id is None
            assert piece.index == len(names) - 1
            arguments[-1] += piece.arguments
    assert len(ids) == len(names)
    assert parser.called_tools == bool(names)
    content = "".join(delta.content for delta in deltas)
    return content, "".join(delta.reasoning for delta in deltas), list(zip(names, arguments, strict=True))


def cut(text: str, rng: random.Random) -> list[str]:
    """`text` in random pieces, short ones mostly."""
    pieces = []
    longest = rng.choice((1, 3, 8, 40))
    while text:
        length = rng.randint(1, longest)
        pieces.append(text[:length])
        text = text[length:]
    return pieces


Calls = list[tuple[str, dict[str, Any]]]


def _json_list(name_key: str, arguments_key: str) -> Callable[[Calls], str]:
    return lambda calls: json.dumps(
        [{name_key: name, arguments_key: arguments} for name, arguments in calls], ensure_ascii=False
    )


def _objects(arguments_key: str, separator: str) -> Callable[[Calls], str]:
    return lambda calls: separator.join(
        json.dumps({"name": name, arguments_key: arguments}) for name, arguments in calls
    )


def _python(calls: Calls) -> str:
    written = (
        f"{name}({', '.join(f'{key}={value!r}' for key, value in args.items())})" for name, args in calls
    )
    return f"[{', '.join(written)}]"


def _deepseek(before: str, behind: str) -> Callable[[Calls], str]:
    def write(calls: Calls) -> str:
        blocks = (
            f"<｜tool▁call▁begin｜>{before.replace('NAME', name)}{json.dumps(args)}{behind}<｜tool▁call▁end｜>"
            for name, args in calls
        )
        return f"<｜tool▁calls▁begin｜>{chr(10).join(blocks)}<｜tool▁calls▁end｜>"

    return write


# Written after the families' chat templates, independently of the grammars.
WRITERS: dict[str, Callable[[Calls], str]] = {
    "hermes": lambda calls: "\n".join(
        f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(args)}}}\n</tool_call>'
        for name, args in calls
    ),
    "llama3_json": _objects("parameters", "; "),
    "pythonic": _python,
    "mistral": lambda calls: f"[TOOL_CALLS] {_json_list('name', 'arguments')(calls)}",
    "mistral_args": lambda calls: "".join(
        f"[TOOL_CALLS]{name}[ARGS]{json.dumps(args)}" for name, args in calls
    ),
    "deepseek_v3": _deepseek("function<｜tool▁sep｜>NAME\n```json\n", "\n```"),
    "deepseek_v31": _deepseek("NAME<｜tool▁sep｜>", ""),
    "granite": lambda calls: f"<|tool_call|>{_json_list('name', 'arguments')(calls)}",
    "command_r": lambda calls: (
        f"<|START_ACTION|>{_json_list('tool_name', 'parameters')(calls)}<|END_ACTION|>"
    ),
    "command_r_fenced": lambda calls: f"Action: ```json\n{_json_list('tool_name', 'parameters')(calls)}\n```",
    "json": _objects("arguments", "\n"),
}
_CHARS = "aZ09 \n\t\"'\\/{}[]()<>|:,;=`é猫👍\u2028_"


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(8 if depth < 3 else 5)
    if kind < 2:
        return "".join(rng.choices(_CHARS, k=rng.randrange(12)))
    if kind == 2:
        return rng.choice((0, -1, 17, 10**18, 2.5, -1e-7, 1e22))
    if kind == 3:
        return rng.choice((True, False, None))
    if kind == 4:
        return rng.choice(
            ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "</think>", "\\u00e9", "```", "[ARGS]")
        )
    if kind < 7:
        return {f"key{n}": random_value(rng, depth + 1) for n in range(rng.randrange(4))}
    return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]


def random_calls(rng: random.Random) -> Calls:
    calls: Calls = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(("get_weather", "ping"))
        calls.append((name, {f"arg{n}": random_value(rng) for n in range(rng.randrange(4))}))
    return calls
