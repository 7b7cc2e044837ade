"""`GET /docs`, a page for people, and `GET /api-doc/openapi.json`, the document it is made from."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from flask import Blueprint, Response

from serving.api.openapi import Document
from serving.api.pages.docs import content_security_policy, render
from serving.config import ServerConfig


def blueprint_for(config: ServerConfig) -> Blueprint:
    """Both are made at the first request; they do not change while the server runs."""
    blueprint = Blueprint("docs", __name__)
    document = Document(config)
    page: Callable[[], bytes] = cache(lambda: render(document.tree).encode())

    @blueprint.get("/api-doc/openapi.json")
    def openapi() -> Response:
        return Response(document.as_json, content_type="application/json")

    @blueprint.get("/docs")
    def docs() -> Response:
        response = Response(page(), content_type="text/html; charset=utf-8")
        response.headers["content-security-policy"] = content_security_policy()
        response.headers["x-content-type-options"] = "nosniff"
        response.headers["referrer-policy"] = "no-referrer"
        return response

    return blueprint
