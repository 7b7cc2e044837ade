"""`/invocations-bidirectional-stream`: SageMaker's WebSocket. An upgrade of any other path is closed at once, since the
platform puts there what a client asked for.
"""

from __future__ import annotations

from typing import Any, cast

from flask import Blueprint, Response, current_app, request
from flask.sansio.blueprints import BlueprintSetupState
from werkzeug.exceptions import Forbidden
from wsproto.frame_protocol import CloseReason

from serving.api.adapters import require_no_target_model
from serving.api.connection import connection_of
from serving.api.context import EXTENSION, ApiContext, context
from serving.api.cors import may_call
from serving.api.error_handlers import json_response, use_style
from serving.api.error_styles import OPENAI, Problem, printable
from serving.api.realtime.event_request import current_event
from serving.api.realtime.responses import Responses
from serving.api.realtime.session import Session, Sessions
from serving.api.realtime.websocket import Handshake, MessageLimits, WebSocket, wants_upgrade
from serving.api.request_id import current_request_id

PATH = "/invocations-bidirectional-stream"
SWITCHING_PROTOCOLS = 101
_EXTENSION = "serving.realtime"

blueprint = Blueprint("bidirectional", __name__)


@blueprint.route(PATH, websocket=True)
def connect() -> Response:
    use_style(OPENAI)
    require_no_target_model()
    shared = context()
    shared.readiness.require()
    _sessions().require_place()
    websocket = _accept()
    app = cast("Any", current_app)._get_current_object()
    responses = Responses(app, request.environ, current_request_id(), websocket.send)
    _sessions().run(Session(websocket, responses, current_request_id()))
    return Response(status=SWITCHING_PROTOCOLS)


@blueprint.get(PATH)
def upgrade_required() -> Response:
    use_style(OPENAI)
    problem = Problem(
        f"{PATH} is a WebSocket: send an upgrade", "upgrade_required", 426, code="upgrade_required"
    )
    response = json_response(OPENAI.body(problem, current_request_id()), problem.status)
    response.headers["upgrade"] = "websocket"
    return response


@blueprint.before_app_request
def refuse_other_paths() -> Response | None:
    if request.url_rule is not None or not wants_upgrade(request.environ) or current_event() is not None:
        return None
    use_style(OPENAI)
    _accept().close(CloseReason.POLICY_VIOLATION, f"there is no WebSocket at {printable(request.path)}")
    return Response(status=SWITCHING_PROTOCOLS)


def _accept() -> WebSocket:
    """Raises `InvalidRequest`, or `Forbidden` for pages that may not call."""
    shared = context()
    if not may_call(request.headers.get("Origin"), shared.config.http):
        raise Forbidden
    handshake = Handshake(request.environ)
    limits = MessageLimits(
        max_bytes=shared.config.limits.payload_limit_bytes,
        silence_s=shared.config.http.body_timeout_s,
        hold=shared.bodies.hold,
    )
    return WebSocket(connection_of(request.environ).upgrade(), handshake, limits)


def _sessions() -> Sessions:
    found: Sessions = current_app.extensions[_EXTENSION]
    return found


@blueprint.record
def _make_sessions(state: BlueprintSetupState) -> None:
    shared: ApiContext = state.app.extensions[EXTENSION]
    state.app.extensions[_EXTENSION] = Sessions(lambda: shared.readiness.stage().stage == "draining")
