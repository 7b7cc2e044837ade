"""The OpenAPI 3.1 document of this server, made from the types that bodies are checked with and answers are made of.
Pure: the same configuration gives the same document.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from http import HTTPStatus
from typing import Any

import msgspec

from serving.api.openapi_native import native_operations
from serving.api.openapi_operation import EVENTS, JSON, LINES, Operation
from serving.api.openapi_v1 import v1_operations
from serving.api.schema.responses_input import INPUT_NAMES, MESSAGE_NAME
from serving.config import ServerConfig
from serving.version import VERSION

Json = dict[str, Any]

_REF = "#/components/schemas/{name}"
_KEY_SCHEME = "api_key"
_ANY_REQUEST = (400, 405, 414, 431, 500)
"""Malformed HTTP, a wrong method, too long a line, too long headers, our own fault."""

_NULL = {"type": "null"}
_TYPE_MAY_BE_ABSENT = (MESSAGE_NAME, "InputText", "GivenReasoningText", "GivenSummaryText", "ChosenFunction")
"""Their `type` says nothing that their place does not say."""

_MEANINGS = {
    400: "The request is not one: malformed HTTP or JSON",
    401: "No API key, or a wrong one",
    404: "No such route, model or adapter",
    408: "The body came too slowly",
    413: "The body is too large",
    415: "The body is not JSON",
    422: "A field is wrong",
    424: "The generation failed",
    429: "Overloaded: come back after `retry-after` seconds",
    431: "The headers are too large",
    500: "The server's fault",
    503: "The server is starting or stopping",
}
_STATUS_HEADERS = {
    401: {"www-authenticate": "`Bearer`"},
    405: {"allow": "the methods of this path"},
    429: {"retry-after": "seconds to wait"},
}


class Document:
    """One server's API. `operations` describes every route; `as_json` is what `/api-doc/openapi.json` serves."""

    def __init__(self, config: ServerConfig, operations: Sequence[Operation] | None = None) -> None:
        self._config = config
        self.operations = tuple(
            (*native_operations(), *v1_operations()) if operations is None else operations
        )

    @cached_property
    def as_json(self) -> bytes:
        return msgspec.json.encode(self.tree)

    @cached_property
    def tree(self) -> Json:
        types = list(dict.fromkeys(self._types()))
        schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
        self._schemas: Mapping[Any, Json] = dict(zip(types, schemas, strict=True))
        paths: dict[str, Json] = {}
        for operation in self.operations:
            paths.setdefault(operation.path, {})[operation.method] = self._operation(operation)
        apply_limits(components, self._config)
        tree: Json = {
            "openapi": "3.1.0",
            "info": {
                "title": "textgen-endpoint",
                "version": VERSION,
                "description": "Text generation in the APIs of Text Generation Inference, OpenAI and SageMaker.",
            },
            "servers": [{"url": "/"}],
            "paths": paths,
            "components": {"schemas": components},
        }
        if self._config.http.api_key is not None:
            tree["components"]["securitySchemes"] = {_KEY_SCHEME: {"type": "http", "scheme": "bearer"}}
            tree["security"] = [{_KEY_SCHEME: []}]
        return tree

    def _types(self) -> Iterable[Any]:
        for operation in self.operations:
            yield from (kind for kinds in operation.answer.schemas.values() for kind in kinds)
            yield from operation.error_types
            yield from operation.bodies
            yield from (() if operation.unready is None else (operation.unready,))

    def _operation(self, operation: Operation) -> Json:
        described: Json = {
            "operationId": operation.name,
            "tags": [operation.tag],
            "summary": operation.summary,
            "responses": {str(operation.answer.status): self._answer(operation)},
        }
        if operation.description:
            described["description"] = operation.description
        parameters = [
            {
                "name": name,
                "in": "path",
                "required": True,
                "description": text,
                "schema": {"type": "string", "minLength": 1},
            }
            for name, text in operation.path_parameters.items()
        ] + [
            {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}
            for name, text in operation.headers.items()
        ]
        if parameters:
            described["parameters"] = parameters
        if operation.bodies:
            content: Json = {"schema": self._any_of(operation.bodies)}
            if operation.example is not None:
                content["example"] = operation.example
            described["requestBody"] = {"required": True, "content": {JSON: content}}
        if operation.lines_example:
            described["requestBody"]["content"][LINES] = {
                "schema": {"type": "string", "description": "One request in each line"},
                "example": operation.lines_example,
            }
        needs_key = self._config.http.api_key is not None and not self._is_open(operation)
        if self._config.http.api_key is not None and not needs_key:
            described["security"] = []
        errors = {*operation.errors, *_ANY_REQUEST, *((401,) if needs_key else ())}
        for status in sorted(errors):
            described["responses"][str(status)] = self._error(operation, status)
        return described

    def _is_open(self, operation: Operation) -> bool:
        exempt = operation.path.strip("/") in self._config.http.api_key_exempt
        return operation.open or (exempt and operation.method == "post")

    def _answer(self, operation: Operation) -> Json:
        answer = operation.answer
        content = {}
        for media_type, kinds in answer.schemas.items():
            event_kinds = (*kinds, *operation.error_types)
            schema = (
                self._event(event_kinds, done=operation.ends_streams)
                if media_type == EVENTS
                else self._any_of(kinds)
            )
            content[media_type] = {"schema": schema}
        return {
            "description": answer.description,
            "headers": _headers(answer.headers),
            "content": content,
        }

    def _error(self, operation: Operation, status: int) -> Json:
        kinds = (operation.unready,) if status == 503 and operation.unready else operation.error_types
        return {
            "description": _MEANINGS.get(status, HTTPStatus(status).phrase),
            "headers": _headers(_STATUS_HEADERS.get(status, {})),
            "content": {JSON: {"schema": self._any_of(kinds)}},
        }

    def _any_of(self, kinds: Sequence[Any]) -> Json:
        schemas = [self._schemas[kind] for kind in kinds]
        if not schemas:
            return {"type": "string"}
        return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}

    def _event(self, kinds: Sequence[Any], *, done: bool) -> Json:
        """One event of a stream, the way OpenAPI 3.1 describes them: `data` holds JSON text, or what ends a stream."""
        value: Json = {"contentMediaType": JSON, "contentSchema": self._any_of(kinds)}
        data = {"anyOf": [{"const": "[DONE]"}, value]} if done else value
        return {
            "type": "object",
            "required": ["data"],
            "properties": {"data": {"type": "string", **data}},
        }


