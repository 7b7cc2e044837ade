"""Serves one completion call, of one or several prompts, from its body to its answer. Knows no routes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
from flask import Response

from serving.api.call import Call
from serving.api.generation import Generation
from serving.api.offload import run_aside
from serving.api.openai.completion_reply import CompletionAnswer
from serving.api.openai.door import Label, label, read_fields, usage_of
from serving.api.openai.text_events import TextEvents, gap_of
from serving.api.readiness import Serving
from serving.api.roles import TextProcessor
from serving.api.schema.generate import GenerateRequest, Limits
from serving.api.schema.openai_answers import Completion, CompletionChoice, Usage
from serving.api.schema.openai_completions import (
    DEFAULT_MAX_TOKENS,
    CompletionRequest,
    Prompt,
    check_completion,
    read_prompts,
)
from serving.api.schema.openai_formats import asked_field, grammar_of
from serving.api.schema.openai_sampling import max_new_tokens, sampling_params
from serving.api.streaming import Framing

API = "completions"

_LONG_TEXT_CHARS = 4000


@dataclass(slots=True, frozen=True)
class _Completion:
    """A checked call on its way to its answer."""

    fields: CompletionRequest
    prompts: list[Prompt]
    label: Label

    def answers(self, generation: Generation, serving: Serving) -> list[CompletionAnswer]:
        """One per sequence of the generation, in its order: that of the choices."""
        return [
            CompletionAnswer(self.fields, prompt, state, sequence, serving.text)
            for prompt, state in zip(self.prompts, generation.prompts, strict=True)
            for sequence in generation.sequences[state.first_sequence :][: state.request.params.n]
        ]

    def usage_hides(self, generation: Generation) -> int:
        return generation.num_generated_tokens if self.fields.shows_only_prompt else 0


def answer(call: Call, *, any_model: bool = False) -> Response:
    """Answer a call whose body was read. `any_model`: every name means the served model."""
    fields = read_fields(call, CompletionRequest, API)
    limits = call.serving.limits
    check_completion(fields, limits)
    labelled = label(call, fields, prefix="cmpl-", any_model=any_model)
    prompts = read_prompts(fields.prompt, limits, lambda text: _tokenize(call.serving.text, text))
    completion = _Completion(fields, prompts, labelled)
    requests = [_generate_request(fields, prompt, limits) for prompt in prompts]
    generation = call.generation(*requests, keep_tokens=False)
    if fields.streams:

        def events(generation: Generation, framing: Framing) -> Iterator[bytes]:
            return _events(completion, generation, call.serving, framing)

        return call.stream(generation, events, {})
    return call.whole(generation, _whole(completion, generation, call.serving))


def _tokenize(text: TextProcessor, prompt: str) -> list[int]:
    if len(prompt) < _LONG_TEXT_CHARS:
        return text.prepare(prompt)
    return run_aside(lambda: text.prepare(prompt))


def _generate_request(fields: CompletionRequest, prompt: Prompt, limits: Limits) -> GenerateRequest:
    """To show only the prompt, one token is generated and shown to nobody: its log-probabilities come with it."""
    new_tokens = max_new_tokens(
        1 if fields.shows_only_prompt else fields.max_tokens,
        field="max_tokens",
        num_prompt_tokens=len(prompt.token_ids),
        limits=limits,
        default=DEFAULT_MAX_TOKENS,
    )
    grammar = grammar_of(fields, fields.response_format)
    return GenerateRequest(
        inputs=prompt.text or "",
        prompt_token_ids=prompt.token_ids,
        params=sampling_params(
            fields,
            new_tokens=new_tokens,
            grammar=grammar,
            top_n_tokens=fields.logprobs or 0,
            prompt_logprobs=bool(fields.echo) and fields.logprobs is not None,
        ),
        return_full_text=bool(fields.echo),
        stream=fields.streams,
        grammar_field=asked_field(fields, fields.response_format) or "response_format",
        needs_end=grammar is not None,
    )


def _whole(completion: _Completion, generation: Generation, serving: Serving) -> Completion:
    answers = completion.answers(generation, serving)
    parts: list[list[CompletionChoice]] = [[] for _ in answers]
    with generation:
        generation.start()
        for progress in generation.progress(_Gathered(answers[0], parts[0])):
            if progress is not None:
                index = progress.index
                parts[index].extend(answers[index].pieces(index, progress.tokens, final=progress.final))
    generation.finish()
    return Completion(
        id=completion.label.id,
        created=completion.label.created,
        model=completion.label.model,
        system_fingerprint=completion.label.system_fingerprint,
        choices=[each.joined(pieces) for each, pieces in zip(answers, parts, strict=True)],
        usage=usage_of(generation, num_hidden_tokens=completion.usage_hides(generation)),
    )


def _piece(text: str) -> CompletionChoice:
    return CompletionChoice(index=0, text=text, logprobs=None, finish_reason=None)


@dataclass(slots=True)
class _Gathered:
    """Plain tokens (`PlainEvents`) of an answer that is not streamed."""

    answer: CompletionAnswer
    pieces: list[CompletionChoice]

    def expects(self) -> bool:
        return self.answer.expects()

    def event(self, token_id: int, text: str, logprob: float) -> bytes:
        self.answer.pass_on(text)
        self.pieces.append(_piece(text))
        return b""


def _events(
    completion: _Completion, generation: Generation, serving: Serving, framing: Framing
) -> Iterator[bytes]:
    """Chunks as they come, the choices mixed; empty ones while there is nothing to show."""
    answers = completion.answers(generation, serving)
    includes_usage, counts = completion.fields.includes_usage, completion.fields.counts_in_every_chunk
    empty = Completion(
        id=completion.label.id,
        created=completion.label.created,
        model=completion.label.model,
        system_fingerprint=completion.label.system_fingerprint,
        choices=[],
        usage=None if includes_usage else msgspec.UNSET,
    )

    def usage() -> Usage:
        return usage_of(generation, num_hidden_tokens=completion.usage_hides(generation))

    def frame(choice: CompletionChoice) -> bytes:
        so_far = usage() if counts else empty.usage
        return framing.frame(msgspec.structs.replace(empty, choices=[choice], usage=so_far))

    plain = TextEvents(answers[0], gap_of(lambda text: frame(_piece(text))), begun=True)
    for progress in generation.progress(None if counts else plain):
        chunk = b""
        if progress is not None:
            index = progress.index
            for piece in answers[index].pieces(index, progress.tokens, final=progress.final):
                chunk += frame(piece)
        yield chunk
    if includes_usage:
        yield framing.frame(msgspec.structs.replace(empty, usage=usage()))
    yield framing.end
