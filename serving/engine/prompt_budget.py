"""How many prompt tokens a step takes beside its decodes, and which prompts come first. Knows counters and learned costs,
neither blocks nor queues."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from serving.engine.request import Request
from serving.engine.step_cost import StepCost, StepLoad

_SLOWED_BY = 0.8
"""What prompts may add to a step of decodes, as a share of it, however few wait and however many decode."""
_SLOWED_BY_WAITING = 12.0
"""The same per waiting prompt and decode: a burst gets in quickly, or its first would long decode in small, dear steps."""
_MOST_BUDGETS = 4
"""Each of so many waiting prompts may claim the time of the longest step: what decodes lose once, all of them gain."""
_LEAST_ALONE, _LEAST_BESIDE_DECODES = 32, 4
"""Tokens of a chunk, at least: fewer take as long, as rows of a product are computed in tiles."""


class PromptBudget:
    """What is left of one step for prompts: tokens, and seconds as soon as steps have told what tokens cost."""

    def __init__(
        self, cost: StepCost, load: StepLoad, *, num_prompts: int, max_tokens: int, max_step_s: float
    ) -> None:
        """Of a step that computes `load` already, while `num_prompts` requests want prompt tokens. A step has at most
        `max_tokens`, but one for a prompt in any case, and should end within `max_step_s` per prompt, up to a few."""
        self._cost = cost
        self._load = load
        self._num_tokens = max(1, max_tokens - load.num_decodes) - load.num_prompt_tokens
        if load.num_decodes and cost.wants_decodes_alone:
            self._num_tokens = 0
        self._least = _LEAST_BESIDE_DECODES if load.num_decodes else _LEAST_ALONE
        decode_s = cost.decode_s(load)
        if load.num_decodes == 0:
            self._seconds = max_step_s - (decode_s or 0.0)
        elif decode_s is None:
            self._seconds = max_step_s / 2
        else:
            wanted_s = _SLOWED_BY_WAITING * decode_s * num_prompts / load.num_decodes
            longest_s = max_step_s * min(num_prompts, _MOST_BUDGETS)
            self._seconds = max(_SLOWED_BY * decode_s, min(wanted_s, longest_s - decode_s))

    def share(self, prompts: Iterable[Request]) -> dict[Request, int]:
        """Tokens for each until the step is full."""
        shares: dict[Request, int] = {}
        for request in prompts:
            num_tokens = self.fitting(request.num_computed_tokens, request.num_uncomputed_tokens)
            if not num_tokens:
                break
            self.spend(request.num_computed_tokens, num_tokens)
            shares[request] = num_tokens
        return shares

    def fitting(self, context: int, wanted: int) -> int:
        """Tokens for a prompt of which `context` are computed and `wanted` are not; 0 when the step is full.

        The first prompt of a step gets the least that is worth it in any case, so that decodes cannot starve it; but for
        the few steps that are left to decodes to see what they take.
        """
        fitting = min(wanted, self._num_tokens)
        if fitting <= 0:
            return 0
        if not self._cost.knows_prompts:
            return fitting
        affordable = self._cost.tokens_within(self._seconds, self._load, context)
        least = min(fitting, self._least)
        if affordable < least:
            return 0 if self._load.num_prompt_tokens else least
        return min(fitting, affordable)

    def spend(self, context: int, num_tokens: int) -> None:
        """A prompt got them."""
        self._load.add_chunk(context, num_tokens)
        self._num_tokens -= num_tokens


def in_order(prompts: Sequence[Request], step: int) -> list[Request]:
    """Whole prompts one after the other, not all of them bit by bit: half of them are done in half of the time, and few
    chunks read their context again. `prompts` are in order of arrival.

    Every other step begins with who has least left, so that a very long prompt does not keep short ones waiting; the steps
    between with the oldest, so that it does not wait for ever itself.
    """
    if step % 2:
        return sorted(prompts, key=lambda request: request.num_uncomputed_tokens)
    return list(prompts)
