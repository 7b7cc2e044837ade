"""What the OpenAI routes have in common in their requests: sampling, limits, streaming. Checks every number with the field,
the value and the limit before anything is built. Knows nothing of HTTP.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import msgspec
from msgspec import Meta

from serving.api.schema.generate import Limits
from serving.errors import ContextTooLong, InvalidRequest
from serving.sampling_params import MAX_SEED, Grammar, SamplingParams

MAX_STOP_CHARS = 1024
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIAS = 1024
MAX_METADATA = 16

_MAX_FLOAT32 = 3.4028234663852886e38
_MAX_I32 = 2**31 - 1
_MAX_U32 = 2**32 - 1
_MIN_SEED = -(2**63)
_SMALLEST_DIVISOR = 1e-6
"""Scores are divided by temperature and repetition penalty in float32; below this the result no longer changes."""
_SMALLEST_TOP_P = 1e-6
"""`top_p` 0 means the likeliest token alone."""
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(slots=True, frozen=True)
class Range:
    low: float
    high: float
    above_low: bool = False

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high and not (self.above_low and value == self.low)

    def __str__(self) -> str:
        return f"{'above' if self.above_low else 'from'} {_plain(self.low)} to {_plain(self.high)}"

    @property
    def json_schema(self) -> dict[str, float]:
        return {"exclusiveMinimum" if self.above_low else "minimum": self.low, "maximum": self.high}


RANGES = {
    "temperature": Range(0, 2),
    "top_p": Range(0, 1),
    "top_k": Range(-1, _MAX_I32),
    "min_p": Range(0, 1),
    "repetition_penalty": Range(0, _MAX_FLOAT32, above_low=True),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    "seed": Range(_MIN_SEED, MAX_SEED),
    "min_tokens": Range(0, _MAX_U32),
    "max_tokens": Range(0, _MAX_U32),
    "max_completion_tokens": Range(0, _MAX_U32),
    "top_logprobs": Range(0, 20),
}


def doc(description: str, *, range_of: str | None = None) -> Meta:
    """Description for the API's own documentation, with the range that `check_sampling` holds the field to."""
    limits = None if range_of is None else RANGES[range_of].json_schema
    return Meta(description=description, extra_json_schema=limits)


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    include_usage: Annotated[bool | None, doc("send one more chunk with the usage of the whole request")] = (
        None
    )
    continuous_usage_stats: Annotated[
        bool | None, doc("with `include_usage`: say the usage so far in every chunk")
    ] = None
    include_obfuscation: Annotated[bool | None, doc("accepted without effect: nothing is padded")] = None


