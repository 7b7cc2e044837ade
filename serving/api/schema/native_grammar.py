"""TGI's `grammar` object, as it stands in native parameters and, in TGI's form, in `response_format`, and what it asks
of the engine. Knows nothing of HTTP.

Differences to TGI, on purpose: a schema needs no top-level `properties`, and the grammar holds for the whole answer.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from serving.api import strict_json
from serving.errors import InvalidRequest, MalformedBody
from serving.sampling_params import Grammar

_SchemaOrText = Annotated[
    dict[str, Any] | str, Meta(description="a JSON schema, or a string that contains one")
]


class JsonGrammar(msgspec.Struct, kw_only=True, tag="json"):
    """The answer is a JSON value that the schema allows."""

    value: _SchemaOrText


class JsonObjectGrammar(msgspec.Struct, kw_only=True, tag="json_object"):
    """Another name of `json`."""

    value: _SchemaOrText


class RegexGrammar(msgspec.Struct, kw_only=True, tag="regex"):
    """The whole answer matches the expression (Rust's syntax, without look-around and back-references)."""

    value: Annotated[str, Meta(description="the regular expression")]


class NamedSchema(msgspec.Struct, kw_only=True):
    schema: Annotated[dict[str, Any], Meta(description="the JSON schema")]
    name: str | None = None
    strict: Annotated[
        bool | None, Meta(description="no effect: a schema is always followed to the letter")
    ] = None


class JsonSchemaGrammar(msgspec.Struct, kw_only=True, tag="json_schema"):
    """The answer is a JSON value that the named schema allows."""

    value: NamedSchema


NativeGrammar = JsonGrammar | JsonObjectGrammar | RegexGrammar | JsonSchemaGrammar


def to_grammar(grammar: NativeGrammar, *, field: str, supported: bool = True) -> Grammar:
    """What the engine compiles. Raises `InvalidRequest` naming `field`."""
    if not supported:
        raise InvalidRequest(
            f"`{field}` is not supported: grammars are switched off on this server (GRAMMAR_SUPPORT=false)",
            field=field,
        )
    if isinstance(grammar, RegexGrammar):
        return Grammar(kind="regex", source=grammar.value)
    if isinstance(grammar, JsonSchemaGrammar):
        return _json_schema(grammar.value.schema)
    value = grammar.value
    return _json_schema(_parsed(value, f"{field}.value") if isinstance(value, str) else value)


def unknown_grammar_fields(grammar: object, *, prefix: str) -> list[str]:
    """Names in a grammar object, and in a named schema's envelope, that nobody reads."""
    if not isinstance(grammar, dict):
        return []
    names = [f"{prefix}{name}" for name in grammar if name not in ("type", "value")]
    envelope = grammar.get("value")
    if grammar.get("type") == "json_schema" and isinstance(envelope, dict):
        known = NamedSchema.__struct_encode_fields__
        names += [f"{prefix}value.{name}" for name in envelope if name not in known]
    return names


def _parsed(text: str, field: str) -> dict[str, Any]:
    try:
        schema = strict_json.parse(text.encode("utf-8"))
    except MalformedBody as error:
        reason = error.message.replace("the body", "the text")
        raise InvalidRequest(f"`{field}` must be a JSON schema: {reason}", field=field) from None
    if not isinstance(schema, dict):
        raise InvalidRequest(f"`{field}` must be a JSON schema: its JSON text is not an object", field=field)
    return schema


def _json_schema(schema: dict[str, Any]) -> Grammar:
    return Grammar(kind="json_schema", source=msgspec.json.encode(schema).decode())
