"""`POST /invocations`: SageMaker's one door. Finds out which API a body speaks and answers in it."""

from __future__ import annotations

import re
from collections.abc import Callable

from flask import Blueprint, Response, request

from serving.api import json_lines, native
from serving.api.access import current_access
from serving.api.adapters import require_no_target_model
from serving.api.body_line import current_line
from serving.api.call import Call, ReadBody, open_call
from serving.api.connection import ClientConnection
from serving.api.context import ApiContext, context
from serving.api.custom_handler import read_body, write_answer
from serving.api.error_handlers import use_style
from serving.api.error_styles import OPENAI, printable
from serving.api.json_body import has_json_lines
from serving.api.openai import chat, completions
from serving.api.request_record import RequestRecord
from serving.api.sessions import REQUEST_TYPE, answer_in_session, manage
from serving.api.streaming import framing_for
from serving.api.strict_json import JsonValue
from serving.errors import InvalidRequest

blueprint = Blueprint("invocations", __name__)

Answer = Callable[[Call], Response]

_ROUTE = re.compile(r"(?:^|[,;])\s*route\s*=\s*([^,;]*)")
_SUPPORTED = (
    "this server answers bodies with `inputs` (text generation), `messages` (chat) or `prompt` (completions)"
)


def _native(route: native.NativeRoute) -> Answer:
    def answer(call: Call) -> Response:
        return native.answer(call, route)

    return answer


def _chat(call: Call) -> Response:
    use_style(OPENAI)
    call.record.api = "chat"
    return chat.answer(call, any_model=True)


def _completions(call: Call) -> Response:
    use_style(OPENAI)
    call.record.api = "completions"
    return completions.answer(call, any_model=True)


# The first key that a body has decides.
_BY_KEY: dict[str, Answer] = {
    "inputs": _native(native.COMPATIBLE),
    "messages": _chat,
    "prompt": _completions,
}
ROUTES: dict[str, Answer] = {
    "/": _native(native.COMPATIBLE),
    "/generate": _native(native.GENERATE),
    "/generate_stream": _native(native.GENERATE_STREAM),
    "/v1/chat/completions": _chat,
    "/v1/completions": _completions,
}
"""What `route=` in the custom attributes may name."""


@blueprint.post("/invocations")
def invocations() -> Response:
    require_no_target_model()
    deadline = _deadline()
    if has_json_lines(request.environ):
        return json_lines.answer(deadline)
    with open_call(_body_reader(deadline)) as call:
        default = call.shared.config.http.default_accept or ""
        call.framing = framing_for(request.headers.get("Accept", ""), default)
        call.deadline = deadline
        if current_line() is not None:
            call.may_stream = False
            _refuse_session(call)
        if REQUEST_TYPE in call.body:
            return manage(call)
        handler = call.shared.handler()
        if handler is None or not handler.writes:
            return answer_in_session(call, _answer_of(call))
        return write_answer(handler, call, lambda: answer_in_session(call, _answer_of(call)))


def _body_reader(deadline: float | None) -> ReadBody:
    """Bodies are JSON, unless a custom handler makes them that."""

    def read(shared: ApiContext, record: RequestRecord, connection: ClientConnection) -> dict[str, JsonValue]:
        handler = shared.handler()
        if handler is None or not handler.reads:
            return shared.bodies.read_object(request.environ, connection)
        raw = shared.bodies.read_raw(request.environ, connection)
        return read_body(handler, raw, record, connection, deadline_s=deadline)

    return read


def _deadline() -> float | None:
    """When the answer has to be complete, counted from the request's head, as the platform counts."""
    line = current_line()
    if line is not None:
        return line.deadline
    http = context().config.http
    if http.batch_transform or http.unary_deadline_s == 0.0:
        return None
    return current_access().started_s + http.unary_deadline_s


def _refuse_session(call: Call) -> None:
    if REQUEST_TYPE in call.body:
        raise InvalidRequest(
            "`requestType`: a line of a JSON-lines body cannot open or close a session, send it on its own",
            field=REQUEST_TYPE,
        )


def _answer_of(call: Call) -> Answer:
    named = _ROUTE.search(request.headers.get("X-Amzn-SageMaker-Custom-Attributes", ""))
    if named is not None:
        route = named[1].strip()
        if route not in ROUTES:
            raise InvalidRequest(
                f"the custom attribute route={printable(route)} is unknown, must be one of {', '.join(ROUTES)}",
                field="route",
            )
        return ROUTES[route]
    for key, answer in _BY_KEY.items():
        if key in call.body:
            return answer
    if "input" in call.body:
        raise InvalidRequest(f"`input` is not supported: {_SUPPORTED}", field="input")
    raise InvalidRequest(f"`inputs` is missing: {_SUPPORTED}", field="inputs")
