"""A generation call as log fields, span attributes and parts of a trace. Pure functions; only `prompt_facts` shows text.

Attribute names are OpenTelemetry's semantic conventions for generative AI where those have one.
"""

from __future__ import annotations

from collections.abc import Iterator

from serving.api.generation import Generation
from serving.tracing import Attribute

_SHOWN_CHARS = 200
_OPERATIONS = {"chat": "chat", "responses": "chat"}
_PROVIDER = "textgen-endpoint"


def generation_facts(generation: Generation) -> dict[str, object]:
    """Fields of the request line; durations in seconds, None where the call did not get that far."""
    timings, request = generation.timings, generation.request
    return {
        "engine_request_id": generation.request_id,
        "stream": request.stream,
        "n": len(generation.sequences),
        "input_tokens": generation.num_prompt_tokens,
        "cached_tokens": generation.num_cached_tokens,
        "generated_tokens": generation.num_generated_tokens,
        "validation_s": timings.validation_s if timings.queued else None,
        "queue_s": timings.queue_s if timings.first_token else None,
        "ttft_s": timings.first_token - timings.started if timings.first_token else None,
        "inference_s": timings.inference_s if timings.accepted else None,
        "finish_reason": ",".join(_finish_reasons(generation)),
        "deadline": "reached" if generation.deadline_reached else None,
        "seed": request.reported_seed,
    }


def prompt_facts(generation: Generation) -> dict[str, object]:
    """The beginning of the first prompt and of its first answer."""
    return {
        "prompt": generation.request.inputs[:_SHOWN_CHARS],
        "answer": generation.sequences[0].text.text[:_SHOWN_CHARS],
    }


def generation_attributes(generation: Generation, *, api: str, model: str | None) -> dict[str, Attribute]:
    """Attributes of the request's span; no text."""
    params = generation.request.params
    timings = generation.timings
    sampled = not params.greedy
    return {
        "gen_ai.operation.name": _OPERATIONS.get(api, "text_completion"),
        "gen_ai.provider.name": _PROVIDER,
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.request.max_tokens": params.max_new_tokens,
        "gen_ai.request.choice.count": params.n,
        "gen_ai.request.seed": generation.request.reported_seed,
        "gen_ai.request.temperature": params.temperature if sampled else 0.0,
        "gen_ai.request.top_p": params.top_p if sampled else None,
        "gen_ai.request.frequency_penalty": params.frequency_penalty or None,
        "gen_ai.request.presence_penalty": params.presence_penalty or None,
        "gen_ai.response.finish_reasons": _finish_reasons(generation),
        "gen_ai.usage.input_tokens": generation.num_prompt_tokens,
        "gen_ai.usage.output_tokens": generation.num_generated_tokens,
        "gen_ai.usage.cache_read.input_tokens": generation.num_cached_tokens,
        "textgen.api": api,
        "textgen.stream": generation.request.stream,
        "textgen.engine_request_id": generation.request_id,
        "textgen.queue_s": timings.queue_s,
        "textgen.time_to_first_token_s": timings.first_token - timings.started
        if timings.first_token
        else None,
    }


def trace_parts(generation: Generation, body_read_s: float) -> Iterator[tuple[str, float, float]]:
    """(name, start, end) of the parts that a call reached, readings of `time.monotonic`, each after the one before.

    `tokenize` is the check of the body and the tokenizer, `queue` the wait in the engine, `prefill` ends with the first
    token and `decode` with the last.
    """
    timings = generation.timings
    if not timings.queued:
        return
    yield "tokenize", body_read_s or timings.started, timings.queued
    if not timings.first_token:
        yield "queue", timings.queued, timings.ended
        return
    scheduled_s = min(timings.queued + timings.queue_s, timings.first_token)
    yield "queue", timings.queued, scheduled_s
    yield "prefill", scheduled_s, timings.first_token
    yield "decode", timings.first_token, max(timings.first_token, timings.last_token)


def _finish_reasons(generation: Generation) -> list[str]:
    return [sequence.text.finish_reason or "none" for sequence in generation.sequences]
