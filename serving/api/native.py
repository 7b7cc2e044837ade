"""Serves one native generation call from its body to its answer, whole or streamed. Knows no routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from flask import Response

from serving.api.adapters import require_no_adapter
from serving.api.call import Call, open_call
from serving.api.generation import Generation
from serving.api.json_body import convert, unknown_fields
from serving.api.native_reply import PrefillToken, compute_headers, reply, reply_headers
from serving.api.offload import run_aside
from serving.api.plain_tokens import Unseen
from serving.api.readiness import Serving
from serving.api.roles import TextProcessor
from serving.api.schema.generate import GenerateRequest
from serving.api.schema.native import (
    NativeParameters,
    NativeRequest,
    NativeStreamableRequest,
    Tokenize,
    to_generate_request,
)
from serving.api.schema.native_grammar import unknown_grammar_fields
from serving.api.streaming import native_events
from serving.api.strict_json import JsonValue
from serving.config import HttpConfig
from serving.errors import InvalidRequest

IGNORED_HEADER = "x-ignored-parameters"

_LONG_TEXT_CHARS = 4000
_MAX_IGNORED_NAMES = 20
_MAX_IGNORED_CHARS = 64


@dataclass(slots=True, frozen=True)
class NativeRoute:
    """How TGI's routes with the same request differ."""

    schema: type[NativeRequest]
    stream: bool | None = None
    """None: the body's `stream` decides."""
    as_array: bool = False
    full_text_default: bool = False


GENERATE = NativeRoute(schema=NativeRequest, stream=False)
GENERATE_STREAM = NativeRoute(schema=NativeRequest, stream=True)
COMPATIBLE = NativeRoute(schema=NativeStreamableRequest, as_array=True, full_text_default=True)
"""`POST /` and `/invocations`."""


def handle(route: NativeRoute) -> Response:
    """Answer the current request."""
    with open_call() as call:
        return answer(call, route)


def answer(call: Call, route: NativeRoute) -> Response:
    """Answer a call whose body was read."""
    require_no_adapter(call.body)
    checked = convert(call.body, route.schema)
    ignored = ignored_names(call.body, route.schema)
    if ignored:
        call.record.ignores(ignored)
        refuse_unknown(ignored, call.shared.config.http)
    generate_request = _checked_request(route, checked, call.serving)
    keep_tokens = generate_request.details and not generate_request.stream
    generation = call.generation(generate_request, keep_tokens=keep_tokens)
    if generate_request.stream:
        headers = compute_headers(generation, call.serving.engine)
        response = call.stream(generation, native_events, headers)
    else:
        response = _whole(call, generation, route)
    if ignored:
        response.headers[IGNORED_HEADER] = ",".join(ignored)
    return response


def ignored_names(body: dict[str, JsonValue], schema: type[msgspec.Struct]) -> list[str]:
    """Fields that nobody reads, in a form that is safe in a header."""
    names = unknown_fields(body, schema)
    parameters: Any = body.get("parameters")
    if isinstance(parameters, dict):
        names += unknown_fields(parameters, NativeParameters, prefix="parameters.")
        names += unknown_grammar_fields(parameters.get("grammar"), prefix="parameters.grammar.")
    return shown_names(names)


def shown_names(names: list[str]) -> list[str]:
    """The first of them, in a form that is safe in a header."""
    return [header_safe(name) for name in names[:_MAX_IGNORED_NAMES]]


def refuse_unknown(names: list[str], config: HttpConfig) -> None:
    """Raises `InvalidRequest` where unknown fields are to be refused."""
    if names and config.unknown_parameters == "refuse":
        listed = ", ".join(f"`{name}`" for name in names)
        raise InvalidRequest(f"unknown parameters: {listed}", field=names[0])


def _checked_request(route: NativeRoute, body: NativeRequest, serving: Serving) -> GenerateRequest:
    stream = route.stream
    if stream is None:
        stream = isinstance(body, NativeStreamableRequest) and body.stream
    return to_generate_request(
        body,
        serving.limits,
        _tokenizer_of(serving.text),
        stream=stream,
        full_text_default=route.full_text_default,
    )


def _whole(call: Call, generation: Generation, route: NativeRoute) -> Response:
    with generation:
        generation.start()
        for _ in generation.progress(Unseen()):
            pass
    generation.finish()
    body = reply(generation, _prefill(generation, call.serving.text))
    response = call.whole(generation, [body] if route.as_array else body)
    response.headers.update(reply_headers(generation, call.serving.engine))
    return response


def _prefill(generation: Generation, text: TextProcessor) -> list[PrefillToken]:
    prompt = generation.prompts[0]
    if not prompt.request.prompt_logprobs or prompt.logprobs is None:
        return []
    spelled = text.prompt_tokens(prompt.request.prompt_token_ids, prompt.logprobs)
    return [PrefillToken(token.id, token.text, token.logprob) for token in spelled]


def _tokenizer_of(text: TextProcessor) -> Tokenize:
    def tokenize(inputs: str, truncate: int | None) -> list[int]:
        if len(inputs) < _LONG_TEXT_CHARS:
            return text.prepare(inputs, truncate=truncate)
        return run_aside(lambda: text.prepare(inputs, truncate=truncate))

    return tokenize


def header_safe(name: str) -> str:
    """A client's name for something, short and without anything that could end a header."""
    return "".join(
        c if c.isascii() and (c.isalnum() or c in "._-") else "?" for c in name[:_MAX_IGNORED_CHARS]
    )
