"""The operations of TGI's API, and those that describe the server, for the OpenAPI document."""

from __future__ import annotations

from serving.api.native_reply import Reply, StreamEvent
from serving.api.openapi_operation import (
    BODY_ERRORS,
    CHAT_EXAMPLE,
    EVENTS,
    GENERATION_HEADERS,
    HTML,
    JSON,
    LINES,
    OPENAI_ERRORS,
    TEXT,
    TIMING_HEADERS,
    Answer,
    Operation,
)
from serving.api.schema.info import ExecutionParameters, Info, Unhealthy
from serving.api.schema.native import NativeRequest, NativeStreamableRequest
from serving.api.schema.tokenize import ChatTokenizeReply, ChatTokenizeRequest, TokenizedText, TokenizeRequest

GENERATION_ERRORS = (*BODY_ERRORS, 404, 424)
_EXAMPLE = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 20}}
_LINES = '{"inputs": "Once upon a time"}\n{"inputs": "There was"}\n'
_SAMPLED = {
    "inputs": "Once upon a time",
    "parameters": {"max_new_tokens": 20, "temperature": 0.8, "top_p": 0.9, "seed": 7, "details": True},
}
_IGNORED = {"x-ignored-parameters": GENERATION_HEADERS["x-ignored-parameters"]}
_HEADERS = {**GENERATION_HEADERS, **TIMING_HEADERS}
_EVENTS = (
    "One `data:` line with a `StreamEvent` per token; the last one has `generated_text`. An error after the first token "
    "is a `data:` line with an error body."
)


def native_operations() -> tuple[Operation, ...]:
    return (
        Operation(
            method="post",
            path="/generate",
            name="generate",
            tag="Text Generation Inference",
            summary="Continue a text",
            bodies=(NativeRequest,),
            example=_SAMPLED,
            answer=Answer("The generated text", {JSON: (Reply,)}, _HEADERS),
            errors=GENERATION_ERRORS,
        ),
        Operation(
            method="post",
            path="/generate_stream",
            name="generate_stream",
            tag="Text Generation Inference",
            summary="Continue a text, token by token",
            description=_EVENTS,
            bodies=(NativeRequest,),
            example=_EXAMPLE,
            answer=Answer("Server-sent events", {EVENTS: (StreamEvent,)}, GENERATION_HEADERS),
            errors=GENERATION_ERRORS,
        ),
        Operation(
            method="post",
            path="/",
            name="generate_compatible",
            tag="Text Generation Inference",
            summary="Continue a text; the answer is an array of one",
            description="With `stream: true` as /generate_stream. The prompt is part of the text unless refused.",
            bodies=(NativeStreamableRequest,),
            example=_EXAMPLE,
            answer=Answer("The generated text", {JSON: (list[Reply],), EVENTS: (StreamEvent,)}, _HEADERS),
            errors=GENERATION_ERRORS,
        ),
        *_sagemaker_operations(),
        *_token_operations(),
        *_server_operations(),
    )


