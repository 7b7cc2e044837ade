"""`POST /v1/chat/completions`, as OpenAI defines it."""

from __future__ import annotations

from flask import Blueprint, Response

from serving.api.call import open_call
from serving.api.openai import chat

blueprint = Blueprint("chat", __name__)


@blueprint.post("/v1/chat/completions")
def create() -> Response:
    with open_call() as call:
        return chat.answer(call)
