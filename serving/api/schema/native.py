"""TGI's native request: `inputs`, `parameters`, `stream`. Its checks, in TGI's order, and its meaning as
sampling parameters. Knows nothing of HTTP.

Differences to TGI, on purpose: `top_p: 1.0` and `typical_p: 1.0` mean off instead of being refused; token limits are
checked with the true numbers instead of chunks of 1024; an adapter that does not exist is refused instead of being
answered by the base model; an empty stop string is refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Annotated, NoReturn

import msgspec
from msgspec import UNSET, Meta, UnsetType

from serving.api.schema.generate import GenerateRequest, Limits
from serving.api.schema.native_grammar import NativeGrammar, to_grammar
from serving.errors import InvalidRequest, NotFound
from serving.sampling_params import MAX_SEED, Grammar, SamplingParams

_MAX_U32 = 2**32 - 1
_MAX_I32 = 2**31 - 1
_MAX_FLOAT32 = 3.4028234663852886e38
_MAX_STOP_CHARS = 1024
_MAX_SHOWN_CHARS = 64
_SMALLEST_DIVISOR = 1e-6
"""Scores are divided by temperature and repetition penalty in float32. A smaller divisor could overflow them;
the result is the same already at this value (the likeliest token, always).
"""

Tokenize = Callable[[str, int | None], list[int]]
"""Text and `truncate` to prompt token ids."""


def _doc(description: str, **bounds: float) -> Meta:
    """Bounds are documented here and checked below, because TGI's order of checks is not the order of fields."""
    return Meta(description=description, extra_json_schema=dict(bounds) or None)


class NativeParameters(msgspec.Struct, kw_only=True):
    """How to generate. An empty object means greedy search, no object at all means sampling."""

    best_of: Annotated[
        int | None, _doc("generate so many answers and return the likeliest; needs sampling", minimum=0)
    ] = None
    temperature: Annotated[
        float | None,
        _doc("divides the scores; below 1 sharpens", exclusiveMinimum=0, maximum=_MAX_FLOAT32),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        _doc("above 1 discourages tokens that occurred", exclusiveMinimum=0, maximum=_MAX_FLOAT32),
    ] = None
    frequency_penalty: Annotated[
        float | None,
        _doc("times the share a token has in prompt and output, taken from its score", minimum=-2, maximum=2),
    ] = None
    top_k: Annotated[
        int | None, _doc("draw from the k likeliest tokens; absent: off", minimum=1, maximum=_MAX_I32)
    ] = None
    top_p: Annotated[
        float | None,
        _doc("draw from the likeliest tokens with this total probability", exclusiveMinimum=0, maximum=1),
    ] = None
    typical_p: Annotated[
        float | None,
        _doc("locally typical sampling with this total probability", exclusiveMinimum=0, maximum=1),
    ] = None
    do_sample: Annotated[bool, _doc("draw tokens instead of taking the likeliest")] = False
    max_new_tokens: Annotated[
        int | None, _doc("longest output; absent: the rest of the context", minimum=1, maximum=_MAX_U32)
    ] = None
    return_full_text: Annotated[bool | None, _doc("put the prompt in front; absent: as the route does")] = (
        None
    )
    stop: Annotated[list[str], _doc("texts that end the output, and stay in it")] = []
    truncate: Annotated[int | None, _doc("keep only the last so many prompt tokens", minimum=1)] = None
    watermark: Annotated[bool, _doc("mark the output so that a detector can tell it")] = False
    details: Annotated[bool, _doc("return tokens, log-probabilities and the finish reason")] = False
    decoder_input_details: Annotated[
        bool, _doc("return log-probabilities of the prompt's tokens; not for streams")
    ] = False
    seed: Annotated[
        int | None, _doc("makes sampling repeatable; absent: random", minimum=0, maximum=MAX_SEED)
    ] = None
    top_n_tokens: Annotated[int | None, _doc("return the likeliest tokens at each position", minimum=0)] = (
        None
    )
    grammar: Annotated[NativeGrammar | None, _doc("what the output has to match")] = None
    adapter_id: Annotated[str | None, _doc("LoRA adapter; absent: the base model")] = None

    @property
    def samples(self) -> bool:
        """TGI's rule: any of these makes it sample, whatever `do_sample` says."""
        return (
            self.do_sample
            or self.temperature not in (None, 1.0)
            or self.top_k is not None
            or (self.top_p is not None and self.top_p < 1.0)
            or (self.typical_p is not None and self.typical_p < 1.0)
        )


