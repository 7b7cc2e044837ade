"""`POST /v1/completions`, as OpenAI defines it."""

from __future__ import annotations

from flask import Blueprint, Response

from serving.api.call import open_call
from serving.api.openai import completions

blueprint = Blueprint("completions", __name__)


@blueprint.post("/v1/completions")
def create() -> Response:
    with open_call() as call:
        return completions.answer(call)
