"""Requests whose grammars were made to cost, for every way in which a client can send a grammar. Plain data; sends nothing.

The kinds are those that stopped or slowed down other servers, and those that were found to be slow in our compiler. Each
request is told from all others by something that changes no cost, so that no cache answers for two of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]

GENERATE = "/generate"
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


@dataclass(slots=True, frozen=True)
class Attack:
    name: str
    path: str
    body: bytes
    plain: bytes
    """The same request without its grammar: a prompt of the same cost, which no cache of prefixes knows, and one token."""


def attacks(count: int) -> Iterator[Attack]:
    """The first `count` of an endless row in which kinds and routes take turns."""
    kinds: list[tuple[str, Callable[[str], tuple[str, object]]]] = [
        *((name, lambda mark, s=source: ("regex", f"{s}({mark})?")) for name, source in _REGEXES.items()),
        *(
            (name, lambda mark, s=schema: ("schema", {**s, "title": mark}))
            for name, schema in _SCHEMAS.items()
        ),
        *((name, lambda mark, s=source: ("lark", f"{s}\n// {mark}\n")) for name, source in _LARK.items()),
    ]
    for number in range(count):
        # Each turn through the kinds begins with another way.
        turn, index = divmod(number, len(kinds))
        name, make = kinds[index]
        kind, value = make(f"no{number}")
        ways = _WAYS[kind]
        way, (path, wrap) = list(ways.items())[(index + turn) % len(ways)]
        body = wrap(value)
        yield Attack(
            f"{name}, {way}", path, json.dumps(body).encode(), json.dumps(_without_grammar(body)).encode()
        )


def _nested(levels: int, keyword: str) -> Schema:
    value: Schema = {}
    for _ in range(levels):
        value = {"type": "object", keyword: value}
    return value


def _branches(levels: int, keyword: str) -> Schema:
    value: Schema = {"type": "string"}
    for _ in range(levels):
        value = {keyword: [value, {"type": "integer"}]}
    return value


_REGEXES = {
    "nested quantifiers": "(a+)+b",
    "nested counts": "((a{1,9999}){1,9999})",
    "nested groups": "(" * 30_000 + "a" + ")" * 30_000,
    "deep groups": "(" * 99 + "a" + "{1,99})" * 99,
    "subset construction": "[ab]*a[ab]{500}",
    "many alternatives": "|".join(f"(a{{{i}}}b)*c" for i in range(1, 500)),
}
_SCHEMAS: dict[str, Schema] = {
    "self reference": {"$ref": "#"},
    "indirect self reference": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "huge enum": {"enum": [f"v{i}" for i in range(50_000)]},
    "large enum": {"enum": [f"v{i}" for i in range(4096)]},
    "deep oneOf": _branches(40, "oneOf"),
    "deep anyOf": _branches(40, "anyOf"),
    "deep allOf": _branches(40, "allOf"),
    "empty schema": {},
    "huge minItems": {"type": "array", "minItems": 10**9},
    "many items": {"type": "array", "minItems": 5000, "items": {"type": "string"}},
    "huge maxLength": {"type": "string", "maxLength": 10**9},
    "long strings": {"type": "string", "minLength": 100_000},
    "pattern bomb": {"type": "string", "pattern": "^(([a-z]{1,100}){1,100}){1,100}$"},
    "slow multipleOf": {"type": "integer", "multipleOf": 999_983},
    "pattern properties": {"patternProperties": {f"^a{i}_": {} for i in range(300)}},
    "allowed pattern properties": {"patternProperties": {f"^a{i}_.*b": {} for i in range(64)}},
    "intersected patterns": {"allOf": [{"pattern": f"a.{{{i}}}b"} for i in range(20)]},
    "few intersected patterns": {"allOf": [{"pattern": f"a.{{{i}}}b"} for i in range(9)]},
    "exploding allOf": {"allOf": [{"anyOf": [{"properties": {f"a{i}_{j}": {}}} for j in range(6)]} for i in range(12)]},
    "unsatisfiable bounds": {"type": "integer", "minimum": 5, "maximum": 3},
    "unsatisfiable types": {"allOf": [{"type": "string"}, {"type": "integer"}]},
    "tower": _nested(55, "additionalProperties"),
    "very deep": _nested(90, "additionalProperties"),
    "many properties": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(900)}},
    "remote reference": {"$ref": "http://127.0.0.1:9/schema.json"},
}  # fmt: skip
_LARK = {
    "exploding terminals": "start: T0\n"
    + "".join(f"T{i}: T{i + 1} T{i + 1}\n" for i in range(30))
    + "T30: /a/",
    "ambiguous rules": 'start: e\ne: e e e | e e | "a" | "aa"',
    "empty loops": 'start: x*\nx: y*\ny: "a"*',
    "embedded schema": 'start: "x" j\nj: %json\n {"multipleOf": 999983}',
}


def _native(grammar: object) -> dict[str, Any]:
    return {"inputs": "Once", "parameters": {"max_new_tokens": 1, "grammar": grammar}}


def _chat(**fields: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, **fields}


def _completion(**fields: object) -> dict[str, Any]:
    return {"prompt": "Once", "max_tokens": 1, **fields}


def _without_grammar(body: dict[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in body.items() if not name.startswith(("guided_", "response_"))}
    if "tools" in plain:
        # The tools stay: they are a part of the prompt, the one that may be long. The name comes before the schema.
        plain["tool_choice"] = "auto"
        plain["tools"] = [_tool(each["function"]["parameters"], name="do_find") for each in plain["tools"]]
    if "parameters" in plain:
        plain["parameters"] = {k: v for k, v in plain["parameters"].items() if k != "grammar"}
    return plain


def _tool(schema: object, *, name: str = "look_up") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": schema}}


_WAYS: dict[str, dict[str, tuple[str, Callable[[Any], dict[str, Any]]]]] = {
    "regex": {
        "grammar": (GENERATE, lambda source: _native({"type": "regex", "value": source})),
        "guided_regex in a chat": (CHAT, lambda source: _chat(guided_regex=source)),
        "guided_regex": (COMPLETIONS, lambda source: _completion(guided_regex=source)),
    },
    "schema": {
        "grammar": (GENERATE, lambda schema: _native({"type": "json", "value": schema})),
        "response_format": (
            CHAT,
            lambda schema: _chat(
                response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
            ),
        ),
        "a required tool": (CHAT, lambda schema: _chat(tools=[_tool(schema)], tool_choice="required")),
        "guided_json": (COMPLETIONS, lambda schema: _completion(guided_json=schema)),
        "grammar with a named schema": (
            GENERATE,
            lambda schema: _native({"type": "json_schema", "value": {"name": "a", "schema": schema}}),
        ),
    },
    "lark": {
        "guided_grammar in a chat": (CHAT, lambda source: _chat(guided_grammar=source)),
        "guided_grammar": (COMPLETIONS, lambda source: _completion(guided_grammar=source)),
    },
}
