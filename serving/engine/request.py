"""Engine state of one sequence, and how it ends. Token ids and counters only; knows neither text nor tensors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

from serving.errors import WireError
from serving.messages import SequenceOutput, TopToken
from serving.sampling_params import SamplingParams

if TYPE_CHECKING:
    from serving.grammar.compiler import CompiledGrammar


class RequestStatus(IntEnum):
    """Ordered: everything from `LENGTH` on is finished."""

    WAITING_FOR_FORK = 0
    WAITING = 1
    RUNNING = 2
    LENGTH = 3
    EOS_TOKEN = 4
    STOP_TOKEN = 5
    ABORT = 6
    ERROR = 7

    @property
    def finished(self) -> bool:
        return self >= RequestStatus.LENGTH


FINISH_REASONS = {
    RequestStatus.LENGTH: "length",
    RequestStatus.EOS_TOKEN: "eos_token",
    RequestStatus.STOP_TOKEN: "stop_token",
    RequestStatus.ABORT: "abort",
    RequestStatus.ERROR: "error",
}


def child_seed(seed: int, index: int) -> int:
    """Seed of sequence `index` of a group: the request's own for the first, a hash of both for the others."""
    if index == 0:
        return seed
    digest = hashlib.sha256(seed.to_bytes(8, "little") + index.to_bytes(4, "little")).digest()
    return int.from_bytes(digest[:8], "little")


@dataclass(slots=True, eq=False)
class Request:
    """One sequence. `token_ids` holds prompt and output; `num_computed_tokens` of them have, or are being given, KV entries.
    `num_pending_tokens` more are being sampled by steps whose results have not arrived.

    `block_tables[group]` are the blocks it holds a reference on (0 where a window has moved past). `block_hashes` is the
    hash chain of its full blocks, extended as they fill. `fork_blocks[group]` is a partial block of the parent, held until
    it has been copied. While it waits, `awaited_hash` is that of the last block which a running request computes for both.
    """

    request_id: str
    index: int
    params: SamplingParams
    seed: int
    token_ids: list[int]
    num_prompt_tokens: int
    max_output_tokens: int
    eos_token_ids: frozenset[int]
    cache_root: bytes
    arrival_s: float
    adapter_slot: int = 0
    session_id: str = ""
    status: RequestStatus = RequestStatus.WAITING
    row: int = -1
    num_computed_tokens: int = 0
    num_pending_tokens: int = 0
    num_cached_tokens: int = 0
    num_published_blocks: int = 0
    block_tables: list[list[int]] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    fork_blocks: list[int] = field(default_factory=list)
    awaited_hash: bytes = b""
    children: list[Request] = field(default_factory=list)
    prompt_logprobs: list[float | None] = field(default_factory=list)
    prompt_top_tokens: list[list[TopToken]] = field(default_factory=list)
    prompt_logprobs_sent: bool = False
    first_scheduled_s: float | None = None
    compiled_grammar: CompiledGrammar | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """What a step may compute next. A pending token is among it, unless it is the last that the limits allow."""
        num_known, num_pending = len(self.token_ids), self.num_pending_tokens
        if num_pending and num_known - self.num_prompt_tokens + num_pending >= self.max_output_tokens:
            return num_known - self.num_computed_tokens
        return num_known + num_pending - self.num_computed_tokens

    def append(self, token_id: int) -> None:
        """Add a sampled token and decide whether it ends the sequence: the length limit wins over a stop (tgi 4.1).

        Under a grammar EOS always ends it: `ignore_eos` has kept it away wherever the grammar permits anything else.
        """
        self.token_ids.append(token_id)
        count = self.num_output_tokens
        if count >= self.max_output_tokens:
            self.status = RequestStatus.LENGTH
        elif token_id in self.eos_token_ids and not (self.params.ignore_eos and self.params.grammar is None):
            self.status = RequestStatus.EOS_TOKEN
        elif token_id in self.params.stop_token_ids:
            self.status = RequestStatus.STOP_TOKEN

    def output(
        self,
        *,
        token_ids: list[int],
        logprobs: list[float],
        top_tokens: list[list[TopToken]] | None,
        now_s: float,
        error: WireError | None = None,
    ) -> SequenceOutput:
        """What to tell the client about these new tokens; terminal when the sequence is finished."""
        finished = self.status.finished
        first = self.num_output_tokens == len(token_ids)
        prompt_logprobs, prompt_top_tokens = None, None
        if self.params.prompt_logprobs and not self.prompt_logprobs_sent:
            self.prompt_logprobs_sent = True
            prompt_logprobs = [None, *self.prompt_logprobs]
            if self.params.top_n_tokens:
                prompt_top_tokens = [[], *self.prompt_top_tokens]
        started_s = self.first_scheduled_s if self.first_scheduled_s is not None else now_s
        return SequenceOutput(
            request_id=self.request_id,
            index=self.index,
            token_ids=token_ids,
            logprobs=logprobs,
            top_tokens=top_tokens,
            finish_reason=FINISH_REASONS[self.status] if finished else None,
            num_cached_tokens=self.num_cached_tokens,
            error=error,
            prompt_logprobs=prompt_logprobs,
            prompt_top_tokens=prompt_top_tokens,
            seed=None if self.params.greedy else self.seed,
            queue_s=started_s - self.arrival_s if finished or first else 0.0,
            inference_s=now_s - started_s if finished else 0.0,
        )