class SamplingFields(msgspec.Struct, kw_only=True):
    """Request fields of both routes. A field that is null counts as absent."""

    model: Annotated[str | None, doc("name of the model; absent, empty or `tgi`: the served one")] = None
    n: Annotated[int | None, doc("answers per prompt; at most MAX_N")] = None
    temperature: Annotated[
        float | None, doc("0 takes the likeliest token; absent: 1", range_of="temperature")
    ] = None
    top_p: Annotated[float | None, doc("share of the likeliest tokens to choose from", range_of="top_p")] = (
        None
    )
    top_k: Annotated[
        int | None, doc("number of the likeliest tokens to choose from; -1 or 0: all", range_of="top_k")
    ] = None
    min_p: Annotated[
        float | None, doc("drop tokens less likely than this share of the likeliest", range_of="min_p")
    ] = None
    presence_penalty: Annotated[
        float | None,
        doc("taken from the logits of tokens that occurred in the output", range_of="presence_penalty"),
    ] = None
    frequency_penalty: Annotated[
        float | None,
        doc("taken from a token's logit for each time it occurred", range_of="frequency_penalty"),
    ] = None
    repetition_penalty: Annotated[
        float | None, doc("divides the logits of tokens in prompt and output", range_of="repetition_penalty")
    ] = None
    logit_bias: Annotated[
        dict[str, float] | None, doc("token id (decimal) to a number from -100 to 100 added to its logit")
    ] = None
    seed: Annotated[int | None, doc("makes sampling repeatable; absent: random", range_of="seed")] = None
    stop: Annotated[str | list[str] | None, doc("strings that end the text and are not part of it")] = None
    stop_token_ids: Annotated[list[int] | None, doc("token ids that end the text")] = None
    ignore_eos: Annotated[bool | None, doc("go on when the model says that it is done")] = None
    min_tokens: Annotated[
        int | None,
        doc(
            "no end before so many tokens, be it by EOS, a stop token or a stop string", range_of="min_tokens"
        ),
    ] = None
    max_tokens: Annotated[int | None, doc("longest answer, in tokens", range_of="max_tokens")] = None
    stream: Annotated[bool | None, doc("send the answer in pieces as it is made")] = None
    stream_options: Annotated[StreamOptions | None, doc("only with `stream`")] = None
    user: Annotated[str | None, doc("accepted without effect")] = None
    metadata: Annotated[dict[str, Any] | None, doc("accepted without effect; at most 16 entries")] = None
    service_tier: Annotated[str | None, doc("accepted without effect")] = None
    store: Annotated[bool | None, doc("nothing is stored: only false is accepted")] = None
    guided_json: Annotated[dict[str, Any] | str | None, doc("the answer is JSON that this schema allows")] = (
        None
    )
    guided_regex: Annotated[str | None, doc("the answer matches this regular expression")] = None
    guided_choice: Annotated[list[str] | None, doc("the answer is one of these")] = None
    guided_grammar: Annotated[
        str | None, doc("the answer matches this grammar, in llguidance's Lark dialect")
    ] = None

    @property
    def streams(self) -> bool:
        return bool(self.stream)

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def counts_in_every_chunk(self) -> bool:
        return (
            self.includes_usage
            and self.stream_options is not None
            and bool(self.stream_options.continuous_usage_stats)
        )


def refuse(field: str, value: object, rule: str) -> NoReturn:
    """Raise for a value; long ones are shown by their beginning."""
    shown = repr(value)
    raise InvalidRequest(
        f"`{field}` is {shown if len(shown) <= 64 else shown[:61] + '...'}, {rule}", field=field
    )


def check_sampling(fields: SamplingFields, limits: Limits) -> None:
    """Every number and length, before anything is built from them. Raises `InvalidRequest`."""
    for name, allowed in RANGES.items():
        value = getattr(fields, name, None)
        if value is not None and not allowed.holds(value):
            refuse(name, value, f"must be {allowed}")
    if fields.n is not None and not 1 <= fields.n <= limits.max_n:
        refuse("n", fields.n, f"must be from 1 to {limits.max_n}")
    _check_stops(fields, limits)
    _check_token_ids(fields, limits)
    if fields.stream_options is not None and not fields.stream:
        raise InvalidRequest("`stream_options` is only allowed with `stream: true`", field="stream_options")
    if fields.store:
        refuse("store", True, "only false is accepted: nothing is stored here")
    if fields.metadata is not None and len(fields.metadata) > MAX_METADATA:
        refuse("metadata", f"{len(fields.metadata)} entries", f"must have at most {MAX_METADATA}")


def stops_of(fields: SamplingFields) -> tuple[str, ...]:
    if fields.stop is None:
        return ()
    return (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop)


def max_new_tokens(
    wanted: int | None, *, field: str, num_prompt_tokens: int, limits: Limits, default: int | None
) -> int:
    """Tokens that may be generated. `default` is for requests that say nothing; None: the rest of the context.

    Raises `ContextTooLong` when prompt and answer do not fit.
    """
    rest = limits.max_total_tokens - num_prompt_tokens
    if num_prompt_tokens > limits.max_input_tokens or rest < 1:
        raise ContextTooLong(
            f"This model's maximum context length is {limits.max_total_tokens} tokens, of which the prompt may have "
            f"{limits.max_input_tokens}. However, your prompt has {num_prompt_tokens} tokens",
            field="messages" if default is None else "prompt",
        )
    if wanted is None:
        return rest if default is None else min(default, rest)
    if wanted > rest:
        raise ContextTooLong(
            f"This model's maximum context length is {limits.max_total_tokens} tokens. However, you requested "
            f"{num_prompt_tokens + wanted} tokens ({num_prompt_tokens} in the prompt, {wanted} as `{field}`)",
            field=field,
        )
    return wanted


