"""How one request wants its tokens chosen, and the checks that keep impossible values out of the engine."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from serving.errors import InvalidRequest

MAX_SEED = 2**64 - 1


class Grammar(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the generated text has to match, from its first character to its last.

    `source` is a JSON schema (as JSON text), a regular expression (Rust's `regex` syntax, without look-around), or a
    grammar in llguidance's Lark dialect (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).
    """

    kind: Literal["json_schema", "regex", "lark"]
    source: str


class Watermark(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A soft green list (Kirchenbauer et al., arXiv 2301.10226): `delta` is added to the logits of the share `gamma` of
    the vocabulary that the previous token selects."""

    gamma: float = 0.5
    delta: float = 2.0


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Parameters of one generation. `temperature == 0` means greedy.

    Penalties: `repetition_penalty` is CTRL style over prompt and output (arXiv 1909.05858, section 4.1);
    `frequency_penalty` and `presence_penalty` are OpenAI's, over the output only;
    `relative_frequency_penalty` is TGI's: penalty x count / length over prompt and output.
    `stop` is looked for in the text by `serving.text`; the engine never reads it.

    `min_p` removes tokens less likely than this share of the likeliest one (arXiv 2407.01082). `logit_bias` holds
    (token id, bias) pairs, added before everything else. Before `min_new_tokens` no EOS and no stop token is chosen.
    `prompt_logprobs` with `top_n_tokens` also reports the likeliest tokens at each prompt position. With `raw_logprobs`
    log-probabilities are the model's own (OpenAI's meaning), otherwise those of the distribution drawn from (TGI's).
    """

    max_new_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    relative_frequency_penalty: float = 0.0
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_new_tokens: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    watermark: Watermark | None = None
    grammar: Grammar | None = None
    top_n_tokens: int = 0
    prompt_logprobs: bool = False
    raw_logprobs: bool = False

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalized(self) -> bool:
        """True when logits depend on the tokens seen so far."""
        return (
            self.repetition_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
            or self.relative_frequency_penalty != 0.0
        )

    def validate(self, *, vocab_size: int | None = None) -> None:
        """Check every field once more at the engine's door. Raises `InvalidRequest` naming the field and the value."""
        for name in ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty"):
            _require_finite(name, getattr(self, name))
        for name in ("frequency_penalty", "presence_penalty", "relative_frequency_penalty"):
            _require_finite(name, getattr(self, name))
            _require(-2.0 <= getattr(self, name) <= 2.0, name, getattr(self, name), "between -2.0 and 2.0")
        _require(self.temperature >= 0.0, "temperature", self.temperature, "0 (greedy) or above")
        _require(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "in (0, 1]")
        _require(0.0 <= self.min_p <= 1.0, "min_p", self.min_p, "in [0, 1]")
        _require(0.0 < self.typical_p <= 1.0, "typical_p", self.typical_p, "in (0, 1]")
        _require(0 <= self.top_k < 2**31, "top_k", self.top_k, "0 (off) or a positive 32-bit number")
        _require(self.repetition_penalty > 0.0, "repetition_penalty", self.repetition_penalty, "above 0")
        _require(self.n >= 1, "n", self.n, "at least 1")
        _require(self.top_n_tokens >= 0, "top_n_tokens", self.top_n_tokens, "0 or above")
        if self.max_new_tokens is not None:
            _require(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "at least 1")
        _require(self.min_new_tokens >= 0, "min_new_tokens", self.min_new_tokens, "0 or above")
        if self.watermark is not None:
            self._validate_watermark(self.watermark)
        for token_id, bias in self.logit_bias:
            _require(-100.0 <= bias <= 100.0, "logit_bias", {token_id: bias}, "between -100 and 100")
            _require(token_id >= 0, "logit_bias", token_id, "a token id")
        if self.seed is not None:
            _require(0 <= self.seed <= MAX_SEED, "seed", self.seed, "an unsigned 64-bit number")
        if vocab_size is not None:
            for token_id in self.stop_token_ids:
                _require(0 <= token_id < vocab_size, "stop_token_ids", token_id, f"in [0, {vocab_size})")
            for token_id, _ in self.logit_bias:
                _require(0 <= token_id < vocab_size, "logit_bias", token_id, f"in [0, {vocab_size})")

    def _validate_watermark(self, watermark: Watermark) -> None:
        _require_finite("watermark.delta", watermark.delta)
        _require(
            math.isfinite(watermark.gamma) and 0.0 < watermark.gamma < 1.0,
            "watermark.gamma",
            watermark.gamma,
            "between 0 and 1",
        )


def _require(condition: bool, field: str, value: object, allowed: str) -> None:
    if not condition:
        raise InvalidRequest(f"`{field}` is {value!r}, must be {allowed}", field=field)


def _require_finite(field: str, value: float) -> None:
    _require(math.isfinite(value), field, value, "a finite number")
