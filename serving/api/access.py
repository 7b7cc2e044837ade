"""One log line, one count and one span for every answered request, whichever route it had and however it ended. Never holds
what a client wrote: routes are named by their rules, errors by their types.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from flask import Flask, Response, g, has_request_context, request

from serving import logs
from serving.api.body_line import current_line
from serving.api.context import context
from serving.api.error_styles import Problem
from serving.api.realtime.event_request import current_event
from serving.api.request_id import current_request_id
from serving.metrics import ServerMetrics
from serving.tracing import PARENT_HEADERS, Attribute, RequestSpan, Tracing

logger = logging.getLogger(__name__)

UNKNOWN_ROUTE = "unknown"
CLIENT_CLOSED = "client_closed"

FIELDS = (
    "method", "route", "status", "error_type", "field", "api", "model", "stream", "n",
    "input_tokens", "cached_tokens", "generated_tokens", "handler_s", "validation_s", "queue_s", "ttft_s", "inference_s",
    "total_s", "finish_reason", "deadline", "seed", "ignored_parameters",
    "request_id", "engine_request_id", "inference_id", "session", "trace_id",
)  # fmt: skip
"""What every request line has, in this order, what is read first in front; null (left out of plain lines) where it does
not apply."""

PROMPT_FIELDS = ("prompt", "answer")
"""What LOG_PROMPTS adds."""

_PROBES = frozenset({"/", "/ping", "/health", "/metrics"})
_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})
_CLIENT_CLOSED_STATUS = 499
_MAX_NAME_CHARS = 64


@dataclass(slots=True)
class Access:
    """A request from its arrival to its end. Whoever answers in its own time claims it, and must then call `finish`."""

    request_id: str
    method: str
    route: str
    started_s: float
    span: RequestSpan | None = None
    claimed: bool = False
    facts: dict[str, object] = field(default_factory=dict)
    """What a route that does not claim it wants in the line; keys are from `FIELDS`."""

    def finish(
        self,
        status: int,
        facts: Mapping[str, object],
        attributes: Mapping[str, Attribute],
        *,
        error_type: str | None = None,
        fault: str | None = None,
        ended_s: float,
    ) -> None:
        """Write the line and end the span. `fault` is the field an error names; keys of `facts` are from `FIELDS` and
        `PROMPT_FIELDS`."""
        known: dict[str, object] = {
            "request_id": self.request_id,
            "method": self.method,
            "route": self.route,
            "status": status,
            "total_s": ended_s - self.started_s,
            "error_type": error_type,
            "field": None if fault is None else plain_name(fault),
            "trace_id": None if self.span is None else self.span.trace_id,
            **facts,
        }
        fields = {name: known.get(name) for name in FIELDS}
        fields |= {name: known[name] for name in PROMPT_FIELDS if name in known}
        level = logging.WARNING if status in (424, 500) else logging.INFO
        logs.event(logger, level, "request", **fields)
        if self.span is not None:
            self.span.end(
                ended_s,
                {
                    "http.request.method": self.method,
                    "http.route": self.route,
                    "http.response.status_code": status,
                    "error.type": error_type,
                    "textgen.request_id": self.request_id,
                    **attributes,
                },
                error_type=error_type if status >= 500 or status == 424 else None,
            )


def register(app: Flask, metrics: ServerMetrics, tracing: Tracing | None) -> None:
    """Must be registered before everything else that may answer a request."""

    def arrive() -> None:
        access = _new_access()
        g.access = access
        if tracing is not None and not _is_probe(access):
            headers = {name: request.headers[name] for name in PARENT_HEADERS if name in request.headers}
            access.span = tracing.begin(f"{access.method} {access.route}", access.started_s, headers)

    def leave(response: Response) -> Response:
        access: Access = g.get("access") or _new_access()
        status = response.status_code
        if current_line() is None and current_event() is None:
            metrics.http_requests.labels(route=access.route, method=access.method, status=str(status)).inc()
        if not access.claimed and not _is_probe(access):
            problem: Problem | None = g.get("problem") if status >= 400 else None
            error_type = None if problem is None else problem.error_type
            access.finish(
                status,
                access.facts,
                {},
                error_type=CLIENT_CLOSED if status == _CLIENT_CLOSED_STATUS else error_type,
                fault=None if problem is None else problem.field,
                ended_s=time.monotonic(),
            )
        return response

    app.before_request(arrive)
    app.after_request(leave)


def current_access() -> Access:
    """The running request's; a new one outside of a request."""
    found: Access | None = g.get("access") if has_request_context() else None
    return _new_access() if found is None else found


def plain_name(name: str) -> str:
    """A name that a client chose (a field, an id), short and without anything that could be text."""
    return "".join(
        c if c.isascii() and (c.isalnum() or c in "._-[]") else "?" for c in name[:_MAX_NAME_CHARS]
    )


def model_id() -> str | None:
    """The served model's, never the name that a client gave."""
    ready = context().engine.ready
    return None if ready is None else ready.model_id


def _new_access() -> Access:
    method, route = "-", UNKNOWN_ROUTE
    if has_request_context():
        method = request.method if request.method in _METHODS else "OTHER"
        route = UNKNOWN_ROUTE if request.url_rule is None else request.url_rule.rule
    return Access(current_request_id(), method, route, time.monotonic())


def _is_probe(access: Access) -> bool:
    """What a platform asks every few seconds."""
    return access.method in ("GET", "HEAD") and access.route in _PROBES
