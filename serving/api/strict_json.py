"""Bytes of a request body to plain data, refusing everything two JSON readers could understand differently or
that costs far more to hold than to send. Knows nothing of HTTP or of schemas.
"""

from __future__ import annotations

import json
import math
import re
from typing import NoReturn

from serving.errors import MalformedBody

MAX_DEPTH = 64
MAX_VALUES = 250_000

JsonValue = dict[str, "JsonValue"] | list["JsonValue"] | str | int | float | bool | None

_STRING = re.compile(rb'"[^"]*+"?')
_ALL_BUT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_MAX_INTEGER_DIGITS = 20  # 2**64 - 1 has 20; longer integers are read as floats, as in other JSON readers


def parse(body: bytes) -> JsonValue:
    """Parse strict JSON. Raises `MalformedBody` with the position, or the name of what is refused."""
    if body.startswith(b"\xef\xbb\xbf"):
        raise MalformedBody(
            "the body starts with a byte order mark (position 0); send plain UTF-8 without one"
        )
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedBody(f"the body is not valid UTF-8 at byte {error.start}") from None
    if not text.strip(" \t\r\n"):
        raise MalformedBody("the body is empty, a JSON object is expected")
    _check_size(body)
    try:
        value: JsonValue = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise MalformedBody(
            f"the body is not valid JSON: {error.msg} "
            f"at line {error.lineno} column {error.colno} (char {error.pos})"
        ) from None
    if b"\\u" in body:
        _check_surrogates(value, "$")
    return value


def _check_size(body: bytes) -> None:
    """Bound nesting and the number of values before anything is built."""
    few_values = body.count(b",") < MAX_VALUES
    if few_values and body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if unescaped.count(b'"') > 4 * MAX_VALUES:
        raise MalformedBody(f"the body holds more than {MAX_VALUES} JSON values")
    skeleton = _STRING.sub(b"", unescaped)
    brackets = skeleton.translate(None, _ALL_BUT_BRACKETS)
    if max(skeleton.count(b","), len(brackets) // 2) >= MAX_VALUES:
        raise MalformedBody(f"the body holds more than {MAX_VALUES} JSON values")
    depth = 0
    for byte in brackets:
        depth += 1 if byte in b"[{" else -1
        if depth > MAX_DEPTH:
            raise MalformedBody(f"the body is nested more than {MAX_DEPTH} levels deep")


def _object(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise MalformedBody(f"the key {_shorten(key)} occurs twice in one object")
        seen.add(key)
    return members


def _integer(digits: str) -> int | float:
    if len(digits.lstrip("-")) <= _MAX_INTEGER_DIGITS:
        return int(digits)
    return _float(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise MalformedBody(f"the number {_shorten(digits)} is out of range")
    return number


def _constant(name: str) -> NoReturn:
    raise MalformedBody(f"the body is not valid JSON: {name} is not a JSON number")


def _check_surrogates(value: JsonValue, path: str) -> None:
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise MalformedBody(f"`{path}` holds a lone surrogate at character {error.start}") from None
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_surrogates(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_surrogates(key, f"{path}, a key")
            _check_surrogates(item, f"{path}.{key}" if len(key) <= 64 else f"{path}.…")


def _shorten(text: str) -> str:
    return json.dumps(text if len(text) <= 64 else text[:61] + "...")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
)
