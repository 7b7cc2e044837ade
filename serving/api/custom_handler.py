"""The custom handler in a request: its raw body on the way in through `input_fn`, its answer on the way out through
`output_fn`. Knows no API's shapes, and of the handler's process only its client.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from flask import Response, request

from serving.api import strict_json
from serving.api.body_line import current_line
from serving.api.call import Call
from serving.api.connection import ClientConnection
from serving.api.handler_client import HandlerClient
from serving.api.request_id import current_request_id
from serving.api.request_record import RequestRecord
from serving.api.strict_json import JsonValue
from serving.errors import HandlerFailed, InvalidRequest, MalformedBody, Overloaded
from serving.handler.wire import HookCall, HookName, HookReply

_JSON = "application/json"
_HIDDEN_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization"})
_MEDIA_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+( *; *[\w.-]+=(\"[\w .+-]*\"|[\w.+-]+))*", re.ASCII)


def read_body(
    handler: HandlerClient,
    raw: bytes,
    record: RequestRecord,
    connection: ClientConnection,
    *,
    deadline_s: float | None,
) -> dict[str, JsonValue]:
    """The body of an ordinary request, made by `input_fn` of the current request's raw one. Raises `RequestError`s and
    `ClientDisconnected`.
    """
    message = _message("input_fn", raw, request.headers.get("Content-Type", ""))
    if not handler.places.acquire(blocking=False):
        raise Overloaded("too many requests wait for the custom handler's input_fn")
    try:
        reply = _call(handler, message, record, connection, deadline_s)
    finally:
        handler.places.release()
    try:
        body = strict_json.parse(reply.body)
    except MalformedBody as error:
        raise HandlerFailed(
            f"input_fn of the custom handler returned what is no request: {error.message}"
        ) from None
    if not isinstance(body, dict):
        raise HandlerFailed(
            "input_fn of the custom handler must return a JSON object, such as one with `inputs`"
        )
    return body


def write_answer(handler: HandlerClient, call: Call, answer: Callable[[], Response]) -> Response:
    """`answer`, its body made anew by `output_fn`. What is no answer in JSON stays as it is.

    Raises `RequestError`s, `InvalidRequest` for a request that asks for a stream among them, and `ClientDisconnected`.
    """
    if call.body.get("stream") is True:
        raise InvalidRequest(
            "`stream`: the custom handler's output_fn shapes whole answers, so this endpoint streams none",
            field="stream",
        )
    last_s = call.deadline
    if last_s is not None:
        # The hook may need its time, too, before the platform gives up.
        call.deadline = last_s - min(handler.timeout_s, max(0.0, last_s - time.monotonic()) / 2)
    response = answer()
    if response.status_code != 200 or response.mimetype != _JSON:
        return response
    accept = request.headers.get("Accept", "").strip()
    accept = _JSON if accept in ("", "*/*") else accept
    reply = _call(
        handler, _message("output_fn", response.get_data(), accept), call.record, call.connection, last_s
    )
    content_type = reply.content_type or _first_type(accept)
    if not _MEDIA_TYPE.fullmatch(content_type):
        raise HandlerFailed("output_fn of the custom handler returned a content type that is none")
    response.set_data(_one_line(reply.body) if current_line() is not None else reply.body)
    response.headers["content-type"] = content_type
    return response


def _call(
    handler: HandlerClient,
    message: HookCall,
    record: RequestRecord,
    connection: ClientConnection,
    deadline_s: float | None,
) -> HookReply:
    started_s = time.monotonic()
    failed = False
    try:
        return handler.call(message, connection, deadline_s=deadline_s)
    except HandlerFailed:
        failed = True
        raise
    finally:
        record.hook_ended(message.hook, started_s, failed=failed)


def _message(hook: HookName, data: bytes, media_type: str) -> HookCall:
    headers = {name: text for name, text in request.headers.items() if name.lower() not in _HIDDEN_HEADERS}
    return HookCall(
        hook=hook, data=data, media_type=media_type, headers=headers, request_id=current_request_id()
    )


def _one_line(body: bytes) -> bytes:
    body = body.removesuffix(b"\n")
    if b"\n" in body:
        raise HandlerFailed(
            "output_fn of the custom handler returned several lines for one line of a JSON-lines body"
        )
    return body


def _first_type(accept: str) -> str:
    """What an Accept header asks for first, if it is more than a pattern."""
    first = accept.split(",")[0].split(";")[0].strip().lower()
    return first if _MEDIA_TYPE.fullmatch(first) and "*" not in first else _JSON
