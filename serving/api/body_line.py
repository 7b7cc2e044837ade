"""What marks the requests that were lines of one JSON-lines body. Plain data, found in their environment."""

from __future__ import annotations

from dataclasses import dataclass

from flask import request

ENVIRON_KEY = "serving.line"


@dataclass(slots=True, frozen=True)
class BodyLine:
    deadline: float | None
    """The whole body's, a reading of `time.monotonic`."""


def current_line() -> BodyLine | None:
    """None when the running request came by itself."""
    found: BodyLine | None = request.environ.get(ENVIRON_KEY)
    return found
