"""`GET /v1/models` and `/v1/models/{id}`: the served model under all its names."""

from __future__ import annotations

import time

from flask import Blueprint, Response

from serving.api.context import context
from serving.api.error_handlers import json_response
from serving.api.error_styles import printable
from serving.api.openai.door import model_names
from serving.api.schema.openai_answers import Model, ModelList
from serving.errors import NotFound

blueprint = Blueprint("models", __name__)

_STARTED = int(time.time())


@blueprint.get("/v1/models")
def listing() -> Response:
    return json_response(ModelList(data=_models()))


@blueprint.get("/v1/models/<path:name>")
def one(name: str) -> Response:
    for model in _models():
        if model.id == name:
            return json_response(model)
    raise NotFound(f"the model {printable(name)!r} does not exist, see /v1/models", field="model")


def _models() -> list[Model]:
    shared = context()
    serving = shared.readiness.require()
    return [
        Model(
            id=name,
            created=_STARTED,
            owned_by=serving.engine.model_id,
            max_model_len=serving.limits.max_total_tokens,
        )
        for name in model_names(serving.engine, shared.config.model)
    ]
