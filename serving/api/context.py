"""What all routes of one worker share. Made by `create_app`, found in the running Flask app."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flask import current_app
from gevent.lock import BoundedSemaphore

from serving.api.handler_client import HandlerClient
from serving.api.json_body import BodyReader
from serving.api.readiness import Readiness
from serving.api.roles import EngineClient
from serving.api.start_gate import StartGate
from serving.config import ServerConfig
from serving.metrics import ServerMetrics

EXTENSION = "serving"


@dataclass(slots=True, frozen=True)
class ApiContext:
    config: ServerConfig
    engine: EngineClient
    readiness: Readiness
    bodies: BodyReader
    metrics: ServerMetrics
    start_gate: StartGate
    spell_gate: StartGate
    handler: Callable[[], HandlerClient | None]
    """Looks for the custom handler; only once the server is ready."""
    line_places: BoundedSemaphore
    """One per line of a JSON-lines body that is in hand."""


def context() -> ApiContext:
    found: ApiContext = current_app.extensions[EXTENSION]
    return found
