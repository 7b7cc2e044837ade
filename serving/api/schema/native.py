"""TGI's native request: `inputs`, `parameters`, `stream`. Its checks, in TGI's order, and its meaning as
sampling parameters. Knows nothing of HTTP.

Differences to TGI, on purpose: `top_p: 1.0` means off instead of being refused; token limits are checked with
the true numbers instead of chunks of 1024; `watermark`, `grammar` and `adapter_id` are refused while they are
not built; an empty stop string is refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec
from msgspec import UNSET, UnsetType

from serving.api.schema.generate import GenerateRequest, Limits
from serving.errors import InvalidRequest
from serving.sampling_params import MAX_SEED, SamplingParams

_MAX_U32 = 2**32 - 1
_MAX_I32 = 2**31 - 1
_MAX_FLOAT32 = 3.4028234663852886e38
_MAX_STOP_CHARS = 1024
_SMALLEST_DIVISOR = 1e-6
"""Scores are divided by temperature and repetition penalty in float32. A smaller divisor could overflow them;
the result is the same already at this value (the likeliest token, always).
"""

Tokenize = Callable[[str, int | None], list[int]]
"""Text and `truncate` to prompt token ids."""


class NativeParameters(msgspec.Struct, kw_only=True):
    best_of: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool = False
    max_new_tokens: int | None = None
    return_full_text: bool | None = None
    stop: list[str] = []
    truncate: int | None = None
    watermark: bool | None = False
    details: bool = False
    decoder_input_details: bool = False
    seed: int | None = None
    top_n_tokens: int | None = None
    grammar: Any = None
    adapter_id: str | None = None

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

    inputs: str
    parameters: NativeParameters | UnsetType = UNSET

    def parameters_or_default(self) -> NativeParameters:
        """An absent object is not an empty one: without `parameters` TGI samples, with `{}` it is greedy."""
        return NativeParameters(do_sample=True) if isinstance(self.parameters, UnsetType) else self.parameters


class NativeStreamableRequest(NativeRequest, kw_only=True):
    """Body of `POST /` and `/invocations`."""

    stream: bool = False


def to_generate_request(
    body: NativeRequest, limits: Limits, tokenize: Tokenize, *, stream: bool, full_text_default: bool
) -> GenerateRequest:
    """Check everything and tokenize. Raises `InvalidRequest` naming the first wrong field in TGI's order of
    checks.
    """
    parameters = body.parameters_or_default()
    _refuse_unsupported(parameters)
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
    full_text = parameters.return_full_text
    return GenerateRequest(
        inputs=body.inputs,
        prompt_token_ids=ids,
        params=_sampling_params(parameters, max_new_tokens, num_sequences),
        return_full_text=full_text_default if full_text is None else full_text,
        details=parameters.details or parameters.decoder_input_details,
        prompt_logprobs=parameters.decoder_input_details,
        stream=stream,
    )


def _refuse(name: str, rule: str) -> NoReturn:
    raise InvalidRequest(f"`{name}` {rule}", field=name)


def _require(condition: bool, name: str, rule: str, value: object) -> None:
    if not condition:
        _refuse(f"parameters.{name}", f"{rule}. Given: {value}")


def _refuse_unsupported(parameters: NativeParameters) -> None:
    for name, given in (
        ("watermark", bool(parameters.watermark)),
        ("grammar", parameters.grammar is not None),
        ("adapter_id", parameters.adapter_id is not None),
    ):
        if given:
            _refuse(f"parameters.{name}", "is not supported yet by this server, leave it out")


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
    # TGI counts a parameter as set even at the value that means "off"; top_p 1.0 was never accepted there.
    chooses = (
        parameters.do_sample
        or parameters.temperature is not None
        or parameters.top_k is not None
        or parameters.top_p not in (None, 1.0)
        or parameters.typical_p is not None
    )
    _require(chooses, "best_of", "> 1 needs sampling: set `do_sample` or a sampling parameter", best_of)
    return best_of


def _check_sampling(parameters: NativeParameters) -> None:
    for name in ("temperature", "repetition_penalty"):
        value = getattr(parameters, name)
        _require(value is None or value > 0.0, name, "must be strictly positive", value)
        _require(value is None or value <= _MAX_FLOAT32, name, "must fit a 32-bit float", value)
    penalty = parameters.frequency_penalty
    _require(
        penalty is None or -2.0 <= penalty <= 2.0, "frequency_penalty", "must be >= -2.0 and <= 2.0", penalty
    )
    top_p = parameters.top_p
    _require(top_p is None or 0.0 < top_p <= 1.0, "top_p", "must be > 0.0 and <= 1.0", top_p)
    typical_p = parameters.typical_p
    _require(typical_p is None or 0.0 < typical_p < 1.0, "typical_p", "must be > 0.0 and < 1.0", typical_p)
    top_k = parameters.top_k
    _require(
        top_k is None or 0 < top_k <= _MAX_I32, "top_k", f"must be strictly positive and <= {_MAX_I32}", top_k
    )


def _check_counts(parameters: NativeParameters, limits: Limits, num_sequences: int) -> None:
    new = parameters.max_new_tokens
    _require(
        new is None or 0 < new <= _MAX_U32,
        "max_new_tokens",
        "must be strictly positive, a 32-bit number",
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
    _require(seed is None or 0 <= seed <= MAX_SEED, "seed", "must be an unsigned 64-bit number", seed)
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


def _sampling_params(parameters: NativeParameters, max_new_tokens: int, num_sequences: int) -> SamplingParams:
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
        top_n_tokens=parameters.top_n_tokens or 0,
        prompt_logprobs=parameters.decoder_input_details,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
