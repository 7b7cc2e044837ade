"""The events of a streamed response, as types. Knows nothing of generations.

Source of the shapes: OpenAI's API reference and the types of its client (`openai.types.responses`).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from serving.api.schema.openai_answers import TokenLogprob
from serving.api.schema.responses_answers import OutputItem, OutputTextPart, ReasoningTextPart, Response


class StreamEvent(msgspec.Struct, kw_only=True):
    """`sequence_number` counts the events of a stream from 0; it is set when the event is sent."""

    type: str
    sequence_number: int = 0


class ResponseCreated(StreamEvent, kw_only=True):
    type: Literal["response.created"] = "response.created"
    response: Response


class ResponseInProgress(StreamEvent, kw_only=True):
    type: Literal["response.in_progress"] = "response.in_progress"
    response: Response


class ResponseCompleted(StreamEvent, kw_only=True):
    type: Literal["response.completed"] = "response.completed"
    response: Response


class ResponseIncomplete(StreamEvent, kw_only=True):
    type: Literal["response.incomplete"] = "response.incomplete"
    response: Response


class ResponseFailed(StreamEvent, kw_only=True):
    type: Literal["response.failed"] = "response.failed"
    response: Response


class StreamError(StreamEvent, kw_only=True):
    """Goes before `response.failed`."""

    type: Literal["error"] = "error"
    code: str | None
    message: str
    param: str | None


class OutputItemAdded(StreamEvent, kw_only=True):
    type: Literal["response.output_item.added"] = "response.output_item.added"
    output_index: int
    item: OutputItem


class OutputItemDone(StreamEvent, kw_only=True):
    type: Literal["response.output_item.done"] = "response.output_item.done"
    output_index: int
    item: OutputItem


class ContentPartAdded(StreamEvent, kw_only=True):
    type: Literal["response.content_part.added"] = "response.content_part.added"
    item_id: str
    output_index: int
    content_index: int = 0
    part: OutputTextPart | ReasoningTextPart


class ContentPartDone(StreamEvent, kw_only=True):
    type: Literal["response.content_part.done"] = "response.content_part.done"
    item_id: str
    output_index: int
    content_index: int = 0
    part: OutputTextPart | ReasoningTextPart


class OutputTextDelta(StreamEvent, kw_only=True):
    type: Literal["response.output_text.delta"] = "response.output_text.delta"
    item_id: str
    output_index: int
    content_index: int = 0
    delta: str
    logprobs: list[TokenLogprob]


class OutputTextDone(StreamEvent, kw_only=True):
    type: Literal["response.output_text.done"] = "response.output_text.done"
    item_id: str
    output_index: int
    content_index: int = 0
    text: str
    logprobs: list[TokenLogprob]


class ReasoningTextDelta(StreamEvent, kw_only=True):
    type: Literal["response.reasoning_text.delta"] = "response.reasoning_text.delta"
    item_id: str
    output_index: int
    content_index: int = 0
    delta: str


class ReasoningTextDone(StreamEvent, kw_only=True):
    type: Literal["response.reasoning_text.done"] = "response.reasoning_text.done"
    item_id: str
    output_index: int
    content_index: int = 0
    text: str


class FunctionCallArgumentsDelta(StreamEvent, kw_only=True):
    type: Literal["response.function_call_arguments.delta"] = "response.function_call_arguments.delta"
    item_id: str
    output_index: int
    delta: str


class FunctionCallArgumentsDone(StreamEvent, kw_only=True):
    type: Literal["response.function_call_arguments.done"] = "response.function_call_arguments.done"
    item_id: str
    output_index: int
    arguments: str
