"""Grammars that were made to cost: what breaks or stops other servers, and what was found to be slow in the compiler."""

from __future__ import annotations

import json

from serving.sampling_params import Grammar


def regex(source: str) -> Grammar:
    return Grammar(kind="regex", source=source)


def lark(source: str) -> Grammar:
    return Grammar(kind="lark", source=source)


def schema(value: object) -> Grammar:
    return Grammar(kind="json_schema", source=json.dumps(value))


def _nested(levels: int, keyword: str, innermost: object = True) -> object:
    value = innermost
    for _ in range(levels):
        value = {"type": "object", keyword: value}
    return value


def _one_of(levels: int) -> object:
    value: object = {"type": "string"}
    for _ in range(levels):
        value = {"oneOf": [value, {"type": "integer"}]}
    return value


REFUSED = {
    "nested groups": regex("(" * 30_000 + "a" + ")" * 30_000),
    "deep groups": regex("(" * 200 + "a" + ")" * 200),
    "self reference": schema({"$ref": "#"}),
    "indirect self reference": schema({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
    "huge enum": schema({"enum": [f"v{i}" for i in range(50_000)]}),
    "large enum": schema({"enum": list(range(5000))}),
    "deep oneOf": schema(_one_of(40)),
    "huge minItems": schema({"type": "array", "minItems": 10**9}),
    "huge maxLength": schema({"type": "string", "maxLength": 10**9}),
    "very deep": schema(_nested(90, "additionalProperties")),
    "unsatisfiable bounds": schema({"type": "integer", "minimum": 5, "maximum": 3}),
    "unsatisfiable types": schema({"allOf": [{"type": "string"}, {"type": "integer"}]}),
    "nothing at all": schema(False),
    "empty enum": schema({"enum": []}),
    "remote reference": schema({"$ref": "http://127.0.0.1:9/schema.json"}),
    "file reference": schema({"$ref": "file:///etc/passwd"}),
    "slow multipleOf": schema({"type": "integer", "multipleOf": 999_983}),
    "multiplied multipleOf": schema({"allOf": [{"multipleOf": 97}, {"multipleOf": 89}, {"multipleOf": 83}]}),
    "multipleOf inside a Lark grammar": lark('start: "x" j\nj: %json\n {"multipleOf": 999983}\n'),
    "many pattern properties": schema({"patternProperties": {f"^a{i}_": {} for i in range(1000)}}),
    "exploding terminals": lark(
        "start: T0\n" + "".join(f"T{i}: T{i + 1} T{i + 1}\n" for i in range(30)) + "T30: /a/\n"
    ),
    "exploding allOf": schema(
        {"allOf": [{"anyOf": [{"properties": {f"a{i}_{j}": {}}} for j in range(6)]} for i in range(12)]}
    ),
    "own options": schema({"x-guidance": {"whitespace_flexible": True}, "type": "object"}),
    "look-around": regex("(?=a)b"),
    "not a schema": Grammar(kind="json_schema", source="[1, 2"),
    "nothing": regex(""),
}

SLOW = {"intersected patterns": schema({"allOf": [{"pattern": f"a.{{{i}}}b"} for i in range(20)]})}

CHEAP = {
    "nested quantifiers": regex("(a+)+b"),
    "nested counts": regex("((a{1,9999}){1,9999})"),
    "subset construction": regex("[ab]*a[ab]{500}"),
    "any value": schema({}),
    "many items": schema({"type": "array", "minItems": 5000, "items": {"type": "string"}}),
    "long strings": schema({"type": "string", "minLength": 100_000}),
    "pattern bomb": schema({"type": "string", "pattern": "^(([a-z]{1,100}){1,100}){1,100}$"}),
    "tower": schema(_nested(60, "additionalProperties")),
    "recursion": schema({"$defs": {"a": {"properties": {"x": {"$ref": "#/$defs/a"}}}}, "$ref": "#/$defs/a"}),
    "ambiguous rules": lark('start: e\ne: e e e | e e | "a" | "aa"\n'),
    "empty loops": lark('start: x*\nx: y*\ny: "a"*\n'),
    "many properties": schema({"type": "object", "properties": {f"p{i}": {} for i in range(900)}}),
}
