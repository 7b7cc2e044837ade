"""`GET /metrics`: the Prometheus page. Complete, but for the engine's part, without an engine."""

from __future__ import annotations

from flask import Blueprint, Response

from serving.api.context import context
from serving.errors import RequestError
from serving.messages import EngineStats
from serving.metrics import CONTENT_TYPE

blueprint = Blueprint("metrics", __name__)

_STATS_TIMEOUT_S = 1.0


@blueprint.get("/metrics")
def metrics() -> Response:
    return Response(context().metrics.render(_engine_stats()), content_type=CONTENT_TYPE)


def _engine_stats() -> EngineStats | None:
    """None while the engine cannot be asked."""
    try:
        return context().engine.stats(_STATS_TIMEOUT_S)
    except (TimeoutError, RequestError):
        return None
