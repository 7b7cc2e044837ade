"""The declared fields of `ServerConfig` by their `slice.field` path, and how a text becomes the value of one."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import inspect

from serving.config import ServerConfig

Parser = Callable[[str], object]

_TRUE = frozenset({"1", "true", "t", "yes", "y", "on"})
_FALSE = frozenset({"0", "false", "f", "no", "n", "off"})
INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_MAX_SHOWN = 100  # characters of a value in a line that is to be read


def field_info(path: str) -> inspect.Field:
    """msgspec's description of `slice.field` in `ServerConfig`."""
    slice_name, field_name = path.split(".")
    for slice_field in _struct_fields(ServerConfig):
        if slice_field.name == slice_name and isinstance(slice_field.type, inspect.StructType):
            return next(field for field in slice_field.type.fields if field.name == field_name)
    raise KeyError(path)


def all_fields() -> dict[str, inspect.Field]:
    """Every declared field by its `slice.field` path, in order."""
    return {
        f"{part.name}.{field.name}": field
        for part in _struct_fields(ServerConfig)
        if isinstance(part.type, inspect.StructType)
        for field in part.type.fields
    }


def _struct_fields(struct: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    info = inspect.type_info(struct)
    return info.fields if isinstance(info, inspect.StructType) else ()


def field_type(path: str) -> inspect.Type:
    """The field's type without its description and without None."""
    found = _unwrap(field_info(path).type)
    if isinstance(found, inspect.UnionType):
        found = next(_unwrap(kind) for kind in found.types if not isinstance(kind, inspect.NoneType))
    return found


def field_description(path: str) -> str:
    found: Any = field_info(path).type
    while isinstance(found, inspect.Metadata):
        if found.extra_json_schema and "description" in found.extra_json_schema:
            return str(found.extra_json_schema["description"])
        found = found.type
    return ""


def _unwrap(kind: inspect.Type) -> inspect.Type:
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    return kind


def parse_bool(text: str) -> bool | None:
    """What a text of many spellings means; None when it is no boolean."""
    return True if text.lower() in _TRUE else False if text.lower() in _FALSE else None


def parse_as(kind: inspect.Type, text: str) -> object:
    """Read `text` as a value of `kind`. Raises ValueError whose text says what is allowed."""
    value: object = None
    if isinstance(kind, inspect.BoolType):
        value = parse_bool(text)
    elif isinstance(kind, inspect.IntType):
        value = int(text) if INTEGER.fullmatch(text) else None
    elif isinstance(kind, inspect.FloatType):
        value = _finite(text)
    elif isinstance(kind, inspect.LiteralType):
        value = text.lower() if text.lower() in kind.values else None
    elif isinstance(kind, inspect.StrType):
        value = text
    elif isinstance(kind, inspect.VarTupleType):
        items = [item.strip() for item in text.split(",")]
        value = tuple(parse_as(_unwrap(kind.item_type), item) for item in items if item)
    if value is None or not _in_bounds(kind, value):
        raise ValueError(allowed_text(kind))
    return value


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _in_bounds(kind: inspect.Type, value: object) -> bool:
    if not isinstance(kind, (inspect.IntType, inspect.FloatType)) or not isinstance(value, (int, float)):
        return True
    return (
        (kind.ge is None or value >= kind.ge)
        and (kind.gt is None or value > kind.gt)
        and (kind.le is None or value <= kind.le)
        and (kind.lt is None or value < kind.lt)
    )


def short(text: str) -> str:
    """`text` for an error message: variables hold up to 1,024 characters."""
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}… ({len(text)} characters)"


def allowed_text(kind: inspect.Type) -> str:
    """What a person may write, in words."""
    if isinstance(kind, inspect.BoolType):
        return "true or false (also 1/0, yes/no, on/off)"
    if isinstance(kind, inspect.LiteralType):
        return ", ".join(str(value) for value in kind.values)
    if isinstance(kind, inspect.VarTupleType):
        return f"{allowed_text(_unwrap(kind.item_type))}, or several with commas between them"
    if isinstance(kind, (inspect.IntType, inspect.FloatType)):
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (
                ("at least", kind.ge),
                ("above", kind.gt),
                ("at most", kind.le),
                ("below", kind.lt),
            )
            if bound is not None
        ]
        noun = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
        return " ".join([noun, " and ".join(bounds)]) if bounds else noun
    return "text"


def is_address(text: str) -> bool:
    """Whether `text` is an IP literal."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
