"""Requests for adapters, on every route that generates: whoever names one gets it or an error, never the base model in its
place. Knows no route.
"""

from __future__ import annotations

from flask import request

from serving.api.error_styles import printable
from serving.api.strict_json import JsonValue
from serving.errors import NotFound

ADAPTER_HEADERS = ("X-Amzn-SageMaker-Adapter-Identifier", "X-Amzn-SageMaker-Adapter-Alias")
TARGET_HEADER = "X-Amzn-SageMaker-Target-Model"

_BODY_FIELDS = ("adapter_id", "adapters")
"""Of TGI and of LMI."""


def no_adapter(name: str | None, *, field: str) -> NotFound:
    """The one answer to whoever wants an adapter: `name` is what they call it, None when they name none."""
    called = "" if name is None else f" {printable(name)!r}"
    return NotFound(
        f"the adapter{called} does not exist: LoRA adapters are not supported yet, this server has its base model only",
        field=field,
    )


def require_no_adapter(body: dict[str, JsonValue]) -> None:
    """Takes `adapter_id` and `adapters` out of `body`. Raises `NotFound` when one of them or a header names an adapter."""
    for field in _BODY_FIELDS:
        named = body.pop(field, None)
        if named is not None:
            raise no_adapter(named if isinstance(named, str) else None, field=field)
    for header in ADAPTER_HEADERS:
        if in_header := request.headers.get(header):
            raise no_adapter(in_header, field=_BODY_FIELDS[0])


def require_no_target_model() -> None:
    """Raises `NotFound` when the request is meant for one model of several, or for an adapter in S3."""
    named = request.headers.get(TARGET_HEADER)
    if named:
        raise NotFound(
            f"the target model {printable(named)!r} does not exist: this server has one model and no adapters, send the "
            f"request without {TARGET_HEADER}, or use inference components for several models",
            field="TargetModel",
        )
