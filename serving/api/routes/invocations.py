"""`POST /invocations`: SageMaker's one door. Finds out which API a body speaks and answers in it."""

from __future__ import annotations

from flask import Blueprint, Response, request

from serving.api import native
from serving.api.call import open_call
from serving.api.streaming import framing_for
from serving.api.strict_json import JsonValue
from serving.errors import InvalidRequest

blueprint = Blueprint("invocations", __name__)

_NOT_BUILT = ("messages", "prompt", "input")


@blueprint.post("/invocations")
def invocations() -> Response:
    with open_call() as call:
        call.framing = framing_for(request.headers.get("Accept", ""))
        _require_inputs(call.body)
        return native.answer(call, native.COMPATIBLE)


def _require_inputs(body: dict[str, JsonValue]) -> None:
    """`inputs` wins over everything else, as in TGI."""
    if "inputs" in body:
        return
    supported = "this server answers bodies with `inputs` (a string)"
    for name in _NOT_BUILT:
        if name in body:
            raise InvalidRequest(f"`{name}` is not supported yet, {supported}", field=name)
    raise InvalidRequest(f"`inputs` is missing: {supported}", field="inputs")
