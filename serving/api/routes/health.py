"""`GET /ping`, `/health` and `/`: may this server get requests? Answered from memory, never waits."""

from __future__ import annotations

import msgspec
from flask import Blueprint, Response

from serving.api.context import context
from serving.api.error_handlers import json_response

blueprint = Blueprint("health", __name__)


class Unhealthy(msgspec.Struct, frozen=True):
    error: str
    error_type: str
    stage: str
    detail: str


@blueprint.get("/ping")
@blueprint.get("/health")
@blueprint.get("/")
def ping() -> Response:
    problem = context().readiness.problem()
    if problem is None:
        return Response(status=200, mimetype="text/plain")
    return json_response(
        Unhealthy(error="unhealthy", error_type="healthcheck", stage=problem.stage, detail=problem.detail),
        503,
    )
