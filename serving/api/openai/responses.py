"""Serves one response of OpenAI's Responses API from its body to its answer, whole or streamed. Nothing is stored. Knows no
routes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import flask
import msgspec
from msgspec import UNSET

from serving.api.call import Call
from serving.api.error_handlers import json_response
from serving.api.error_styles import Problem
from serving.api.generation import Generation
from serving.api.openai.chat import generate_request, prepare
from serving.api.openai.chat_reply import ChatAnswer
from serving.api.openai.door import Label, label, read_fields
from serving.api.openai.responses_output import OutputItems
from serving.api.readiness import Serving
from serving.api.schema.responses_answers import (
    ErrorCode,
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    ReasoningEcho,
    Response,
    ResponseError,
    ResponseUsage,
)
from serving.api.schema.responses_events import (
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    StreamError,
    StreamEvent,
)
from serving.api.schema.responses_input import read_input
from serving.api.schema.responses_request import (
    PlainText,
    ReasoningConfig,
    ResponsesRequest,
    TextConfig,
    check_responses,
    refuse_other_tools,
    to_chat_request,
)
from serving.api.streaming import Framing
from serving.errors import ContextTooLong
from serving.text.chat import PreparedChat

API = "responses"


@dataclass(slots=True)
class _Answer:
    """One response while it is made. `empty` is the response before anything was generated."""

    empty: Response
    generation: Generation
    output: OutputItems
    framing: Framing
    num_events: int = 0

    def whole(self) -> Response:
        with self.generation as generation:
            generation.start()
            for progress in generation.progress():
                if progress is not None:
                    self.output.take(progress.tokens, final=progress.final)
        self.generation.finish()
        return self._ended()

    def events(self, generation: Generation, framing: Framing) -> Iterator[bytes]:
        """Events as they come; empty chunks while there is nothing to tell."""
        yield self._frame([ResponseCreated(response=self.empty), ResponseInProgress(response=self.empty)])
        for progress in generation.progress():
            if progress is None:
                yield b""
            else:
                yield self._frame(self.output.take(progress.tokens, final=progress.final))
        ended = self._ended()
        last = ResponseIncomplete if ended.incomplete_details else ResponseCompleted
        yield self._frame([last(response=ended)])

    def failure(self, problem: Problem) -> bytes:
        """The end of a stream that fails."""
        code: ErrorCode = "rate_limit_exceeded" if problem.status == 429 else "server_error"
        failed = msgspec.structs.replace(
            self.empty,
            status="failed",
            error=ResponseError(code=code, message=problem.message),
            output=self.output.items,
        )
        error = StreamError(code=code, message=problem.message, param=problem.field)
        return self._frame([error, ResponseFailed(response=failed)])

    def _ended(self) -> Response:
        cut_off = self.output.cut_off
        generation = self.generation
        return msgspec.structs.replace(
            self.empty,
            completed_at=None if cut_off else int(time.time()),
            status="incomplete" if cut_off else "completed",
            incomplete_details=IncompleteDetails() if cut_off else None,
            output=self.output.items,
            usage=ResponseUsage(
                input_tokens=generation.num_prompt_tokens,
                input_tokens_details=InputTokensDetails(cached_tokens=generation.num_cached_tokens),
                output_tokens=generation.num_generated_tokens,
                output_tokens_details=OutputTokensDetails(reasoning_tokens=self.output.num_reasoning_tokens),
                total_tokens=generation.num_prompt_tokens + generation.num_generated_tokens,
            ),
        )

    def _frame(self, events: Sequence[StreamEvent]) -> bytes:
        """Events with their names and numbers. A named event is a line more than what other APIs send."""
        framed = b""
        for event in events:
            event.sequence_number = self.num_events
            self.num_events += 1
            framed += b"event: %b\n%b" % (event.type.encode(), self.framing.frame(event))
        return framed


def answer(call: Call) -> flask.Response:
    """Answer a call whose body was read."""
    refuse_other_tools(call.body.get("tools"))
    if "input" in call.body:
        call.body["input"] = read_input(call.body["input"])
    fields = read_fields(call, ResponsesRequest, API)
    check_responses(fields, call.serving.limits)
    sampling = fields.sampling
    labelled = label(call, sampling, prefix="resp_", any_model=False)
    try:
        prepared = prepare(call.serving, to_chat_request(fields), call.serving.limits, field="input")
        request = generate_request(
            prepared,
            sampling,
            call.serving.limits,
            token_limit=("max_output_tokens", fields.max_output_tokens),
            num_top_logprobs=fields.num_top_logprobs or 0,
            grammar_field="tools" if fields.tools else "text.format",
        )
    except ContextTooLong as error:
        field = "input" if error.field == "messages" else error.field
        raise ContextTooLong(error.message, field=field) from None
    generation = call.generation(request, keep_tokens=False)
    one = _Answer(
        empty=_empty(fields, labelled),
        generation=generation,
        output=_output(fields, prepared, generation, call.serving),
        framing=call.framing,
    )
    if fields.stream:
        return call.stream(generation, one.events, {}, last_event=one.failure)
    return json_response(one.whole())


def _output(
    fields: ResponsesRequest, prepared: PreparedChat, generation: Generation, serving: Serving
) -> OutputItems:
    [sequence] = generation.sequences
    return OutputItems(
        ChatAnswer(
            prepared.new_answer(sequence.text),
            vocabulary=serving.text.vocabulary,
            num_top_logprobs=fields.num_top_logprobs,
        )
    )


def _empty(fields: ResponsesRequest, labelled: Label) -> Response:
    text, reasoning = fields.text or TextConfig(), fields.reasoning or ReasoningConfig()
    choice = fields.tool_choice or "auto"
    return Response(
        id=labelled.id,
        created_at=labelled.created,
        model=labelled.model,
        instructions=fields.instructions,
        max_output_tokens=fields.max_output_tokens,
        metadata=fields.metadata or {},
        parallel_tool_calls=fields.parallel_tool_calls is not False,
        prompt_cache_key=fields.prompt_cache_key or UNSET,
        reasoning=ReasoningEcho(effort=reasoning.effort, summary=reasoning.summary),
        safety_identifier=fields.safety_identifier or UNSET,
        temperature=1.0 if fields.temperature is None else fields.temperature,
        text=_shown(text),
        tool_choice=choice if isinstance(choice, str) else msgspec.to_builtins(choice),
        tools=[msgspec.to_builtins(tool) for tool in fields.tools or []],
        top_logprobs=fields.top_logprobs or 0,
        top_p=1.0 if fields.top_p is None else fields.top_p,
        user=fields.user or UNSET,
    )


def _shown(text: TextConfig) -> dict[str, Any]:
    chosen = msgspec.to_builtins(text.format or PlainText())
    shown: dict[str, Any] = {"format": {name: value for name, value in chosen.items() if value is not None}}
    return shown if text.verbosity is None else {**shown, "verbosity": text.verbosity}