def _headers(described: Mapping[str, str]) -> Json:
    every = {"x-request-id": "the request's id, under which the server's log has the details"}
    return {
        name: {"description": text, "schema": {"type": "string"}}
        for name, text in {**every, **described}.items()
    }


def apply_limits(components: Json, config: ServerConfig) -> None:
    """Write this server's own limits into the schemas."""
    limits = config.limits
    properties = components["NativeParameters"]["properties"]
    properties["best_of"]["maximum"] = limits.max_best_of
    properties["top_n_tokens"]["maximum"] = limits.max_top_n_tokens
    properties["stop"]["maxItems"] = limits.max_stop_sequences
    if limits.max_input_tokens is not None:
        properties["truncate"]["maximum"] = limits.max_input_tokens
    if config.http.unknown_parameters == "refuse":
        for name in ("NativeRequest", "NativeStreamableRequest", "TokenizeRequest", "NativeParameters"):
            components[name]["additionalProperties"] = False
        components["ChatTokenizeRequest"]["additionalProperties"] = _NULL
    for name in ("ChatCompletionRequest", "CompletionRequest", "ResponsesRequest", *INPUT_NAMES):
        components[name]["additionalProperties"] = _NULL  # what is null counts as absent
    for name in ("ChatCompletionRequest", "CompletionRequest", "ChatTokenizeRequest"):
        components[name]["properties"]["n"] |= {"minimum": 1, "maximum": limits.max_n}
    for name in _TYPE_MAY_BE_ABSENT:
        component = components[name]
        component["required"] = [field for field in component["required"] if field != "type"]
        component["properties"]["type"] = {"anyOf": [component["properties"]["type"], _NULL]}