class NativeRequest(msgspec.Struct, kw_only=True):
    """Body of `POST /generate` and `/generate_stream`."""

    inputs: Annotated[str, Meta(description="the prompt", extra_json_schema={"minLength": 1})]
    parameters: NativeParameters | UnsetType = UNSET

    def parameters_or_default(self) -> NativeParameters:
        """An absent object is not an empty one: without `parameters` TGI samples, with `{}` it is greedy."""
        return NativeParameters(do_sample=True) if isinstance(self.parameters, UnsetType) else self.parameters


class NativeStreamableRequest(NativeRequest, kw_only=True):
    """Body of `POST /` and `/invocations`."""

    stream: Annotated[bool, Meta(description="answer with server-sent events")] = False


def to_generate_request(
    body: NativeRequest, limits: Limits, tokenize: Tokenize, *, stream: bool, full_text_default: bool
) -> GenerateRequest:
    """Check everything and tokenize. Raises `InvalidRequest` naming the first wrong field in TGI's order of
    checks.
    """
    parameters = body.parameters_or_default()
    _require_adapter(parameters)
    if stream:
        _check_streamable(parameters)
    num_sequences = _num_sequences(parameters, limits)
    _check_sampling(parameters)
    _check_counts(parameters, limits, num_sequences)
    if not body.inputs:
        _refuse("inputs", "cannot be empty")
    _check_truncate(parameters, limits)
    ids = _tokenize(body.inputs, parameters.truncate, limits, tokenize)
    max_new_tokens = _max_new_tokens(len(ids), parameters, limits)
    params = _sampling_params(parameters, limits, max_new_tokens, num_sequences)
    full_text = parameters.return_full_text
    return GenerateRequest(
        inputs=body.inputs,
        prompt_token_ids=ids,
        params=params,
        return_full_text=full_text_default if full_text is None else full_text,
        details=parameters.details or parameters.decoder_input_details,
        prompt_logprobs=parameters.decoder_input_details,
        stream=stream,
        grammar_field="parameters.grammar",
        needs_end=params.grammar is not None,
    )


def _refuse(name: str, rule: str) -> NoReturn:
    raise InvalidRequest(f"`{name}` {rule}", field=name)


def _require(condition: bool, name: str, rule: str, value: object) -> None:
    if not condition:
        _refuse(f"parameters.{name}", f"{rule}. Given: {value}")


def _require_adapter(parameters: NativeParameters) -> None:
    """Answering with the base model instead, as TGI does, would be wrong silently."""
    name = parameters.adapter_id
    if name is not None:
        shown = name if len(name) <= _MAX_SHOWN_CHARS else name[: _MAX_SHOWN_CHARS - 1] + "…"
        raise NotFound(
            f"`parameters.adapter_id`: this server has no adapter {shown!r}", field="parameters.adapter_id"
        )


def _check_streamable(parameters: NativeParameters) -> None:
    _require(
        parameters.best_of in (None, 1),
        "best_of",
        "!= 1 is not supported when streaming tokens",
        parameters.best_of,
    )
    _require(
        not parameters.decoder_input_details,
        "decoder_input_details",
        "== true is not supported when streaming tokens",
        "true",
    )


def _num_sequences(parameters: NativeParameters, limits: Limits) -> int:
    best_of = parameters.best_of
    _require(best_of is None or best_of >= 0, "best_of", f"must be > 0 and <= {limits.max_best_of}", best_of)
    if not best_of or best_of == 1:
        return 1
    _require(limits.max_best_of > 1, "best_of", "is disabled on this server (max_best_of is 1)", best_of)
    _require(best_of <= limits.max_best_of, "best_of", f"must be > 0 and <= {limits.max_best_of}", best_of)
    # TGI counts a parameter as set even at the value that means "off"; a share of 1.0 was never accepted there.
    chooses = (
        parameters.do_sample
        or parameters.temperature is not None
        or parameters.top_k is not None
        or parameters.top_p not in (None, 1.0)
        or parameters.typical_p not in (None, 1.0)
    )
    _require(chooses, "best_of", "> 1 needs sampling: set `do_sample` or a sampling parameter", best_of)
    return best_of


def _check_sampling(parameters: NativeParameters) -> None:
    for name in ("temperature", "repetition_penalty"):
        value = getattr(parameters, name)
        _require(value is None or value > 0.0, name, "must be strictly positive", value)
        _require(
            value is None or value <= _MAX_FLOAT32,
            name,
            f"must be <= {_MAX_FLOAT32:g}, a 32-bit float",
            value,
        )
    penalty = parameters.frequency_penalty
    _require(
        penalty is None or -2.0 <= penalty <= 2.0, "frequency_penalty", "must be >= -2.0 and <= 2.0", penalty
    )
    top_p = parameters.top_p
    _require(top_p is None or 0.0 < top_p <= 1.0, "top_p", "must be > 0.0 and <= 1.0", top_p)
    typical_p = parameters.typical_p
    _require(typical_p is None or 0.0 < typical_p <= 1.0, "typical_p", "must be > 0.0 and <= 1.0", typical_p)
    top_k = parameters.top_k
    _require(
        top_k is None or 0 < top_k <= _MAX_I32, "top_k", f"must be strictly positive and <= {_MAX_I32}", top_k
    )


