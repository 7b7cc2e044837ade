"""What the OpenAI routes answer, as types: chat completions, completions, their chunks, usage and models.

Source of the shapes: OpenAI's API reference and the types of its client (`openai.types`); `reasoning_content` as
DeepSeek's and vLLM's servers have it. Knows nothing of generations.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from serving.api.schema.openai_sampling import doc

ChatFinish = Literal["stop", "length", "tool_calls"]
CompletionFinish = Literal["stop", "length"]


class TopLogprob(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    token: Annotated[str, doc("what the token adds to the text")]
    logprob: Annotated[float, doc("natural logarithm of the model's probability; -9999 where it is 0")]
    bytes: Annotated[list[int] | None, doc("the token's bytes, also where it is only part of a character")]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    content: list[TokenLogprob] | None
    refusal: None = None


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    arguments: Annotated[str, doc("JSON text of the arguments")]


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class AssistantMessage(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: Annotated[str | None, doc("null when there are only tool calls")]
    refusal: None = None
    reasoning_content: Annotated[str | UnsetType, doc("what the model thought before it answered")] = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinish


class PromptTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    cached_tokens: Annotated[int, doc("prompt tokens that the prefix cache held")]


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: Annotated[int, doc("Unix time, seconds")]
    model: Annotated[str, doc("the name that the request gave, or the served id")]
    system_fingerprint: Annotated[str, doc("the same while software, model and type of numbers are")]
    choices: list[ChatChoice]
    usage: Usage


class FunctionCallPiece(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str | None = None
    arguments: str | None = None


class ToolCallPiece(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The first piece of a call has its id, type and name; all pieces of `arguments` join to its JSON text."""

    index: int
    id: str | None = None
    type: str | None = None
    function: FunctionCallPiece


class ChatDelta(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    refusal: UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallPiece] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinish | None = None


class ChatCompletionChunk(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Annotated[
        Usage | UnsetType | None,
        doc("with `include_usage`: null in all chunks but the last; with `continuous_usage_stats`: so far"),
    ] = UNSET


class CompletionLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    tokens: list[str]
    token_logprobs: Annotated[list[float | None], doc("null for the first token of an echoed prompt")]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: Annotated[list[int], doc("where each token begins in the choice's text, characters")]


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: Annotated[int, doc("number of the prompt x n + number of the answer")]
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: CompletionFinish | None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer or, in a stream, one chunk of it."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET


class Model(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: Annotated[int, doc("Unix time of this server's start, seconds")]
    owned_by: str
    max_model_len: Annotated[int, doc("longest prompt and answer together, tokens")]


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Model]
