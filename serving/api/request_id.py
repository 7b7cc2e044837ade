"""The id of a request: taken from the client where it sent a plain one, made here otherwise. It is in the answer's
headers, in every error and in the log."""

from __future__ import annotations

import re
import uuid

from flask import Flask, Response, g, has_request_context, request

HEADER = "x-request-id"

_PLAIN = re.compile(r"[A-Za-z0-9._:/=+-]{1,64}")


def current_request_id() -> str:
    """The running request's id; a new one outside of a request."""
    if not has_request_context():
        return _new()
    found: str | None = g.get("request_id")
    if found is None:
        sent = request.headers.get(HEADER, "")
        found = g.request_id = sent if _PLAIN.fullmatch(sent) else _new()
    return found


def register(app: Flask) -> None:
    app.after_request(_add_header)


def _add_header(response: Response) -> Response:
    response.headers[HEADER] = current_request_id()
    return response


def _new() -> str:
    return uuid.uuid4().hex
