"""TGI's native answers: the whole reply, its headers, and the events of a stream. Pure functions of a
generation.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType

from serving.api.generation import Generation, SequenceState
from serving.api.roles import SpelledToken, TokenText
from serving.messages import EngineReady


class Token(msgspec.Struct, frozen=True):
    id: int
    text: str
    logprob: float | None
    special: bool


class PrefillToken(msgspec.Struct, frozen=True):
    id: int
    text: str
    logprob: float | None


class BestOfSequence(msgspec.Struct, frozen=True, kw_only=True):
    generated_text: str
    finish_reason: str
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] | UnsetType = UNSET


class Details(msgspec.Struct, frozen=True, kw_only=True):
    finish_reason: str
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]
    best_of_sequences: list[BestOfSequence] | UnsetType = UNSET
    top_tokens: list[list[Token]] | UnsetType = UNSET


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    generated_text: str
    details: Details | UnsetType = UNSET


class StreamDetails(msgspec.Struct, frozen=True, kw_only=True):
    finish_reason: str
    generated_tokens: int
    seed: int | None
    input_length: int


class StreamEvent(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    token: Token
    top_tokens: list[Token] | UnsetType = UNSET
    generated_text: str | None = None
    details: StreamDetails | None = None


def reply(generation: Generation, prefill: list[PrefillToken]) -> Reply:
    """The sequence with the highest mean logprob is the answer; the others are `best_of_sequences`."""
    request = generation.request
    best = _best(generation)
    text = generated_text(generation, best)
    if not request.details:
        return Reply(generated_text=text)
    others = [sequence for sequence in generation.sequences if sequence is not best]
    return Reply(
        generated_text=text,
        details=Details(
            finish_reason=best.text.finish_reason or "",
            generated_tokens=best.text.num_tokens,
            seed=_seed(generation, best),
            prefill=prefill,
            tokens=[_token(token) for token in best.tokens],
            top_tokens=_top_tokens(generation, best),
            best_of_sequences=[_best_of_sequence(generation, each, prefill) for each in others]
            if others
            else UNSET,
        ),
    )


def _best(generation: Generation) -> SequenceState:
    """One that a deadline ended before its first token is none."""
    return max(
        generation.sequences, key=lambda sequence: (sequence.text.num_tokens > 0, sequence.mean_logprob)
    )


def _best_of_sequence(
    generation: Generation, sequence: SequenceState, prefill: list[PrefillToken]
) -> BestOfSequence:
    return BestOfSequence(
        generated_text=generated_text(generation, sequence),
        finish_reason=sequence.text.finish_reason or "",
        generated_tokens=sequence.text.num_tokens,
        seed=_seed(generation, sequence),
        prefill=prefill,
        tokens=[_token(token) for token in sequence.tokens],
        top_tokens=_top_tokens(generation, sequence),
    )


def reply_headers(generation: Generation, ready: EngineReady) -> dict[str, str]:
    """TGI's timing headers; times are whole milliseconds except `x-compute-time`, which is seconds."""
    timings = generation.timings
    best = _best(generation)
    num_tokens = best.text.num_tokens
    return {
        **compute_headers(generation, ready),
        "x-compute-time": f"{timings.total_s:.6f}",
        "x-total-time": _ms(timings.total_s),
        "x-validation-time": _ms(timings.validation_s),
        "x-queue-time": _ms(timings.queue_s),
        "x-inference-time": _ms(timings.inference_s),
        "x-time-per-token": _ms(timings.inference_s / max(1, num_tokens)),
        "x-prompt-tokens": str(len(generation.request.prompt_token_ids)),
        "x-generated-tokens": str(num_tokens),
    }


def compute_headers(generation: Generation, ready: EngineReady) -> dict[str, str]:
    return {
        "x-compute-type": f"{ready.num_ranks}-{ready.device}",  # TGI: shards and device
        "x-compute-characters": str(len(generation.request.inputs)),
    }


def stream_event(index: int, token: TokenText) -> StreamEvent:
    return StreamEvent(index=index, token=_token(token), top_tokens=_stream_top(token))


def last_stream_event(index: int, token: TokenText, generation: Generation) -> StreamEvent:
    sequence = generation.sequences[0]
    details = None
    if generation.request.details:
        details = StreamDetails(
            finish_reason=sequence.text.finish_reason or "",
            generated_tokens=sequence.text.num_tokens,
            seed=_seed(generation, sequence),
            input_length=len(generation.request.prompt_token_ids),
        )
    return StreamEvent(
        index=index,
        token=_token(token),
        top_tokens=_stream_top(token),
        generated_text=generated_text(generation, sequence),
        details=details,
    )


def generated_text(generation: Generation, sequence: SequenceState) -> str:
    text = sequence.text.text
    return generation.request.inputs + text if generation.request.return_full_text else text


def _seed(generation: Generation, sequence: SequenceState) -> int | None:
    reported = generation.request.reported_seed
    return reported if reported is None or sequence.seed is None else sequence.seed


def _token(token: SpelledToken) -> Token:
    return Token(token.id, token.text, token.logprob, token.special)


def _top_tokens(generation: Generation, sequence: SequenceState) -> list[list[Token]] | UnsetType:
    if not generation.request.params.top_n_tokens:
        return UNSET
    return [_tokens(token.top or ()) for token in sequence.tokens]


def _stream_top(token: TokenText) -> list[Token] | UnsetType:
    return _tokens(token.top) if token.top else UNSET


def _tokens(tokens: Sequence[SpelledToken]) -> list[Token]:
    return [_token(token) for token in tokens]


def _ms(seconds: float) -> str:
    return str(int(seconds * 1000))
