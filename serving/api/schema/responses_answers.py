"""What `POST /v1/responses` answers, as types: the response and its output items. Knows nothing of generations.

Source of the shapes: OpenAI's API reference and the types of its client (`openai.types.responses`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from serving.api.schema.openai_answers import TokenLogprob
from serving.api.schema.openai_sampling import doc

ErrorCode = Literal["server_error", "rate_limit_exceeded"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputTextPart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] = []
    logprobs: Annotated[list[TokenLogprob], doc("empty unless `include` asks for them")] = []


class ReasoningTextPart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning_text"):
    text: str


class OutputMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    id: str
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputTextPart]


class OutputReasoning(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    id: str
    status: ItemStatus
    summary: Annotated[list[Any], doc("always empty: `content` has the whole reasoning")] = []
    content: list[ReasoningTextPart]


class OutputFunctionCall(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: Annotated[str, doc("JSON text of the arguments")]


OutputItem = OutputMessage | OutputReasoning | OutputFunctionCall


class InputTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    cached_tokens: Annotated[int, doc("input tokens that the prefix cache held")]
    cache_write_tokens: Annotated[int, doc("always 0: writing to the cache is not counted apart")] = 0


class OutputTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    reasoning_tokens: Annotated[int, doc("output tokens that are reasoning")]


class ResponseUsage(msgspec.Struct, frozen=True, kw_only=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(msgspec.Struct, frozen=True, kw_only=True):
    code: ErrorCode
    message: str


class IncompleteDetails(msgspec.Struct, frozen=True, kw_only=True):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ReasoningEcho(msgspec.Struct, frozen=True, kw_only=True):
    effort: str | None
    summary: str | None


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """The answer, and the request's parameters as they were understood."""

    id: str
    object: Literal["response"] = "response"
    created_at: Annotated[int, doc("Unix time, seconds")]
    completed_at: Annotated[int | None, doc("Unix time, seconds")] = None
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    model: Annotated[str, doc("the name that the request gave, or the served id")]
    output: list[OutputItem] = []
    usage: ResponseUsage | None = None
    background: bool = False
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None = None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None = None
    prompt_cache_key: str | UnsetType = UNSET
    reasoning: ReasoningEcho
    safety_identifier: str | UnsetType = UNSET
    service_tier: Literal["default"] = "default"
    store: bool = False
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    user: str | UnsetType = UNSET
