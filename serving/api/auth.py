"""Who may call: the API key, asked for on every path, known or not, before a body is read. Knows no routes but those
that are open.
"""

from __future__ import annotations

import hmac

from flask import Flask, Response, request

from serving.api.realtime.event_request import current_event
from serving.config import HttpConfig
from serving.errors import Unauthorized

SCHEME = "bearer"

_OPEN_TO_GET = frozenset({"/ping", "/health", "/metrics", "/execution-parameters"})
"""What a platform asks for, which has no key."""

_EXEMPTIONS = {"invocations": ("/invocations", "/invocations-bidirectional-stream")}


def register(app: Flask, config: HttpConfig) -> None:
    """Ask for the key on every request, if one is set. Must come after what answers preflights."""
    if config.api_key is None:
        return
    key = config.api_key.encode()
    exempt = frozenset(path for name in config.api_key_exempt for path in _EXEMPTIONS[name])

    def require_key() -> None:
        if current_event() is None and not _is_open(exempt) and not _has_key(key):
            raise Unauthorized("a valid API key is required: send it as `Authorization: Bearer <key>`")

    def name_scheme(response: Response) -> Response:
        if response.status_code == 401:
            response.headers["www-authenticate"] = "Bearer"
        return response

    app.before_request(require_key)
    app.after_request(name_scheme)


def _is_open(exempt: frozenset[str]) -> bool:
    """By the rule that the router matched, so that no spelling of a path is seen differently here."""
    rule = request.url_rule
    if rule is None:
        return False
    if request.method in ("GET", "HEAD") and not rule.websocket:
        return rule.rule in _OPEN_TO_GET
    return (request.method == "POST" or rule.websocket) and rule.rule in exempt


def _has_key(key: bytes) -> bool:
    """One header, its scheme in any case, its key to the byte; takes the same time wherever the keys differ."""
    sent = request.headers.getlist("Authorization")
    scheme, _, credentials = (sent[0] if len(sent) == 1 else "").partition(" ")
    equal = hmac.compare_digest(credentials.strip(" \t").encode("latin-1", "replace"), key)
    return scheme.lower() == SCHEME and equal
