"""TGI's `POST /tokenize` and `/chat_tokenize`: the tokens of a prompt, without generating anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from flask import Blueprint, Response, request

from serving.api.access import current_access
from serving.api.connection import connection_of
from serving.api.context import context
from serving.api.error_handlers import json_response
from serving.api.json_body import convert, unknown_fields
from serving.api.native import IGNORED_HEADER, ignored_names, refuse_unknown, shown_names
from serving.api.offload import run_aside
from serving.api.readiness import Serving
from serving.api.roles import TextProcessor
from serving.api.schema.openai_chat import (
    check_chat,
    refuse_other_parts,
    to_chat_request,
)
from serving.api.schema.parity import REFUSED
from serving.api.schema.tokenize import (
    MAX_CHARS,
    ChatTokenizeReply,
    ChatTokenizeRequest,
    TokenizedText,
    TokenizeRequest,
    check_length,
    placed,
)
from serving.api.strict_json import JsonValue
from serving.errors import InvalidRequest

_Reply = TypeVar("_Reply")

_LONG_BODY_BYTES = 16 * 1024

blueprint = Blueprint("tokenize", __name__)


@blueprint.post("/tokenize")
def tokenize() -> Response:
    serving, body = _opened()
    checked = convert(body, TokenizeRequest)
    ignored = ignored_names(body, TokenizeRequest)
    _note(ignored)
    check_length(checked.inputs, "inputs")
    return _answer(_spelled(lambda: _tokens(serving.text, checked.inputs)), ignored)


@blueprint.post("/chat_tokenize")
def chat_tokenize() -> Response:
    """The body is that of `/v1/chat/completions`; fields that nobody knows are named, as on all of TGI's routes."""
    serving, body = _opened()
    given: dict[str, JsonValue] = {name: value for name, value in body.items() if value is not None}
    for name in given:
        if name in REFUSED["chat"]:
            raise InvalidRequest(f"`{name}` is not supported: {REFUSED['chat'][name]}", field=name)
    ignored = shown_names(unknown_fields(given, ChatTokenizeRequest))
    _note(ignored)
    refuse_other_parts(given)
    fields = convert(given, ChatTokenizeRequest)
    check_chat(fields, serving.limits)
    chat = to_chat_request(fields)

    def tokens() -> ChatTokenizeReply:
        prepared = serving.text.prepare_chat(chat, max_chars=MAX_CHARS)
        spans = _tokens(serving.text, prepared.prompt_text, add_special_tokens=False)
        if [span.id for span in spans] != prepared.prompt_token_ids:
            # a message spells a special token, which a chat never makes one
            spans = placed(prepared.prompt_token_ids, prepared.prompt_text, serving.text.vocabulary)
        return ChatTokenizeReply(tokenize_response=spans, templated_text=prepared.prompt_text)

    return _answer(_spelled(tokens), ignored)


def _opened() -> tuple[Serving, dict[str, JsonValue]]:
    shared = context()
    serving = shared.readiness.require()
    return serving, shared.bodies.read_object(request.environ, connection_of(request.environ))


def _spelled(work: Callable[[], _Reply]) -> _Reply:
    """Result of `work`, done beside the event loop; of long bodies few at a time."""
    size_bytes = request.content_length
    if size_bytes is not None and size_bytes < _LONG_BODY_BYTES:
        return run_aside(work)
    place = context().spell_gate.enter()
    try:
        return run_aside(work)
    finally:
        place.give_back()


def _note(ignored: list[str]) -> None:
    """Count and log fields that nobody reads. Raises `InvalidRequest` where they are to be refused."""
    if ignored:
        shared = context()
        shared.metrics.ignored_parameters.inc(len(ignored))
        current_access().facts["ignored_parameters"] = ",".join(ignored)
        refuse_unknown(ignored, shared.config.http)


def _answer(value: object, ignored: list[str]) -> Response:
    response = json_response(value)
    if ignored:
        response.headers[IGNORED_HEADER] = ",".join(ignored)
    return response


def _tokens(text: TextProcessor, inputs: str, *, add_special_tokens: bool = True) -> list[TokenizedText]:
    spans = text.tokenize(inputs, add_special_tokens=add_special_tokens)
    return [TokenizedText(span.id, span.text, span.start, span.stop) for span in spans]
