"""Steps that no request asked for: what a warm-up runs. Knows inputs, not models."""

from __future__ import annotations

import torch

from serving.contracts import AttentionMetadata
from serving.sampling.sampler import SamplingRow
from serving.sampling_params import SamplingParams
from serving.worker.decode_inputs import PackedTokens

_EVERY_WAY = SamplingParams(
    temperature=0.9,
    top_k=50,
    top_p=0.9,
    min_p=0.01,
    typical_p=0.9,
    repetition_penalty=1.1,
    top_n_tokens=5,
    raw_logprobs=True,
)
"""Parameters that use all of the sampler."""


def largest_step(
    num_tokens: int, groups: list[str], *, block_size: int, device: torch.device
) -> PackedTokens:
    """`num_tokens` of one row, for a run without a cache."""
    return _packed(torch.zeros(num_tokens, dtype=torch.int64), [num_tokens], groups, block_size, device)


def cached_step(groups: list[str], *, block_size: int, device: torch.device) -> PackedTokens:
    """A row of one token and one of two, in the padding block."""
    return _packed(torch.tensor([0, 0, 1]), [1, 2], groups, block_size, device)


def rows_in_every_way(count: int) -> list[SamplingRow]:
    """For the host's sampler, numbered from 0."""
    return [SamplingRow(row, _EVERY_WAY, seed=0, token_ids=[0], num_prompt_tokens=1) for row in range(count)]


def _packed(
    positions: torch.Tensor, lens: list[int], groups: list[str], block_size: int, device: torch.device
) -> PackedTokens:
    """Rows that begin in this step."""
    starts = torch.tensor([0, *lens], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    positions = positions.to(device)
    metadata = AttentionMetadata(
        query_start=starts.to(device),
        seq_lens=torch.tensor(lens, dtype=torch.int32, device=device),
        block_tables=torch.zeros((len(lens), 1), dtype=torch.int32, device=device),
        slot_mapping=positions % block_size,
        query_lens_list=lens,
        seq_lens_list=lens,
        block_size=block_size,
    )
    return PackedTokens(torch.zeros_like(positions), positions, {name: metadata for name in groups})
