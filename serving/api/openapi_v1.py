"""The operations of OpenAI's API for the OpenAPI document."""

from __future__ import annotations

from serving.api.openapi_operation import (
    CHAT_EXAMPLE,
    EVENTS,
    JSON,
    OPENAI_ERRORS,
    Answer,
    Operation,
)
from serving.api.schema import responses_events
from serving.api.schema.openai_answers import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    Model,
    ModelList,
)
from serving.api.schema.openai_chat import ChatCompletionRequest
from serving.api.schema.openai_completions import CompletionRequest
from serving.api.schema.responses_answers import Response
from serving.api.schema.responses_request import ResponsesRequest

_ERRORS = (400, 404, 408, 413, 415, 429, 503)
_STREAMED = "With `stream: true` server-sent events, the last one `[DONE]`."

_RESPONSE_EVENTS = tuple(responses_events.StreamEvent.__subclasses__())


def v1_operations() -> tuple[Operation, ...]:
    return (
        Operation(
            method="post",
            path="/v1/chat/completions",
            name="chat_completions",
            tag="OpenAI",
            summary="Answer a chat",
            description=_STREAMED,
            bodies=(ChatCompletionRequest,),
            example=CHAT_EXAMPLE,
            answer=Answer("The answer", {JSON: (ChatCompletion,), EVENTS: (ChatCompletionChunk,)}),
            errors=_ERRORS,
            error_types=OPENAI_ERRORS,
            ends_streams=True,
        ),
        Operation(
            method="post",
            path="/v1/completions",
            name="completions",
            tag="OpenAI",
            summary="Continue one text or several",
            description=_STREAMED,
            bodies=(CompletionRequest,),
            example={"prompt": "Once upon a time", "max_tokens": 20},
            answer=Answer("The continuations", {JSON: (Completion,), EVENTS: (Completion,)}),
            errors=_ERRORS,
            error_types=OPENAI_ERRORS,
            ends_streams=True,
        ),
        Operation(
            method="post",
            path="/v1/responses",
            name="responses",
            tag="OpenAI",
            summary="Answer an input, without stored state",
            description="With `stream: true` server-sent events that are named by their `type`.",
            bodies=(ResponsesRequest,),
            example={"input": "Tell me a story.", "max_output_tokens": 20},
            answer=Answer("The response", {JSON: (Response,), EVENTS: _RESPONSE_EVENTS}),
            errors=_ERRORS,
            error_types=OPENAI_ERRORS,
        ),
        *_model_operations(),
    )


def _model_operations() -> tuple[Operation, ...]:
    return (
        Operation(
            method="get",
            path="/v1/models",
            name="list_models",
            tag="OpenAI",
            summary="The served model under all its names",
            answer=Answer("The models", {JSON: (ModelList,)}),
            errors=(503,),
            error_types=OPENAI_ERRORS,
        ),
        Operation(
            method="get",
            path="/v1/models/{name}",
            name="get_model",
            tag="OpenAI",
            summary="One model",
            path_parameters={"name": "a name from the list"},
            answer=Answer("The model", {JSON: (Model,)}),
            errors=(404, 503),
            error_types=OPENAI_ERRORS,
        ),
    )
