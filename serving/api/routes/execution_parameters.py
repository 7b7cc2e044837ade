"""`GET /execution-parameters`: how a batch transform job is to cut its input, unless its caller decides that."""

from __future__ import annotations

from flask import Blueprint, Response

from serving.api.context import context
from serving.api.error_handlers import json_response
from serving.api.schema.info import ExecutionParameters
from serving.config import LimitsConfig

blueprint = Blueprint("execution_parameters", __name__)

MAX_PRODUCT_MB = 100
"""The platform's limit for transforms at once times the size of each."""

_USUAL_PAYLOAD_MB = 6
"""The platform's own default. Larger bodies would only leave fewer of them at once."""
_MB = 1024 * 1024


@blueprint.get("/execution-parameters")
def execution_parameters() -> Response:
    return json_response(for_limits(context().config.limits))


def for_limits(limits: LimitsConfig) -> ExecutionParameters:
    """As large as the body limit lets them be, up to the usual size, and as many of these as the platform allows and the
    engine holds."""
    payload_mb = max(1, min(_USUAL_PAYLOAD_MB, limits.payload_limit_bytes // _MB))
    return ExecutionParameters(
        max_concurrent_transforms=min(limits.max_concurrent_requests, MAX_PRODUCT_MB // payload_mb),
        batch_strategy="MULTI_RECORD",
        max_payload_in_mb=payload_mb,
    )
