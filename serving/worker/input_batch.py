"""The persistent rows of a worker: what a plan's deltas add up to. Turns one plan into the packed inputs of a step.

Knows token ids, block tables and counters; neither the model nor how tokens are chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from serving.batch import NewRow, ScheduledBatch, ScheduledRow
from serving.contracts import AttentionMetadata
from serving.sampling.sampler import SamplingRow
from serving.sampling_params import SamplingParams

_FIRST_TABLE_WIDTH = 64


@dataclass(slots=True)
class Row:
    """One running sequence as a worker keeps it. `sampling` is the same row as the sampler sees it."""

    token_ids: list[int]
    num_prompt_tokens: int
    num_computed_tokens: int
    num_blocks: list[int]
    params: SamplingParams
    sampling: SamplingRow


@dataclass(slots=True, frozen=True)
class StepInputs:
    """Packed inputs. token_ids, positions [T] int64; `rows` in packing order; `last_tokens` [R] int64 are the packed
    indices of the last token of each sampling row, in the order of `sampling`."""

    token_ids: Tensor
    positions: Tensor
    attention: dict[str, AttentionMetadata]
    rows: list[ScheduledRow]
    sampling: list[int]
    last_tokens: Tensor


class InputBatch:
    def __init__(self, max_rows: int, groups: list[str], *, block_size: int, device: torch.device) -> None:
        self._groups = groups
        self._block_size = block_size
        self._device = device
        self._rows: dict[int, Row] = {}
        self._tables = [np.zeros((max_rows, _FIRST_TABLE_WIDTH), dtype=np.int32) for _ in groups]

    def __getitem__(self, row: int) -> Row:
        return self._rows[row]

    def apply(self, batch: ScheduledBatch) -> None:
        """Rows that end, rows that begin, blocks that are appended."""
        for row in batch.released_rows:
            del self._rows[row]
        for new in batch.new_rows:
            self._begin(new)
        for scheduled in batch.rows:
            for group, blocks in enumerate(scheduled.new_blocks):
                if blocks:
                    self._append_blocks(scheduled.row, group, blocks)

    def pack(self, batch: ScheduledBatch) -> StepInputs:
        """Inputs of the step, decodes first; advances the rows' counters."""
        rows = sorted(batch.rows, key=lambda scheduled: scheduled.num_tokens > 1)
        token_ids: list[int] = []
        positions: list[int] = []
        query_start = [0]
        sampling: list[int] = []
        last_tokens: list[int] = []
        for scheduled in rows:
            row = self._rows[scheduled.row]
            first, last = row.num_computed_tokens, row.num_computed_tokens + scheduled.num_tokens
            token_ids += row.token_ids[first:last]
            positions += range(first, last)
            query_start.append(len(token_ids))
            row.num_computed_tokens = last
            if scheduled.samples:
                sampling.append(scheduled.row)
                last_tokens.append(len(token_ids) - 1)
        return StepInputs(
            token_ids=self._to_device(token_ids),
            positions=self._to_device(positions),
            attention=self._attention(rows, query_start, positions),
            rows=rows,
            sampling=sampling,
            last_tokens=self._to_device(last_tokens),
        )

    def append(self, rows: list[int], token_ids: list[int]) -> None:
        """The ids that were sampled for these rows."""
        for row, token_id in zip(rows, token_ids, strict=True):
            self._rows[row].token_ids.append(token_id)

    def _begin(self, new: NewRow) -> None:
        token_ids = list(new.token_ids)
        self._rows[new.row] = Row(
            token_ids=token_ids,
            num_prompt_tokens=new.num_prompt_tokens,
            num_computed_tokens=new.num_computed_tokens,
            num_blocks=[0 for _ in self._groups],
            params=new.params,
            sampling=SamplingRow(
                row=new.row,
                params=new.params,
                seed=new.seed,
                token_ids=token_ids,
                num_prompt_tokens=new.num_prompt_tokens,
            ),
        )
        for group, blocks in enumerate(new.block_tables):
            self._append_blocks(new.row, group, blocks)

    def _append_blocks(self, row: int, group: int, blocks: list[int]) -> None:
        start = self._rows[row].num_blocks[group]
        end = start + len(blocks)
        width = self._tables[group].shape[1]
        if end > width:
            grown = max(end, 2 * width) - width
            self._tables[group] = np.pad(self._tables[group], ((0, 0), (0, grown)))
        self._tables[group][row, start:end] = blocks
        self._rows[row].num_blocks[group] = end

    def _attention(
        self, rows: list[ScheduledRow], query_start: list[int], positions: list[int]
    ) -> dict[str, AttentionMetadata]:
        indices = np.array([scheduled.row for scheduled in rows])
        query_lens = [scheduled.num_tokens for scheduled in rows]
        seq_lens = [self._rows[scheduled.row].num_computed_tokens for scheduled in rows]
        max_blocks = -(-max(seq_lens) // self._block_size)
        packed_rows = np.repeat(indices, query_lens)
        packed_positions = np.array(positions)
        query_start_tensor = torch.tensor(query_start, dtype=torch.int32).to(self._device)
        seq_lens_tensor = torch.tensor(seq_lens, dtype=torch.int32).to(self._device)
        metadata = {}
        for name, table in zip(self._groups, self._tables, strict=True):
            metadata[name] = AttentionMetadata(
                query_start=query_start_tensor,
                seq_lens=seq_lens_tensor,
                block_tables=torch.from_numpy(table[indices, :max_blocks]).to(self._device),
                slot_mapping=self._slots(table, packed_rows, packed_positions),
                query_lens_list=query_lens,
                seq_lens_list=seq_lens,
                block_size=self._block_size,
            )
        return metadata

    def _slots(
        self, table: npt.NDArray[np.int32], rows: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
    ) -> Tensor:
        blocks = table[rows, positions // self._block_size].astype(np.int64)
        return torch.from_numpy(blocks * self._block_size + positions % self._block_size).to(self._device)

    def _to_device(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self._device)
