"""`POST /v1/responses`, as OpenAI defines it, without stored state."""

from __future__ import annotations

from flask import Blueprint, Response

from serving.api.call import open_call
from serving.api.openai import responses

blueprint = Blueprint("responses", __name__)


@blueprint.post("/v1/responses")
def create() -> Response:
    with open_call() as call:
        return responses.answer(call)
