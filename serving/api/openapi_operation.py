"""How one operation of the API is described, before it becomes OpenAPI. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serving.api.error_styles import NativeError, OpenAIError

JSON = "application/json"
EVENTS = "text/event-stream"
LINES = "application/jsonlines"
TEXT = "text/plain"
HTML = "text/html"

NATIVE_ERRORS = (NativeError,)
OPENAI_ERRORS = (OpenAIError,)
BOTH_ERRORS = (NativeError, OpenAIError)

GENERATION_HEADERS = {
    "x-compute-type": "number of ranks and the device, such as `1-cpu`",
    "x-compute-characters": "characters of the prompt",
    "x-ignored-parameters": "request fields that nobody read, separated by commas",
}
TIMING_HEADERS = {
    "x-compute-time": "seconds from the request to the answer",
    "x-total-time": "the same in milliseconds",
    "x-validation-time": "milliseconds until the request was queued",
    "x-queue-time": "milliseconds in the queue",
    "x-inference-time": "milliseconds of generation",
    "x-time-per-token": "milliseconds per token",
    "x-prompt-tokens": "tokens of the prompt",
    "x-generated-tokens": "tokens of the answer",
}


CHAT_EXAMPLE = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 20}


@dataclass(slots=True, frozen=True)
class Answer:
    """What a good request gets. `schemas` maps a content type to the types its body may have: those of the events where it
    is a stream of server-sent events, none where it is text or nothing at all."""

    description: str
    schemas: Mapping[str, tuple[Any, ...]]
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200


@dataclass(slots=True, frozen=True)
class Operation:
    """One method of one path. `errors` are the statuses that requests of this operation can be answered with, besides
    those that every request can."""

    method: str
    path: str
    name: str
    tag: str
    summary: str
    answer: Answer
    description: str = ""
    bodies: tuple[Any, ...] = ()
    """The types one of which the body has."""
    example: Mapping[str, Any] | None = None
    lines_example: str = ""
    """A body of JSON lines, where those are taken."""
    path_parameters: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    errors: tuple[int, ...] = ()
    error_types: tuple[type, ...] = NATIVE_ERRORS
    unready: type | None = None
    """What a 503 holds where it is no error body."""
    ends_streams: bool = False
    """True where streams may end with OpenAI's `[DONE]`."""
    open: bool = False
    """True where no API key is asked for."""


BODY_ERRORS = (400, 408, 413, 415, 422, 429, 503)
"""What can be wrong with any body, and with the server's readiness for it."""
