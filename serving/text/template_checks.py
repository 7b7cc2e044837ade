"""Looks at operations of a template before they are done: those whose result can be far larger than what goes in.

Knows Python's and jinja2's functions by name; knows nothing of chats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from jinja2.exceptions import SecurityError
from jinja2.runtime import Undefined

from serving.text.template_meter import Meter

MAX_WIDTH = 1 << 20
_MAX_SEPARATOR = 64
_MAX_SUM = 1 << 26

Arguments = list[object]
Check = Callable[[Meter, Arguments, dict[str, object]], None]
"""Looks at the arguments, the value itself first. May replace a one-time iterable by the list of its items."""


def check_operator(meter: Meter, operator: str, left: object, right: object) -> None:
    if operator == "*":
        _check_product(meter, left, right)
    elif operator == "**":
        if isinstance(left, int) and isinstance(right, int):
            meter.require_integer(left.bit_length() * max(0, right))
    elif operator == "%" and isinstance(left, str | bytes):
        _check_format(meter, [left, right], {}, marker="%", nested="*")


def check_method(meter: Meter, method: object, args: Arguments, kwargs: dict[str, object]) -> Arguments:
    """The arguments to call the bound `method` of a text or number with."""
    # jinja2 replaces `format` by a function of its own, which refers to the method.
    method = getattr(method, "__wrapped__", method)
    owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if not isinstance(owner, str | bytes | int | float):
        return args
    check_widths(meter, [owner, *args], kwargs)
    check = _METHODS.get(name)
    if check is None:
        return args
    checked = [owner, *args]
    check(meter, checked, kwargs)
    return checked[1:]


def check_widths(meter: Meter, args: Arguments, kwargs: dict[str, object]) -> None:
    for value in (*args[1:], *kwargs.values()):
        if isinstance(value, int) and abs(value) > MAX_WIDTH:
            raise SecurityError(f"the template uses the width {value:.3g}, the limit is {MAX_WIDTH}")


def _check_product(meter: Meter, left: object, right: object) -> None:
    if isinstance(left, int):
        left, right = right, left
    if not isinstance(right, int):
        return
    if isinstance(left, int):
        meter.require_integer(left.bit_length() + right.bit_length())
    elif isinstance(left, str | bytes | list | tuple):
        meter.require_size(max(0, right) * max(1, meter.size(left)))


def _check_format(
    meter: Meter, args: Arguments, kwargs: Mapping[str, object], *, marker: str, nested: str
) -> None:
    pattern = args[0] if isinstance(args[0], str) else str(args[0])
    size, digits, depth, after_marker = 0, "", 0, False
    for char in pattern + " ":
        if char.isdecimal():
            digits += char
            continue
        size += int(digits[-18:] or 0) if len(digits) < 19 else meter.max_size + 1
        digits = ""
        depth += (char == "{") - (char == "}")
        if char == nested and (after_marker if nested == "*" else depth > 1):
            raise SecurityError("the template formats with a width from an argument")
        after_marker = char == marker or (after_marker and char in "-+ #.")
    shown = sum(meter.size(value) for value in (*args[1:], *kwargs.values()))
    meter.require_size(len(pattern) + size + pattern.count(marker) * shown)


def _check_percent_filter(meter: Meter, args: Arguments, kwargs: dict[str, object]) -> None:
    _check_format(meter, args, kwargs, marker="%", nested="*")


def _check_format_method(meter: Meter, args: Arguments, kwargs: dict[str, object]) -> None:
    _check_format(meter, args, kwargs, marker="{", nested="{")


def _check_replace(meter: Meter, args: Arguments, kwargs: dict[str, object]) -> None:
    text, old, new = ([*args, *kwargs.values(), "", ""])[:3]
    if isinstance(text, bytes):
        text, old, new = text.decode("latin-1"), str(old), str(new)
    text, old, new = str(text), str(old), str(new)
    meter.require_size(len(text) + text.count(old) * len(new))


def _check_join(meter: Meter, args: Arguments, kwargs: dict[str, object]) -> None:
    """For `separator.join(items)`."""
    if len(args) > 1 and isinstance(args[1], Iterable):
        items = args[1] = list(args[1])
        meter.require_size(meter.size(args[0]) * len(items) + meter.size(items))


def _check_join_filter(meter: Meter, args: Arguments, kwargs: dict[str, object]) -> None:
    """For `items | join(separator)`."""
    separator = kwargs.get("d", args[1] if len(args) > 1 else "")
    joined: Arguments = [separator, args[0]]
    _check_join(meter, joined, {})
    if not isinstance(args[0], str | Undefined):
        args[0] = joined[1]


def _check_tabs(meter: Meter, args: Arguments, kwargs: dict[str, object]) -> None:
    width = kwargs.get("tabsize", args[1] if len(args) > 1 else 8)
    if isinstance(width, int) and isinstance(args[0], str | bytes):
        tab = "\t" if isinstance(args[0], str) else b"\t"
        meter.require_size(meter.size(args[0]) + args[0].count(tab) * max(0, width))  # type: ignore[arg-type]


def _check_indent(meter: Meter, args: Arguments, kwargs: dict[str, object]) -> None:
    width = kwargs.get("width", args[1] if len(args) > 1 else 4)
    size = width if isinstance(width, int) else meter.size(width)
    text = str(args[0])
    meter.require_size(len(text) + (text.count("\n") + 1) * size)


def _check_json(meter: Meter, args: Arguments, kwargs: dict[str, object]) -> None:
    for value in (*args[1:], *kwargs.values()):
        parts: Sequence[object] = value if isinstance(value, list | tuple) else [value]
        for part in parts:
            size = part if isinstance(part, int) else meter.size(part)
            if size > _MAX_SEPARATOR:
                raise SecurityError("the template writes JSON with an indent or separator that is too long")


def _check_sum(meter: Meter, args: Arguments, kwargs: dict[str, object]) -> None:
    # Adding up lists copies what is there already with every item.
    if isinstance(args[0], Iterable) and not isinstance(args[0], str):
        items = args[0] = list(args[0])
        if any(isinstance(item, list | tuple | dict) for item in items):
            meter.require_size(meter.size(items))
            if len(items) * meter.size(items) > _MAX_SUM:
                raise SecurityError("the template adds up too many lists")


def _refuse(meter: Meter, args: Arguments, kwargs: dict[str, object]) -> None:
    raise SecurityError("the template calls a method that chat templates cannot use")


_METHODS: dict[str, Check] = {
    "expandtabs": _check_tabs,
    "format": _check_format_method,
    "format_map": _check_format_method,
    "join": _check_join,
    "replace": _check_replace,
    "translate": _refuse,
}

FILTERS: dict[str, Check] = {
    "batch": check_widths,
    "center": check_widths,
    "format": _check_percent_filter,
    "indent": _check_indent,
    "join": _check_join_filter,
    "replace": _check_replace,
    "round": check_widths,
    "slice": check_widths,
    "sum": _check_sum,
    "tojson": _check_json,
    "truncate": check_widths,
}
