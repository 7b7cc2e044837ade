"""Requests for adapters, on every route that generates: whoever names one gets it or an error, never the base model in its
place. Knows no route.
"""

from __future__ import annotations

from flask import request

from serving.api.error_styles import printable
from serving.api.strict_json import JsonValue
from serving.errors import NotFound

ADAPTER_HEADER = "X-Amzn-SageMaker-Adapter-Identifier"
TARGET_HEADER = "X-Amzn-SageMaker-Target-Model"


def require_no_adapter(body: dict[str, JsonValue]) -> None:
    """Takes `adapter_id` out of `body`. Raises `NotFound` when it or the header names one."""
    named = body.pop("adapter_id", None)
    if named is None:
        named = request.headers.get(ADAPTER_HEADER) or None
    if named is not None:
        raise NotFound(
            f"the adapter {printable(str(named))!r} does not exist: none is loaded", field="adapter_id"
        )


def require_no_target_model() -> None:
    """Raises `NotFound` when the request is meant for one model of several, or for an adapter in S3."""
    named = request.headers.get(TARGET_HEADER)
    if named:
        raise NotFound(
            f"the target model {printable(named)!r} does not exist: this server has one model and no adapters, send the "
            f"request without {TARGET_HEADER}, or use inference components for several models",
            field="TargetModel",
        )
