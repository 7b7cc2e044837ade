"""TGI's `POST /tokenize` and `/chat_tokenize`: the tokens of a prompt, without generating anything."""

from __future__ import annotations

from flask import Blueprint, Response, request

from serving.api.connection import connection_of
from serving.api.context import context
from serving.api.error_handlers import json_response
from serving.api.json_body import convert
from serving.api.native import IGNORED_HEADER, ignored_names, refuse_unknown
from serving.api.offload import run_aside
from serving.api.roles import TextProcessor
from serving.api.schema.tokenize import TokenizedText, TokenizeRequest, check_length

blueprint = Blueprint("tokenize", __name__)


@blueprint.post("/tokenize")
def tokenize() -> Response:
    shared = context()
    serving = shared.readiness.require()
    body = shared.bodies.read_object(request.environ, connection_of(request.environ))
    checked = convert(body, TokenizeRequest)
    ignored = ignored_names(body, TokenizeRequest)
    refuse_unknown(ignored, shared.config.http)
    check_length(checked.inputs, "inputs")
    response = json_response(run_aside(lambda: _tokens(serving.text, checked.inputs)))
    if ignored:
        response.headers[IGNORED_HEADER] = ",".join(ignored)
    return response


def _tokens(text: TextProcessor, inputs: str, *, add_special_tokens: bool = True) -> list[TokenizedText]:
    spans = text.tokenize(inputs, add_special_tokens=add_special_tokens)
    return [TokenizedText(span.id, span.text, span.start, span.stop) for span in spans]
