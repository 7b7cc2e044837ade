"""Serves one chat completion from its body to its answer, whole or streamed. Knows no routes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
from flask import Response

from serving.api.call import Call
from serving.api.generation import Generation
from serving.api.offload import run_aside
from serving.api.openai.chat_reply import ChatAnswer, tool_call_pieces
from serving.api.openai.door import Label, label, read_fields, usage_of
from serving.api.openai.text_events import TextEvents, gap_of
from serving.api.openai.token_logprobs import chat_logprobs
from serving.api.readiness import Serving
from serving.api.schema.generate import GenerateRequest, Limits
from serving.api.schema.openai_answers import (
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
)
from serving.api.schema.openai_chat import (
    ChatCompletionRequest,
    check_chat,
    refuse_other_parts,
    to_chat_request,
)
from serving.api.schema.openai_formats import asked_field
from serving.api.schema.openai_sampling import SamplingFields, max_new_tokens, sampling_params
from serving.api.streaming import Framing
from serving.errors import ContextTooLong
from serving.text.answer import AnswerDelta
from serving.text.chat import ChatRequest, PreparedChat

API = "chat"


@dataclass(slots=True, frozen=True)
class _Chat:
    """A checked request on its way to its answer."""

    fields: ChatCompletionRequest
    prepared: PreparedChat
    label: Label

    def answers(self, generation: Generation, serving: Serving) -> list[ChatAnswer]:
        return [
            ChatAnswer(
                self.prepared.new_answer(sequence.text),
                vocabulary=serving.text.vocabulary,
                num_top_logprobs=self.fields.num_top_logprobs if self.fields.logprobs else None,
            )
            for sequence in generation.sequences
        ]


def answer(call: Call, *, any_model: bool = False) -> Response:
    """Answer a call whose body was read. `any_model`: every name means the served model."""
    refuse_other_parts(call.body)
    fields = read_fields(call, ChatCompletionRequest, API)
    limits = call.serving.limits
    check_chat(fields, limits)
    labelled = label(call, fields, prefix="chatcmpl-", any_model=any_model)
    asked = to_chat_request(fields)
    prepared = prepare(call.serving, asked, limits)
    chat = _Chat(fields, prepared, labelled)
    request = generate_request(
        prepared,
        fields,
        limits,
        token_limit=fields.token_limit,
        num_top_logprobs=fields.num_top_logprobs,
        grammar_field=asked_field(fields, fields.response_format) or "tools",
        needs_end=_needs_end(asked),
    )
    generation = call.generation(request, keep_tokens=False)
    if fields.streams:

        def events(generation: Generation, framing: Framing) -> Iterator[bytes]:
            return _events(chat, generation, call.serving, framing)

        return call.stream(generation, events, {})
    return call.whole(generation, _whole(chat, generation, call.serving))


def _needs_end(chat: ChatRequest) -> bool:
    return chat.response_grammar is not None or chat.named_tool or chat.tool_choice == "required"


def prepare(serving: Serving, chat: ChatRequest, limits: Limits, *, field: str = "messages") -> PreparedChat:
    """A chat as the engine takes it, made ready beside the event loop: what a template does with few characters can
    take long, too. `field` holds the messages.

    Raises `ContextTooLong`, `TemplateError`, `ToolError` or `InvalidRequest`.
    """
    num_chars = sum(_num_chars(message.get("content")) for message in chat.messages)
    least_tokens = num_chars // limits.longest_token_bytes if limits.longest_token_bytes else 0
    if least_tokens > limits.max_input_tokens:
        raise ContextTooLong(
            f"This model's maximum context length is {limits.max_total_tokens} tokens, of which the prompt may have "
            f"{limits.max_input_tokens}. However, your messages have more than {least_tokens} tokens",
            field=field,
        )
    # Tools, documents and what the template adds count too, but are only seen in the prompt.
    max_chars = (limits.max_input_tokens + 1) * limits.longest_token_bytes or None
    return run_aside(lambda: serving.text.prepare_chat(chat, max_chars=max_chars))


def _num_chars(content: object) -> int:
    if isinstance(content, str):
        return len(content)
    return sum(len(part["text"]) for part in content) if isinstance(content, list) else 0


def generate_request(
    prepared: PreparedChat,
    fields: SamplingFields,
    limits: Limits,
    *,
    token_limit: tuple[str, int | None],
    num_top_logprobs: int,
    grammar_field: str,
    needs_end: bool = False,
) -> GenerateRequest:
    """`token_limit` is the field that limits the answer, and its value; `grammar_field` the one that asks for a grammar.

    Raises `ContextTooLong` or `InvalidRequest`.
    """
    field, wanted = token_limit
    new_tokens = max_new_tokens(
        wanted,
        field=field,
        num_prompt_tokens=len(prepared.prompt_token_ids),
        limits=limits,
        default=None,
    )
    return GenerateRequest(
        inputs=prepared.prompt_text,
        prompt_token_ids=prepared.prompt_token_ids,
        params=sampling_params(
            fields, new_tokens=new_tokens, grammar=prepared.grammar, top_n_tokens=num_top_logprobs
        ),
        return_full_text=False,
        stream=fields.streams,
        grammar_field=grammar_field,
        needs_end=needs_end,
    )


def _whole(chat: _Chat, generation: Generation, serving: Serving) -> ChatCompletion:
    answers = chat.answers(generation, serving)
    with generation:
        generation.start()
        for progress in generation.progress(answers[0]):
            if progress is not None:
                answers[progress.index].take(progress.tokens, final=progress.final)
    generation.finish()
    if generation.deadline_reached and not all([each.drop_cut_calls() for each in answers]):
        raise generation.useless_part("a tool call")
    return ChatCompletion(
        id=chat.label.id,
        created=chat.label.created,
        model=chat.label.model,
        system_fingerprint=chat.label.system_fingerprint,
        choices=[each.choice(index) for index, each in enumerate(answers)],
        usage=usage_of(generation),
    )


def _events(chat: _Chat, generation: Generation, serving: Serving, framing: Framing) -> Iterator[bytes]:
    """Chunks as they come, the choices mixed; empty ones while there is nothing to show."""
    answers, counts = chat.answers(generation, serving), chat.fields.counts_in_every_chunk
    begun = [False] * len(answers)
    empty = ChatCompletionChunk(
        id=chat.label.id,
        created=chat.label.created,
        model=chat.label.model,
        system_fingerprint=chat.label.system_fingerprint,
        choices=[],
        usage=None if chat.fields.includes_usage else msgspec.UNSET,
    )

    def frame(choice: ChatChunkChoice) -> bytes:
        so_far = usage_of(generation) if counts else empty.usage
        return framing.frame(msgspec.structs.replace(empty, choices=[choice], usage=so_far))

    gap = gap_of(lambda text: frame(_piece(0, answers[0], AnswerDelta(content=text))))
    plain = TextEvents(answers[0], gap, begun=False)
    for progress in generation.progress(None if counts else plain):
        chunk = b""
        if progress is not None:
            index, one = progress.index, answers[progress.index]
            delta = one.read(progress.tokens, final=progress.final)
            if not begun[index]:
                begun[index] = plain.begun = True
                first = ChatDelta(role="assistant", content="", refusal=None)
                chunk += frame(ChatChunkChoice(index=index, delta=first))
            if one.shows(delta):
                chunk += frame(_piece(index, one, delta))
            if progress.final:
                last = ChatChunkChoice(index=index, delta=ChatDelta(), finish_reason=one.finish_reason)
                chunk += frame(last)
        yield chunk
    if chat.fields.includes_usage:
        yield framing.frame(msgspec.structs.replace(empty, usage=usage_of(generation)))
    yield framing.end


def _piece(index: int, one: ChatAnswer, delta: AnswerDelta) -> ChatChunkChoice:
    return ChatChunkChoice(
        index=index,
        delta=ChatDelta(
            content=delta.content or msgspec.UNSET,
            reasoning_content=delta.reasoning or msgspec.UNSET,
            tool_calls=tool_call_pieces(delta.tool_calls) or msgspec.UNSET,
        ),
        logprobs=chat_logprobs(delta.tokens, one.vocabulary, one.num_top_logprobs),
    )