def _check_counts(parameters: NativeParameters, limits: Limits, num_sequences: int) -> None:
    new = parameters.max_new_tokens
    _require(
        new is None or 0 < new <= _MAX_U32,
        "max_new_tokens",
        f"must be strictly positive and <= {_MAX_U32}",
        new,
    )
    stops = parameters.stop
    _require(
        len(stops) <= limits.max_stop_sequences,
        "stop",
        f"supports up to {limits.max_stop_sequences} stop sequences",
        len(stops),
    )
    for index, stop in enumerate(stops):
        _require(
            0 < len(stop) <= _MAX_STOP_CHARS,
            f"stop[{index}]",
            f"must have 1 to {_MAX_STOP_CHARS} characters",
            len(stop),
        )
    seed = parameters.seed
    _require(num_sequences == 1 or seed is None, "seed", "must not be set when `best_of` > 1", seed)
    _require(seed is None or 0 <= seed <= MAX_SEED, "seed", f"must be >= 0 and <= {MAX_SEED}", seed)
    top_n = parameters.top_n_tokens
    most = limits.max_top_n_tokens
    _require(top_n is None or 0 <= top_n <= most, "top_n_tokens", f"must be >= 0 and <= {most}", top_n)


def _check_truncate(parameters: NativeParameters, limits: Limits) -> None:
    truncate = parameters.truncate
    most = limits.max_input_tokens
    _require(
        truncate is None or 0 < truncate <= most,
        "truncate",
        f"must be strictly positive and <= {most}",
        truncate,
    )


def _tokenize(inputs: str, truncate: int | None, limits: Limits, tokenize: Tokenize) -> list[int]:
    least_tokens = len(inputs) // limits.longest_token_bytes if limits.longest_token_bytes else 0
    if truncate is None and least_tokens > limits.max_input_tokens:
        _refuse(
            "inputs", f"must have at most {limits.max_input_tokens} tokens. Given: more than {least_tokens}"
        )
    ids = tokenize(inputs, truncate)
    if not ids:
        _refuse("inputs", "has no tokens")
    return ids


def _max_new_tokens(num_inputs: int, parameters: NativeParameters, limits: Limits) -> int:
    new = parameters.max_new_tokens
    if new is not None and num_inputs + new > limits.max_total_tokens:
        raise InvalidRequest(
            f"`inputs` tokens + `parameters.max_new_tokens` must be <= {limits.max_total_tokens}. "
            f"Given: {num_inputs} `inputs` tokens and {new} `max_new_tokens`",
            field="parameters.max_new_tokens",
        )
    if num_inputs > limits.max_input_tokens:
        _refuse("inputs", f"must have at most {limits.max_input_tokens} tokens. Given: {num_inputs}")
    if num_inputs >= limits.max_total_tokens:
        _refuse("inputs", f"must have less than {limits.max_total_tokens} tokens. Given: {num_inputs}")
    return limits.max_total_tokens - num_inputs if new is None else new


def _sampling_params(
    parameters: NativeParameters, limits: Limits, max_new_tokens: int, num_sequences: int
) -> SamplingParams:
    samples = parameters.samples
    seed = parameters.seed
    if samples and seed is None:
        seed = secrets.randbits(64)
    temperature = max(_SMALLEST_DIVISOR, _or(parameters.temperature, 1.0))
    return SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=temperature if samples else 0.0,
        top_k=parameters.top_k or 0,
        top_p=_or(parameters.top_p, 1.0),
        typical_p=_or(parameters.typical_p, 1.0),
        repetition_penalty=max(_SMALLEST_DIVISOR, _or(parameters.repetition_penalty, 1.0)),
        relative_frequency_penalty=_or(parameters.frequency_penalty, 0.0),
        seed=seed,
        n=num_sequences,
        stop=tuple(parameters.stop),
        watermark=limits.watermark if parameters.watermark else None,
        grammar=_grammar(parameters, limits),
        top_n_tokens=parameters.top_n_tokens or 0,
        prompt_logprobs=parameters.decoder_input_details,
    )


def _grammar(parameters: NativeParameters, limits: Limits) -> Grammar | None:
    if parameters.grammar is None:
        return None
    return to_grammar(parameters.grammar, field="parameters.grammar", supported=limits.grammar_support)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
