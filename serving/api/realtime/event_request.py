"""What marks the requests that came as events of a WebSocket connection. Plain data, found in their environment."""

from __future__ import annotations

from dataclasses import dataclass

from flask import has_request_context, request

from serving.api.strict_json import JsonValue

ENVIRON_KEY = "serving.event"


@dataclass(slots=True, frozen=True)
class EventRequest:
    """The key was asked for when the connection was made, and the body was read with the event."""

    body: dict[str, JsonValue]


def current_event() -> EventRequest | None:
    """None when the running request came by itself."""
    if not has_request_context():
        return None
    found: EventRequest | None = request.environ.get(ENVIRON_KEY)
    return found
