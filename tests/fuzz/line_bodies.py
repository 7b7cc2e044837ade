"""Teaches schemathesis to write bodies of JSON lines: to import this module is enough."""

from __future__ import annotations

from typing import Any

import schemathesis

CONTENT_TYPE = "application/jsonlines"


@schemathesis.serializer(CONTENT_TYPE)
def write_lines(ctx: Any, value: Any) -> bytes:
    """The text as it is; what is no text has no place in such a body, which then is empty and to be refused."""
    return value.encode("utf-8", "replace") if isinstance(value, str) else b""
