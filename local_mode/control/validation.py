"""Requests against the shapes of the service model, with the messages that AWS gives.

Stricter than AWS in one point: a member that the model does not have is refused, not dropped. Looser in one: where AWS
wants an s3:// address, file:///… is one too, since there need be no S3 on this machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from botocore.model import Shape

from local_mode.contracts import Record, ServiceError

_MAX_SHOWN_CHARS = 256
_MUST = "failed to satisfy constraint: "
_TYPES: dict[str, tuple[type, ...]] = {
    "structure": (dict,),
    "map": (dict,),
    "list": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
    "timestamp": (int, float),
}
_S3_ADDRESS = "(https|s3)://"
_LOCAL_ADDRESS = re.compile(r"file:///.+")

# Java's classes of characters, which Python's `re` has under other names.
_CLASSES = (
    ("\\p{L}", r"\w"),
    ("\\p{N}", r"\d"),
    ("\\p{Z}", " \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"),
)


def check_request(shape: Shape, request: Record) -> None:
    """Raises `ServiceError`: SerializationException for a wrong type, ValidationException for everything else."""
    faults = list(_structure_faults(shape, request, ""))
    if faults:
        errors = "error" if len(faults) == 1 else "errors"
        raise ServiceError(
            "ValidationException", f"{len(faults)} validation {errors} detected: {'; '.join(faults)}"
        )


def _faults(shape: Shape, value: Any, path: str) -> Iterator[str]:
    kind = shape.type_name
    if not _is_of(kind, value):
        raise ServiceError("SerializationException", f"'{path}' must be a {kind}, not {type(value).__name__}")
    if kind == "structure":
        yield from _structure_faults(shape, value, path)
        return
    yield from (_fault(value, path, wanted) for wanted in _broken_constraints(shape, value))
    if kind == "list":
        for number, item in enumerate(value, start=1):
            yield from _faults(shape.member, item, f"{path}.{number}.member")
    elif kind == "map":
        for key, item in value.items():
            broken = [*_broken_constraints(shape.key, key)]
            yield from (
                _fault(value, path, f"Map keys must satisfy constraint: [{wanted}]") for wanted in broken
            )
            yield from _faults(shape.value, item, f"{path}.{key}.member")


def _is_of(kind: str, value: Any) -> bool:
    # To Python, True is an integer.
    return isinstance(value, _TYPES[kind]) and isinstance(value, bool) <= (kind == "boolean")


def _structure_faults(shape: Shape, value: Record, path: str) -> Iterator[str]:
    prefix = f"{path}." if path else ""
    for name in shape.required_members:
        if name not in value:
            yield f"Value null at '{prefix}{_spelled(name)}' {_MUST}Member must not be null"
    for name, member in value.items():
        if name not in shape.members:
            yield f"Value at '{prefix}{_spelled(name)}' {_MUST}Member is unknown; {shape.name} has {_some(shape)}"
        else:
            yield from _faults(shape.members[name], member, prefix + _spelled(name))


def _broken_constraints(shape: Shape, value: Any) -> Iterator[str]:
    limits = shape.metadata
    sized = shape.type_name in ("string", "list", "map")
    size, what = (len(value), "length") if sized else (value, "value")
    if "max" in limits and size > limits["max"]:
        yield f"Member must have {what} less than or equal to {limits['max']}"
        return
    if "min" in limits and size < limits["min"]:
        yield f"Member must have {what} greater than or equal to {limits['min']}"
    if limits.get("enum") and value not in limits["enum"]:
        yield f"Member must satisfy enum value set: [{', '.join(limits['enum'])}]"
    if "pattern" in limits and not _matches(limits["pattern"], value):
        yield f"Member must satisfy regular expression pattern: {limits['pattern']}"


def _matches(pattern: str, value: str) -> bool:
    if pattern.startswith(_S3_ADDRESS) and _LOCAL_ADDRESS.fullmatch(value):
        return True
    return _compiled(pattern).fullmatch(value) is not None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    for java, python in _CLASSES:
        pattern = pattern.replace(java, python)
    return re.compile(pattern)


def _fault(value: Any, path: str, wanted: str) -> str:
    """Unlike AWS's, of a map the keys only, since an environment may hold tokens, and of a long value the beginning."""
    text = f"{{{', '.join(value)}}}" if isinstance(value, dict) else str(value)
    text = text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}…"
    return f"Value '{text}' at '{path}' {_MUST}{wanted}"


def _spelled(member: str) -> str:
    """As AWS's messages spell a member: with a small first letter."""
    return member[:1].lower() + member[1:]


def _some(shape: Shape) -> str:
    return ", ".join(shape.members) or "no members"
