"""The one internal form of a generation request, made by every API's schema. Knows nothing of JSON."""

from __future__ import annotations

import msgspec

from serving.messages import AddRequest
from serving.sampling_params import SamplingParams, Watermark


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers requests are checked against, from the configuration and the running engine."""

    max_input_tokens: int
    max_total_tokens: int
    max_best_of: int
    max_n: int
    max_client_batch_size: int
    max_stop_sequences: int
    max_top_n_tokens: int
    vocab_size: int
    grammar_support: bool = True
    watermark: Watermark = Watermark()
    longest_token_bytes: int = 0
    """No token stands for more bytes than this; 0 when unknown."""


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A checked request for one prompt: nothing in it can be refused for its form any more.

    `params.max_new_tokens` is always set; `params.seed` is set whenever tokens are sampled.
    """

    inputs: str
    prompt_token_ids: list[int]
    params: SamplingParams
    return_full_text: bool
    details: bool = False
    prompt_logprobs: bool = False
    stream: bool = False
    needs_end: bool = False
    """True where nobody can use an answer that was cut: it has to match a grammar, or to be a tool call."""
    grammar_field: str = "grammar"
    """The field of the client's request that `params.grammar` was made from, for the engine's refusals."""

    @property
    def reported_seed(self) -> int | None:
        """The seed as answers show it: only when tokens are sampled."""
        return None if self.params.greedy else self.params.seed

    def to_engine(self, request_id: str, session_id: str = "") -> AddRequest:
        return AddRequest(
            request_id=request_id,
            prompt_token_ids=self.prompt_token_ids,
            params=self.params,
            session_id=session_id,
        )
