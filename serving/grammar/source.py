"""What the source of a grammar may look like before a compiler sees it: size, nesting, and the schemas in it."""

from __future__ import annotations

import json
import re
from typing import NoReturn

from serving.errors import InvalidRequest
from serving.grammar.json_schema import JSON, check_schema
from serving.sampling_params import Grammar

MAX_SOURCE_BYTES = 64 * 1024
MAX_REGEX_CHARS = 8192
MAX_PARENTHESES = 100
_EMBEDDED_SCHEMA = re.compile(r"%json\s*(?=\{)")


def check_size(grammar: Grammar) -> None:
    """Raises `InvalidRequest` naming the limit. Takes microseconds."""
    num_bytes = len(grammar.source)  # at least
    if num_bytes <= MAX_SOURCE_BYTES:
        num_bytes = len(grammar.source.encode("utf-8", "surrogatepass"))
    if num_bytes > MAX_SOURCE_BYTES:
        _refuse(f"it has {num_bytes} bytes or more, must have at most {MAX_SOURCE_BYTES}")
    if grammar.kind == "regex" and len(grammar.source) > MAX_REGEX_CHARS:
        _refuse(f"it has {len(grammar.source)} characters, must have at most {MAX_REGEX_CHARS}")


def check_source(grammar: Grammar) -> None:
    """Raises `InvalidRequest` naming the limit or the keyword."""
    check_size(grammar)
    if not grammar.source.strip():
        _refuse("it is empty")
    if grammar.kind == "json_schema":
        check_schema(_decode(grammar.source))
    elif grammar.kind == "regex":
        _check_nesting(grammar.source)
    else:
        _check_lark(grammar.source)


def _check_lark(source: str) -> None:
    """The rules, without the JSON schemas embedded in them, which are checked as such."""
    rules: list[str] = []
    position = 0
    for match in _EMBEDDED_SCHEMA.finditer(source):
        if match.start() < position:
            continue
        try:
            schema, end = json.JSONDecoder().raw_decode(source, match.end())
        except (ValueError, RecursionError) as error:
            _refuse(f"the schema behind `%json` is not JSON ({str(error)[:80]})")
        check_schema({name: value for name, value in schema.items() if name != "x-guidance"})
        rules.append(source[position : match.start()])
        position = end
    rules.append(source[position:])
    _check_nesting("".join(rules))


def _check_nesting(source: str) -> None:
    depth = 0
    for character in source:
        depth += (character in "([") - (character in ")]")
        if depth > MAX_PARENTHESES:
            _refuse(f"parentheses are nested deeper than {MAX_PARENTHESES} levels")


def _decode(source: str) -> JSON:
    try:
        schema: JSON = json.loads(source)
    except (ValueError, RecursionError) as error:
        _refuse(f"it is not a JSON schema ({str(error)[:120]})")
    return schema


def _refuse(problem: str) -> NoReturn:
    raise InvalidRequest(f"`grammar` is refused: {problem}", field="grammar")
