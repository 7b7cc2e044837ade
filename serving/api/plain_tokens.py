"""The short way of a token to its client: what a call makes of tokens that bring nothing but themselves, without a turn of
the call's greenlet. Knows one sequence and its events, nothing of engines and sockets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from serving.api.outlet import Outlet
from serving.api.roles import TokenText
from serving.messages import SequenceOutput

if TYPE_CHECKING:
    from serving.api.generation import PromptState, SequenceState, Timings


class PlainEvents(Protocol):
    """What a call makes of tokens that bring nothing but themselves: no end, no likeliest tokens, no special token."""

    def expects(self) -> bool:
        """Whether the next token may come that way."""
        ...

    def event(self, token_id: int, text: str, logprob: float) -> bytes:
        """Take a token; returns what a stream sends for it. Must not raise."""
        ...


class Unseen:
    """The `PlainEvents` of an answer that is made of the sequence's text at its end."""

    def expects(self) -> bool:
        return True

    def event(self, token_id: int, text: str, logprob: float) -> bytes:
        return b""


@dataclass(slots=True)
class PlainTokens:
    """Takes the plain tokens of a call's only sequence while its greenlet waits (a `TokenSink`)."""

    prompt: PromptState
    sequence: SequenceState
    timings: Timings
    events: PlainEvents
    keep_tokens: bool
    outlet: Outlet | None
    """None for an answer that is not streamed."""

    def ready(self) -> bool:
        return self.events.expects() and (self.outlet is None or self.outlet.ready())

    def take(self, output: SequenceOutput, now_s: float) -> bool:
        sequence = self.sequence
        if (
            len(output.token_ids) != 1
            or output.finish_reason is not None
            or output.queue_s != 0.0
            or output.top_tokens is not None
            or output.prompt_logprobs is not None
            or output.num_cached_tokens > self.prompt.num_cached_tokens
            or output.seed != sequence.seed
            or output.error is not None
        ):
            return False
        token_id, logprob = output.token_ids[0], output.logprobs[0]
        text = sequence.text.push_one(token_id)
        if text is None:
            return False
        self.timings.note_token(sequence, now_s)
        sequence.logprob_sum += logprob
        if self.keep_tokens:
            sequence.tokens.append(TokenText(token_id, text, logprob, False))
        event = self.events.event(token_id, text, logprob)
        if event and self.outlet is not None:
            self.outlet.add(event)
        return True

    def flush(self) -> bool:
        return self.outlet is None or self.outlet.flush()
