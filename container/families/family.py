"""What a family of names consists of, and the conversions of values that several families share."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from container.fields import INTEGER, Parser, allowed_text, field_type, parse_as


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name of a setting. Without a `parser` its text is read as the field's type; a parser may return None
    for what the field's absence means."""

    name: str
    field: str
    parser: Parser | None = None
    allowed: str = ""
    """In words, what the parser takes; shown when it raises ValueError."""
    note: str = ""
    """How its meaning differs from the setting's own, for the reference."""
    yields_to: tuple[str, ...] = ()
    """Names whose value is taken instead, without a word, when both are set."""

    def parse(self, text: str) -> object:
        """The field's value. Raises ValueError whose text says what is allowed."""
        if self.parser is None:
            return parse_as(field_type(self.field), text)
        try:
            return self.parser(text)
        except ValueError as error:
            raise ValueError(self.allowed or allowed_text(field_type(self.field))) from error


@dataclass(frozen=True, slots=True)
class Refusal:
    """A name that ends the start, because to ignore it would change answers, access or what fits."""

    name: str
    reason: str
    harmless: frozenset[str] = frozenset()
    """Values, in lower case, that ask for nothing but what happens anyway."""


@dataclass(frozen=True, slots=True)
class NoEffect:
    """A name that is accepted; the log says that it "has no effect because `reason`"."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class IgnoredPrefix:
    """Names that nobody lists one by one; the log names those that are set in one line."""

    prefix: str
    reason: str


@dataclass(frozen=True, slots=True)
class Family:
    """The names that users of one image or toolkit already have in their deploy scripts."""

    title: str
    aliases: tuple[Alias, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    no_effects: tuple[NoEffect, ...] = ()
    ignored_prefixes: tuple[IgnoredPrefix, ...] = ()


def no_effects(reason: str, *names: str) -> tuple[NoEffect, ...]:
    return tuple(NoEffect(name, reason) for name in names)


def refusals(reason: str, *names: str, harmless: frozenset[str] = frozenset()) -> tuple[Refusal, ...]:
    return tuple(Refusal(name, reason, harmless) for name in names)


FALSE = frozenset({"0", "false", "f", "no", "n", "off"})
NONE = frozenset({"none", "null"})
DTYPES = "auto, float32 (fp32, float), bfloat16 (bf16) or float16 (fp16, half)"


def dtype(text: str) -> object:
    """Every family's spelling of a compute type."""
    short = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "float": "float32"}
    return parse_as(field_type("model.dtype"), short.get(text.lower(), text))


KV_CACHE_DTYPES = "auto or fp8_e4m3 (fp8, fp8_e4m3fn)"


def kv_cache_dtype(text: str) -> object:
    """Every family's spelling of the KV cache's type."""
    short = {"fp8": "fp8_e4m3", "fp8_e4m3fn": "fp8_e4m3"}
    return parse_as(field_type("cache.dtype"), short.get(text.lower(), text.lower()))


def negated(field: str) -> Parser:
    """For a name that says the opposite of its setting."""
    return lambda text: not parse_as(field_type(field), text)


def one_of(choices: Mapping[str, object]) -> Parser:
    """A parser that takes the keys of `choices`, in any case."""

    def parse(text: str) -> object:
        if text.lower() not in choices:
            raise ValueError(text)
        return choices[text.lower()]

    return parse


def names(text: str) -> tuple[str, ...]:
    """A JSON array of texts, or words between commas."""
    if not text.startswith("["):
        return tuple(word.strip() for word in text.split(",") if word.strip())
    try:
        return msgspec.json.decode(text, type=tuple[str, ...])
    except msgspec.DecodeError as error:
        raise ValueError(text) from error


def address(text: str) -> str:
    return str(ipaddress.ip_address(text))


PLATFORM_LIMIT_S = 60.0
_DEADLINE_S = 58.0
SECONDS = "seconds, at least 0 (0 = no limit)"


def request_limit_s(text: str) -> float:
    """A request timeout in seconds as our deadline for single answers. The platform gives up at 60 s, so a limit just
    below that becomes 58 s: the partial answer has to be on its way by then."""
    if not INTEGER.fullmatch(text) or int(text) < 0:
        raise ValueError(text)
    limit_s = float(text)
    return _DEADLINE_S if _DEADLINE_S < limit_s <= PLATFORM_LIMIT_S else limit_s


NO_QUANTIZATION = "no quantization scheme is built yet; unset it to serve in DTYPE"
NO_LORA = "LoRA adapters are not built yet, and the base model must not answer in their place"
NO_SPECULATION = "speculative decoding is not built yet; unset it, answers are the same without"
NO_PIPELINE = "only tensor parallelism is built; use TENSOR_PARALLEL_DEGREE, or more instances"
NO_CONFIG_OVERRIDE = (
    "the model's own configuration is used as it is; change config.json or generation_config.json"
)
