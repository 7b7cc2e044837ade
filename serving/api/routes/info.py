"""`GET /info`: TGI's facts about the server and its model."""

from __future__ import annotations

from flask import Blueprint, Response

from serving.api.context import context
from serving.api.error_handlers import json_response
from serving.api.schema.info import Info
from serving.version import VERSION

blueprint = Blueprint("info", __name__)


@blueprint.get("/info")
def info() -> Response:
    shared = context()
    serving = shared.readiness.require()
    limits = shared.config.limits
    return json_response(
        Info(
            model_id=serving.engine.model_id,
            model_sha=serving.engine.revision,
            model_pipeline_tag="text-generation",
            model_dtype=serving.engine.dtype,
            model_device_type=serving.engine.device,
            max_concurrent_requests=limits.max_concurrent_requests,
            max_best_of=limits.max_best_of,
            max_stop_sequences=limits.max_stop_sequences,
            max_input_tokens=serving.limits.max_input_tokens,
            max_total_tokens=serving.limits.max_total_tokens,
            validation_workers=shared.config.http.api_workers or 1,
            max_client_batch_size=limits.max_client_batch_size,
            router="text-generation-router",
            version=VERSION,
            sha=None,
            docker_label=None,
        )
    )
