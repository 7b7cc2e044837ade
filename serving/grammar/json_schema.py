"""What a JSON schema may hold before it is compiled: keywords that are enforced, and sizes that stay cheap. Plain data only.

A keyword that constrains values and cannot be enforced is refused by name; one that merely describes is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction

from serving.errors import InvalidRequest

MAX_DEPTH = 64
MAX_SCHEMAS = 4096
MAX_ENUM_MEMBERS = 4096
MAX_PROPERTIES = 1024
MAX_BOUND = 100_000
MAX_PATTERN_CHARS = 2048
MAX_PATTERN_PROPERTIES = 64
MAX_COMMON_MULTIPLE = 10_000

JSON = dict[str, "JSON"] | list["JSON"] | str | int | float | bool | None

_ENFORCED = frozenset({
    "type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions", "properties", "required",
    "additionalProperties", "patternProperties", "minProperties", "maxProperties", "items", "prefixItems",
    "additionalItems", "minItems", "maxItems", "minLength", "maxLength", "pattern", "format", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
})  # fmt: skip
_DESCRIPTIVE = frozenset({
    "title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly", "$comment",
    "$schema", "$id", "discriminator", "contentEncoding", "contentMediaType", "contentSchema", "xml", "externalDocs",
})  # fmt: skip
_SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties", "additionalItems")
_BOUNDS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")


def check_schema(schema: JSON) -> None:
    """Raises `InvalidRequest` naming the keyword, the value and the limit."""
    if not isinstance(schema, dict | bool):
        raise _refusal(f"a JSON schema is an object, got {type(schema).__name__}")
    num_schemas = num_members = num_properties = num_patterns = 0
    multiples: set[Fraction] = set()
    for depth, node in _walk(schema):
        num_schemas += 1
        _require(depth <= MAX_DEPTH, f"the schema is nested deeper than {MAX_DEPTH} levels")
        _require(num_schemas <= MAX_SCHEMAS, f"the schema holds more than {MAX_SCHEMAS} schemas")
        if not isinstance(node, dict):
            continue
        _check_keywords(node)
        _check_bounds(node)
        members, properties, patterns = (
            node.get("enum"),
            node.get("properties"),
            node.get("patternProperties"),
        )
        num_members += len(members) if isinstance(members, list) else 0
        num_properties += len(properties) if isinstance(properties, dict) else 0
        _require(num_members <= MAX_ENUM_MEMBERS, f"`enum`s have more than {MAX_ENUM_MEMBERS} members")
        _require(num_properties <= MAX_PROPERTIES, f"`properties` has more than {MAX_PROPERTIES} members")
        num_patterns += len(patterns) if isinstance(patterns, dict) else 0
        _require(
            num_patterns <= MAX_PATTERN_PROPERTIES,
            f"`patternProperties` has more than {MAX_PATTERN_PROPERTIES} members",
        )
        _check_multiple(node, multiples)


def _walk(schema: JSON) -> Iterator[tuple[int, JSON]]:
    """Every schema in `schema` with its depth; what is no schema (enum members, names) is not visited."""
    stack: list[tuple[int, JSON]] = [(0, schema)]
    while stack:
        depth, node = stack.pop()
        yield depth, node
        if not isinstance(node, dict):
            continue
        for keyword in _SCHEMA_MAPS:
            if isinstance(inner := node.get(keyword), dict):
                stack.extend((depth + 1, value) for value in inner.values())
        for keyword in _SCHEMA_LISTS:
            if isinstance(several := node.get(keyword), list):
                stack.extend((depth + 1, value) for value in several)
        stack.extend((depth + 1, node[keyword]) for keyword in _SCHEMAS if keyword in node)


def _check_keywords(node: dict[str, JSON]) -> None:
    for keyword, value in node.items():
        if keyword in _ENFORCED or keyword in _DESCRIPTIVE:
            continue
        if keyword.startswith("x-") and keyword != "x-guidance":
            continue
        raise _refusal(
            f"the schema keyword `{keyword[:64]}` ({str(value)[:64]}) cannot be enforced: leave it out"
        )


def _check_bounds(node: dict[str, JSON]) -> None:
    for keyword in _BOUNDS:
        value = node.get(keyword)
        if isinstance(value, int | float) and value > MAX_BOUND:
            raise _refusal(f"`{keyword}` is {value}, must be at most {MAX_BOUND}")
    patterns = [node.get("pattern"), *(node.get("patternProperties") or {})]  # type: ignore[misc]
    for pattern in patterns:
        if isinstance(pattern, str) and len(pattern) > MAX_PATTERN_CHARS:
            raise _refusal(f"`pattern` has {len(pattern)} characters, must have at most {MAX_PATTERN_CHARS}")


def _check_multiple(node: dict[str, JSON], multiples: set[Fraction]) -> None:
    """The automaton of `multipleOf` has a state per remainder, and an intersection the common multiple of all. Those before
    are in `multiples`; few different ones have a small common multiple."""
    value = node.get("multipleOf")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if not 0 < value <= MAX_COMMON_MULTIPLE:
        raise _refusal(f"`multipleOf` is {value}, must be above 0 and at most {MAX_COMMON_MULTIPLE}")
    multiple = Fraction(Decimal(str(value)))
    if multiple in multiples:
        return
    multiples.add(multiple)
    scale = math.lcm(*(each.denominator for each in multiples))
    common = math.lcm(*(int(each * scale) for each in multiples))
    _require(
        common <= MAX_COMMON_MULTIPLE and scale <= 10**12,
        f"the least common multiple of all `multipleOf`, without decimals, is above {MAX_COMMON_MULTIPLE}",
    )


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise _refusal(problem)


def _refusal(problem: str) -> InvalidRequest:
    return InvalidRequest(f"`grammar` is refused: {problem}", field="grammar")
