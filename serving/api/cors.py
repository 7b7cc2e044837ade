"""Which web pages may call: preflights and the headers that let a browser's script read an answer
(https://fetch.spec.whatwg.org/#http-cors-protocol). Cookies are never involved.
"""

from __future__ import annotations

from flask import Flask, Response, request

from serving.config import HttpConfig

ALLOWED_METHODS = "GET, POST, OPTIONS"
# A star does not stand for `authorization`; it lets clients send trace and diagnostic headers of their own.
ALLOWED_HEADERS = "authorization, content-type, *"
EXPOSED_HEADERS = (
    "x-request-id, x-ignored-parameters, x-compute-type, x-compute-time, x-compute-characters, x-total-time, "
    "x-validation-time, x-queue-time, x-inference-time, x-time-per-token, x-prompt-tokens, x-generated-tokens, "
    "retry-after, www-authenticate"
)
_MAX_AGE_S = 600

_ALLOW_ORIGIN = "access-control-allow-origin"


def register(app: Flask, config: HttpConfig) -> None:
    """Answer preflights for every path, known or not, and mark answers. Must come before what asks for the key."""
    origins = _origins(config)
    anyone = not origins or "*" in origins

    def allowed_origin() -> str | None:
        origin = request.headers.get("Origin")
        if origin is None:
            return None
        if anyone:
            return "*"
        return origin if origin in origins else None

    def answer_preflight() -> Response | None:
        asks = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        if not asks or "Origin" not in request.headers:
            return None
        response = Response(status=204)
        if allowed_origin() is not None:
            response.headers["access-control-allow-methods"] = ALLOWED_METHODS
            response.headers["access-control-allow-headers"] = ALLOWED_HEADERS
            response.headers["access-control-max-age"] = str(_MAX_AGE_S)
        return response

    def mark(response: Response) -> Response:
        if not anyone:
            response.headers.add("vary", "origin")
        origin = allowed_origin()
        if origin is not None:
            response.headers[_ALLOW_ORIGIN] = origin
            if request.method != "OPTIONS":
                response.headers["access-control-expose-headers"] = EXPOSED_HEADERS
        return response

    app.before_request(answer_preflight)
    app.after_request(mark)


def may_call(origin: str | None, config: HttpConfig) -> bool:
    """For what browsers let any page do without asking, which is to open a WebSocket."""
    origins = _origins(config)
    return origin is None or not origins or "*" in origins or origin in origins


def _origins(config: HttpConfig) -> frozenset[str]:
    return frozenset(origin.rstrip("/") for origin in config.cors_allow_origin)