def sampling_params(
    fields: SamplingFields,
    *,
    new_tokens: int,
    grammar: Grammar | None,
    top_n_tokens: int,
    prompt_logprobs: bool = False,
) -> SamplingParams:
    """OpenAI's meaning of checked fields. `new_tokens` is the longest answer."""
    min_new_tokens = fields.min_tokens or 0
    if min_new_tokens > new_tokens:
        refuse("min_tokens", min_new_tokens, f"must be at most the longest answer, {new_tokens} tokens")
    temperature = 1.0 if fields.temperature is None else float(fields.temperature)
    seed = fields.seed
    return SamplingParams(
        max_new_tokens=new_tokens,
        temperature=max(_SMALLEST_DIVISOR, temperature) if temperature else 0.0,
        top_k=max(0, fields.top_k or 0),
        top_p=1.0 if fields.top_p is None else max(_SMALLEST_TOP_P, fields.top_p),
        min_p=fields.min_p or 0.0,
        repetition_penalty=max(_SMALLEST_DIVISOR, fields.repetition_penalty or 1.0),
        frequency_penalty=fields.frequency_penalty or 0.0,
        presence_penalty=fields.presence_penalty or 0.0,
        seed=secrets.randbits(64) if seed is None else seed % (MAX_SEED + 1),
        n=fields.n or 1,
        stop=stops_of(fields),
        stop_token_ids=tuple(fields.stop_token_ids or ()),
        ignore_eos=bool(fields.ignore_eos),
        min_new_tokens=min_new_tokens,
        logit_bias=tuple((int(token), bias) for token, bias in (fields.logit_bias or {}).items()),
        grammar=grammar,
        top_n_tokens=top_n_tokens,
        prompt_logprobs=prompt_logprobs,
        raw_logprobs=True,
    )


def _check_stops(fields: SamplingFields, limits: Limits) -> None:
    stops = stops_of(fields)
    if len(stops) > limits.max_stop_sequences:
        refuse("stop", f"a list of {len(stops)}", f"must have at most {limits.max_stop_sequences} strings")
    for index, stop in enumerate(stops):
        if not 0 < len(stop) <= MAX_STOP_CHARS:
            name = "stop" if isinstance(fields.stop, str) else f"stop[{index}]"
            refuse(name, stop, f"must have 1 to {MAX_STOP_CHARS} characters. Given: {len(stop)}")


def _check_token_ids(fields: SamplingFields, limits: Limits) -> None:
    stop_ids, biases = fields.stop_token_ids or [], fields.logit_bias or {}
    if len(stop_ids) > MAX_STOP_TOKEN_IDS:
        refuse("stop_token_ids", f"a list of {len(stop_ids)}", f"must have at most {MAX_STOP_TOKEN_IDS}")
    if len(biases) > MAX_LOGIT_BIAS:
        refuse("logit_bias", f"an object of {len(biases)}", f"must have at most {MAX_LOGIT_BIAS} entries")
    for index, token_id in enumerate(stop_ids):
        check_token_id(f"stop_token_ids[{index}]", token_id, limits)
    for name, bias in biases.items():
        if not _TOKEN_ID.fullmatch(name):
            refuse("logit_bias", name, "must have decimal token ids as names")
        check_token_id("logit_bias", int(name), limits)
        if not -100 <= bias <= 100:
            refuse(f"logit_bias.{name}", bias, "must be from -100 to 100")


def check_token_id(field: str, token_id: int, limits: Limits) -> None:
    if not 0 <= token_id < limits.vocab_size:
        refuse(field, token_id, f"must be a token id from 0 to {limits.vocab_size - 1}")


def _plain(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)
