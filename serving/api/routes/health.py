"""`GET /ping`, `/health` and `/`: may this server get requests? Answered from memory, never waits."""

from __future__ import annotations

from flask import Blueprint, Response

from serving.api.context import context
from serving.api.error_handlers import json_response
from serving.api.error_styles import short_text
from serving.api.schema.info import Unhealthy

blueprint = Blueprint("health", __name__)


@blueprint.get("/ping")
@blueprint.get("/health")
@blueprint.get("/")
def ping() -> Response:
    problem = context().readiness.problem()
    if problem is None:
        return Response(status=200, mimetype="text/plain")
    return json_response(
        Unhealthy(
            error="unhealthy",
            error_type="healthcheck",
            stage=problem.stage,
            detail=short_text(problem.detail),
        ),
        503,
    )
