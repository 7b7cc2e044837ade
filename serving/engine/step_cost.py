"""What a step costs in time, by what it computes, learned from finished steps. Plain numbers: no clock, no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

from serving.engine.least_squares import LeastSquares
from serving.engine.request import Request

_DECODE_CAUTION = (1e-3, 1e-3, 1e-2)
"""Fixed cost, rows, keys."""
_PROMPT_CAUTION = (0.1, 1e-3, 3e-3, 0.1)
"""Fixed cost, tokens, pairs, keys. A first prompt says only that it took so long: that is put down to its tokens, until
others say more."""
_DECODE_MEMORY, _PROMPT_MEMORY = 0.9, 0.98
_SAMPLE_EVERY = 4
"""Steps of decodes alone resemble each other, so that not every one need be looked at."""
_MAX_STEPS_WITH_PROMPTS = 32
"""After so many, what decodes cost alone is known from hearsay."""


@dataclass(slots=True)
class StepLoad:
    """What a step computes. A chunk of n prompt tokens after a context of c makes n x (c + n / 2) pairs of query and key,
    and reads c + n keys."""

    num_decodes: int = 0
    decode_keys: int = 0
    num_prompt_tokens: int = 0
    num_prompt_pairs: float = 0.0
    prompt_keys: int = 0

    @classmethod
    def of(cls, counts: Mapping[Request, int]) -> StepLoad:
        """Of planned tokens, before the counters of their requests have advanced."""
        load = cls()
        for request, num_tokens in counts.items():
            if num_tokens == 1:
                load.num_decodes += 1
                load.decode_keys += request.num_computed_tokens
            else:
                load.add_chunk(request.num_computed_tokens, num_tokens)
        return load

    def add_chunk(self, context: int, num_tokens: int) -> None:
        self.num_prompt_tokens += num_tokens
        self.num_prompt_pairs += num_tokens * (context + num_tokens / 2)
        self.prompt_keys += context + num_tokens

    @property
    def decode_inputs(self) -> tuple[float, float, float]:
        return (1.0, self.num_decodes, self.decode_keys)

    @property
    def prompt_inputs(self) -> tuple[float, float, float, float]:
        return (1.0, self.num_prompt_tokens, self.num_prompt_pairs, self.prompt_keys)


class StepCost:
    """Seconds of a step: those of its decodes, and what its prompt tokens add.

    Both are linear in the load, with the least squared relative error over the last steps of their kind. The fixed part of
    prompts is there because a step with them is no longer one that was captured for decodes alone.
    """

    def __init__(self) -> None:
        self._decodes = LeastSquares(_DECODE_CAUTION, memory=_DECODE_MEMORY)
        self._prompts = LeastSquares(_PROMPT_CAUTION, memory=_PROMPT_MEMORY)
        self._last_prompts = StepLoad()
        self._last_num_decodes = 0
        self._num_passed = 0
        self._num_with_prompts = 0

    @property
    def wants_decodes_alone(self) -> bool:
        """Should prompts leave out a step? Decodes alone take another time than they did, and it is all that tells."""
        return self._num_with_prompts >= _MAX_STEPS_WITH_PROMPTS

    def wants(self, num_rows: int, num_tokens: int) -> bool:
        """Should the next step, of so many rows and tokens, be observed?"""
        if num_tokens > num_rows:
            self._num_with_prompts += 1
            return True
        self._num_with_prompts = 0
        self._num_passed += 1
        if num_rows == self._last_num_decodes and self._num_passed < _SAMPLE_EVERY:
            return False
        self._num_passed, self._last_num_decodes = 0, num_rows
        return True

    def observe(self, load: StepLoad, seconds: float) -> None:
        if seconds <= 0.0:
            return
        if load.num_prompt_tokens == 0:
            self._decodes.observe(load.decode_inputs, seconds, scale=seconds)
        elif load.num_decodes == 0 or self._decodes.num_samples:
            added_s = seconds - (self.decode_s(load) or 0.0)
            self._prompts.observe(load.prompt_inputs, added_s, scale=seconds)
            self._last_prompts = load

    def decode_s(self, load: StepLoad) -> float | None:
        """A step of its decodes alone, be there none; None while no step without prompts was seen."""
        return self._decodes.predict(load.decode_inputs) if self._decodes.num_samples else None

    @property
    def knows_prompts(self) -> bool:
        return self._prompts.num_samples > 0

    @property
    def seconds_per_token(self) -> float | None:
        """Of prompts, as in the last step that computed some; None while none were seen."""
        if not self.knows_prompts:
            return None
        return self._prompts.predict(self._last_prompts.prompt_inputs) / self._last_prompts.num_prompt_tokens

    def tokens_within(self, seconds: float, load: StepLoad, context: int) -> int:
        """How long a chunk after `context` may be for all prompt tokens of the step, those in `load` included, to add no
        more than `seconds`."""
        _, token_s, pair_s, key_s = self._prompts.coefficients
        left_s = seconds - self._prompts.predict(load.prompt_inputs) - key_s * context
        first_s = token_s + pair_s * context + key_s
        if left_s <= 0.0 or first_s <= 0.0:
            return 0
        # The root of pair_s / 2 x n² + first_s x n = left_s, in the form that does not divide by pair_s.
        return int(2.0 * left_s / (first_s + sqrt(first_s * first_s + 2.0 * pair_s * left_s)))
