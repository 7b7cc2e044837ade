"""TGI's native routes: `POST /generate`, `/generate_stream` and `/`."""

from __future__ import annotations

from flask import Blueprint, Response

from serving.api import native

blueprint = Blueprint("generate", __name__)


@blueprint.post("/generate")
def generate() -> Response:
    return native.handle(native.GENERATE)


@blueprint.post("/generate_stream")
def generate_stream() -> Response:
    return native.handle(native.GENERATE_STREAM)


@blueprint.post("/")
def compatible() -> Response:
    return native.handle(native.COMPATIBLE)
