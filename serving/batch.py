"""The plain data between scheduler and workers. Knows neither tensors nor requests: a running sequence is a row number.

A row is a slot in the workers' persistent buffers (token ids, number of computed tokens, block tables, sampling
parameters). A plan carries deltas: rows that begin, tokens to compute per row, blocks to append, rows that end.
It never holds the id of a token that has not been sampled: workers write sampled ids into the row themselves.
"""

from __future__ import annotations

import msgspec

from serving.sampling_params import SamplingParams


class _Plan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    pass


class NewRow(_Plan):
    """A sequence that starts, or resumes after preemption, in `row`.

    `token_ids` are all ids known so far (prompt, and output when resuming); `num_prompt_tokens` of them are the prompt.
    `num_computed_tokens` of them already have KV entries in `block_tables` (one list of block ids per KV group).
    """

    row: int
    token_ids: list[int]
    num_prompt_tokens: int
    num_computed_tokens: int
    block_tables: list[list[int]]
    params: SamplingParams
    seed: int
    adapter_slot: int = 0


class ScheduledRow(_Plan):
    """Compute the next `num_tokens` tokens of `row`, after writing `new_blocks` into its tables.

    `new_blocks[group]` are appended to the group's table. `samples` is True when the last of these tokens is the last
    known one, so that the row's next token is sampled in this step.
    """

    row: int
    num_tokens: int
    samples: bool
    new_blocks: list[list[int]] = []


class BlockCopy(_Plan):
    """Copy one KV block inside a group before the forward pass (copy-on-write of a forked partial block)."""

    group: int
    source: int
    target: int


class ScheduledBatch(_Plan):
    """One step. Workers apply, in this order: `released_rows`, `new_rows`, `block_copies`, then the forward pass."""

    step: int
    rows: list[ScheduledRow]
    new_rows: list[NewRow] = []
    released_rows: list[int] = []
    block_copies: list[BlockCopy] = []

    @property
    def num_tokens(self) -> int:
        return sum(row.num_tokens for row in self.rows)


class SampledToken(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`logprob` is the log-probability in the distribution the token was drawn from (after penalties and warpers)."""

    row: int
    token_id: int
    logprob: float
    top_ids: list[int] = []
    top_logprobs: list[float] = []


class StepResult(msgspec.Struct, kw_only=True):
    """What rank 0 gives back. `prompt_logprobs[row]` holds the values for the prompt tokens computed in this step:
    entry i belongs to the prompt token *after* the i-th computed one, and so does entry i of `prompt_top_tokens[row]`, the
    likeliest ids and their log-probabilities. `failed_rows` have no sampled token: their grammar gave up, for the reason
    given. `forward_s` is the wall time of the step."""

    step: int
    sampled: list[SampledToken]
    prompt_logprobs: dict[int, list[float]] = {}
    prompt_top_tokens: dict[int, list[tuple[list[int], list[float]]]] = {}
    failed_rows: dict[int, str] = {}
    forward_s: float = 0.0
