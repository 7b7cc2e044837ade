"""The ways the OpenAI routes can ask for structured output, as one `Grammar`: `response_format` in OpenAI's and in TGI's
form, and the `guided_` fields that vLLM's clients send. Compiles nothing.
"""

from __future__ import annotations

import json
from typing import Any

from serving.api import strict_json
from serving.api.schema.generate import Limits
from serving.api.schema.openai_sampling import SamplingFields, refuse
from serving.errors import InvalidRequest, MalformedBody
from serving.sampling_params import Grammar

MAX_CHOICES = 1024
MAX_GRAMMAR_CHARS = 256 * 1024

_FIELD = "response_format"
_GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
_TYPES = "text, json_object, json_schema, json or regex"
_KNOWN_KEYS = {"type", "value", "json_schema"}
_SCHEMA_KEYS = {"name", "description", "schema", "strict"}


def check_formats(fields: SamplingFields, response_format: dict[str, Any] | None, limits: Limits) -> None:
    """At most one way to ask, in a known shape, and only where grammars are on. Raises `InvalidRequest`."""
    asked = [name for name in _GUIDED if getattr(fields, name) is not None]
    if response_format is not None and _of_response_format(response_format) is not None:
        asked.append(_FIELD)
    if len(asked) > 1:
        raise InvalidRequest(
            f"`{asked[0]}` and `{asked[1]}` exclude each other: send one of them", field=asked[1]
        )
    grammar = grammar_of(fields, response_format)
    if grammar is None:
        return
    if not limits.grammar_support:
        raise InvalidRequest(
            f"`{asked[0]}`: structured output is switched off on this server", field=asked[0]
        )
    if len(grammar.source) > MAX_GRAMMAR_CHARS:
        raise InvalidRequest(
            f"`{asked[0]}` has {len(grammar.source)} characters, must have at most {MAX_GRAMMAR_CHARS}",
            field=asked[0],
        )


def asked_field(fields: SamplingFields, response_format: dict[str, Any] | None) -> str | None:
    """The field that asks for a grammar, in a checked request."""
    asked = next((name for name in _GUIDED if getattr(fields, name) is not None), None)
    if asked is None and response_format is not None and response_format.get("type") != "text":
        return _FIELD
    return asked


def grammar_of(fields: SamplingFields, response_format: dict[str, Any] | None) -> Grammar | None:
    """What the answer has to match; None for free text."""
    if fields.guided_json is not None:
        return _json_schema("guided_json", fields.guided_json)
    if fields.guided_regex is not None:
        return Grammar(kind="regex", source=fields.guided_regex)
    if fields.guided_choice is not None:
        return _choice(fields.guided_choice)
    if fields.guided_grammar is not None:
        return Grammar(kind="lark", source=fields.guided_grammar)
    return None if response_format is None else _of_response_format(response_format)


def _of_response_format(given: dict[str, Any]) -> Grammar | None:
    kind = given.get("type")
    for name in given:
        if name not in _KNOWN_KEYS:
            refuse(f"{_FIELD}.{name[:64]}", given[name], "which is not a field of a response format")
    if kind == "text":
        return None
    if kind == "regex":
        if not isinstance(given.get("value"), str):
            raise InvalidRequest(f"`{_FIELD}.value` must be a regular expression", field=f"{_FIELD}.value")
        return Grammar(kind="regex", source=given["value"])
    if kind in ("json", "json_object"):
        if given.get("value") is None:
            return Grammar(kind="json_schema", source='{"type":"object"}')
        return _json_schema(f"{_FIELD}.value", given["value"])
    if kind == "json_schema":
        return _named_schema(given)
    raise InvalidRequest(f"`{_FIELD}.type` is {str(kind)[:64]!r}, must be {_TYPES}", field=f"{_FIELD}.type")


def _named_schema(given: dict[str, Any]) -> Grammar:
    """OpenAI keeps the schema in `json_schema.schema`, TGI in `value.schema`."""
    key = "json_schema" if given.get("json_schema") is not None else "value"
    named = given.get(key)
    if not isinstance(named, dict):
        raise InvalidRequest(
            f"`{_FIELD}.json_schema` is missing: an object with a `schema`", field=f"{_FIELD}.json_schema"
        )
    for name in named:
        if name not in _SCHEMA_KEYS:
            refuse(f"{_FIELD}.{key}.{name[:64]}", named[name], "which is not a field of a JSON schema format")
    return _json_schema(f"{_FIELD}.{key}.schema", named.get("schema"))


def _json_schema(field: str, schema: Any) -> Grammar:
    """`schema` is an object or its JSON text."""
    if isinstance(schema, str):
        try:
            schema = strict_json.parse(schema.encode("utf-8"))
        except MalformedBody as error:
            reason = error.message.replace("the body", "the text")
            raise InvalidRequest(f"`{field}` must be a JSON schema: {reason}", field=field) from None
    if not isinstance(schema, dict):
        raise InvalidRequest(f"`{field}` must be a JSON schema (an object)", field=field)
    return Grammar(kind="json_schema", source=json.dumps(schema, ensure_ascii=False, separators=(",", ":")))


def _choice(choices: list[str]) -> Grammar:
    if not 1 <= len(choices) <= MAX_CHOICES:
        refuse("guided_choice", f"a list of {len(choices)}", f"must have 1 to {MAX_CHOICES} choices")
    alternatives = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    if not all(choices):
        raise InvalidRequest("`guided_choice` has an empty choice", field="guided_choice")
    return Grammar(kind="lark", source=f"start: {alternatives}\n")
