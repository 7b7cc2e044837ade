"""What one request may be, whatever else is running: prompt, length, number of sequences. Knows numbers only."""

from __future__ import annotations

from dataclasses import dataclass

from serving.errors import InvalidRequest, NotFound
from serving.messages import AddRequest


@dataclass(slots=True, frozen=True)
class RequestLimits:
    vocab_size: int
    max_input_tokens: int
    max_total_tokens: int
    max_sequences: int

    def check(self, message: AddRequest) -> None:
        """Raises `InvalidRequest` or `NotFound` for what can never run."""
        params = message.params
        if message.adapter_id is not None:
            raise NotFound(
                f"adapter {message.adapter_id!r} is not loaded: this version serves the base model only"
            )
        params.validate(vocab_size=self.vocab_size)
        self._check_prompt(message)
        if params.n > self.max_sequences:
            raise InvalidRequest(
                f"`n` must be at most {self.max_sequences} (MAX_BEST_OF, MAX_N), got {params.n}", field="n"
            )

    def _check_prompt(self, message: AddRequest) -> None:
        num_prompt = len(message.prompt_token_ids)
        if num_prompt == 0:
            raise InvalidRequest("`inputs` must have at least 1 token", field="inputs")
        for token_id in (min(message.prompt_token_ids), max(message.prompt_token_ids)):
            if not 0 <= token_id < self.vocab_size:
                raise InvalidRequest(
                    f"`inputs` has token id {token_id}, must be in [0, {self.vocab_size})", field="inputs"
                )
        if num_prompt > self.max_input_tokens:
            raise InvalidRequest(
                f"`inputs` must have at most {self.max_input_tokens} tokens, got {num_prompt}", field="inputs"
            )
        num_new = message.params.max_new_tokens or 1
        if num_prompt + num_new > self.max_total_tokens:
            raise InvalidRequest(
                f"`inputs` tokens + `max_new_tokens` must be at most {self.max_total_tokens}, got {num_prompt} `inputs` "
                f"tokens and {num_new} `max_new_tokens`",
                field="max_new_tokens",
            )