def _sagemaker_operations() -> tuple[Operation, ...]:
    return (
        Operation(
            method="post",
            path="/invocations",
            name="invocations",
            tag="SageMaker",
            summary="SageMaker's door",
            description=(
                "The first of these keys that a body has decides: `inputs` is answered as `POST /`, `messages` as "
                "`/v1/chat/completions`, `prompt` as `/v1/completions`, errors included. With `stream: true` the header "
                "`Accept: application/jsonlines` gives JSON lines, anything else server-sent events; without the header, "
                "or with `*/*`, SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT decides. An answer that is not streamed is complete "
                "after UNARY_DEADLINE_S (58) seconds: then it has the text so far, ends with `length`, and the header "
                "`X-Amzn-SageMaker-Custom-Attributes: deadline=reached` says so. Where a grammar, a response format or a "
                "tool call that must come makes part of an answer useless, that is a 424, and a 429 where there is no token "
                "yet. A body of the type `application/jsonlines` has a request in each line, by the same rules, and is "
                "answered line by line in the same order; a line that is wrong or blank gets its error, with `status` next "
                "to it, and a line cannot be streamed."
            ),
            bodies=(NativeStreamableRequest,),
            example=_EXAMPLE,
            lines_example=_LINES,
            answer=Answer(
                "The generated text",
                {JSON: (list[Reply],), EVENTS: (StreamEvent,), LINES: ()},
                {**_HEADERS, "x-amzn-sagemaker-custom-attributes": "`deadline=reached` when time was up"},
            ),
            errors=GENERATION_ERRORS,
        ),
        Operation(
            method="get",
            path="/invocations-bidirectional-stream",
            name="invocations_bidirectional_stream",
            tag="SageMaker",
            summary="SageMaker's WebSocket: responses, several at once, on one connection",
            description=(
                "Upgrade to a WebSocket. Each text frame is one JSON event. `response.create` has the body of "
                "`/v1/responses` (`input`), `/v1/chat/completions` (`messages`) or `/v1/completions` (`prompt`) next to its "
                "`type`, and may name itself by `event_id`; `response.cancel` ends one by that id, or all. The server sends "
                "the events that the route streams, each with the `event_id`, and `response.done` after the last one. What "
                "is wrong with an event is an event `error`."
            ),
            answer=Answer("The connection is a WebSocket", {}, {"upgrade": "`websocket`"}, status=101),
            errors=(404, 426, 429, 503),
            error_types=OPENAI_ERRORS,
        ),
        Operation(
            method="get",
            path="/execution-parameters",
            name="execution_parameters",
            tag="SageMaker",
            summary="How a batch transform job is to cut its input",
            description="Requests at once times the largest one are at most 100 MiB. What the job's caller sets wins.",
            answer=Answer("The parameters", {JSON: (ExecutionParameters,)}),
            open=True,
        ),
    )


def _token_operations() -> tuple[Operation, ...]:
    return (
        Operation(
            method="post",
            path="/tokenize",
            name="tokenize",
            tag="Text Generation Inference",
            summary="The tokens of a text",
            bodies=(TokenizeRequest,),
            example={"inputs": "Once upon a time"},
            answer=Answer("The tokens and their places", {JSON: (list[TokenizedText],)}, _IGNORED),
            errors=BODY_ERRORS,
        ),
        Operation(
            method="post",
            path="/chat_tokenize",
            name="chat_tokenize",
            tag="Text Generation Inference",
            summary="The prompt that a chat becomes, and its tokens",
            bodies=(ChatTokenizeRequest,),
            example=CHAT_EXAMPLE,
            answer=Answer("The prompt and its tokens", {JSON: (ChatTokenizeReply,)}, _IGNORED),
            errors=BODY_ERRORS,
        ),
    )


def _server_operations() -> tuple[Operation, ...]:
    return (
        *(_health(path, name) for path, name in (("/ping", "ping"), ("/health", "health"), ("/", "root"))),
        Operation(
            method="get",
            path="/info",
            name="info",
            tag="Server",
            summary="Facts about the server and its model",
            answer=Answer("The facts", {JSON: (Info,)}),
            errors=(503,),
        ),
        Operation(
            method="get",
            path="/metrics",
            name="metrics",
            tag="Server",
            summary="Prometheus metrics",
            answer=Answer("Prometheus' text format", {TEXT: ()}),
            open=True,
        ),
        Operation(
            method="get",
            path="/docs",
            name="docs",
            tag="Server",
            summary="This API as a page",
            answer=Answer("The page", {HTML: ()}),
        ),
        Operation(
            method="get",
            path="/api-doc/openapi.json",
            name="openapi",
            tag="Server",
            summary="This API as an OpenAPI document",
            answer=Answer("The document", {JSON: (dict,)}),
        ),
    )


def _health(path: str, name: str) -> Operation:
    return Operation(
        method="get",
        path=path,
        name=name,
        tag="Server",
        summary="May this server get requests?",
        answer=Answer("Yes", {TEXT: ()}),
        errors=(503,),
        unready=Unhealthy,
        open=path != "/",
    )
