"""The persistent rows of a worker: what a plan's deltas add up to. Turns one plan into the packed inputs of a step.

Knows token ids, block tables and counters; neither the model nor how tokens are chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from serving.batch import NewRow, ScheduledBatch, ScheduledRow
from serving.contracts import AttentionMetadata
from serving.kernels.cpu.native.packing import DecodePacker
from serving.platform import Device
from serving.sampling.sampler import SamplingRow
from serving.sampling_params import SamplingParams
from serving.worker.decode_inputs import DecodeInputs, Int32s, Int64s, PackedTokens

UNKNOWN_TOKEN = -1
"""Stands in a row's `token_ids` for a token that was sampled and that the host has not read yet."""


@dataclass(slots=True, eq=False)
class Row:
    """One running sequence as a worker keeps it. `sampling` is the same row as the sampler sees it."""

    token_ids: list[int]
    num_prompt_tokens: int
    num_blocks: list[int]
    params: SamplingParams
    sampling: SamplingRow
    reads_tokens: bool
    """Its next token depends on the ids before it by more than the model: the host must know them to choose."""


@dataclass(slots=True, frozen=True)
class StepInputs:
    """What a step computes: `rows` in packing order; the row numbers of those that sample, in the same order.

    `packed` None: every row computes and samples one token, and the inputs are the first places of `InputBatch.decode`.
    Otherwise `last_tokens` [R] int64 are the packed indices of the last token of each sampling row, and `sampling_index` [R]
    int64 is `sampling` on the device.
    """

    rows: list[ScheduledRow]
    sampling: list[int]
    packed: PackedTokens | None = None
    last_tokens: Tensor | None = None
    sampling_index: Tensor | None = None


class InputBatch:
    def __init__(
        self,
        max_rows: int,
        groups: list[str],
        *,
        block_size: int,
        max_blocks: int,
        device: Device,
        packer: DecodePacker | None = None,
    ) -> None:
        """`packer`, for a host's own memory, does what `_pack_decodes` does otherwise."""
        self.decode = DecodeInputs(
            max_rows, groups, block_size=block_size, max_blocks=max_blocks, device=device
        )
        self._groups = groups
        self._block_size = block_size
        self._device = device
        self._rows: dict[int, Row] = {}
        self._num_computed = np.zeros(max_rows, dtype=np.int64)
        self._last_ids = np.zeros(max_rows, dtype=np.int64)
        self._tables = [np.zeros((max_rows, max_blocks), dtype=np.int32) for _ in groups]
        self._placed: list[int] = []
        self._place_of: dict[int, int] = {}
        self._index = np.zeros(0, dtype=np.int64)
        self._packer = packer
        self._pack_placed: Callable[[], None] | None = None

    def __getitem__(self, row: int) -> Row:
        return self._rows[row]

    def num_computed_tokens(self, row: int) -> int:
        """After the steps packed so far."""
        return int(self._num_computed[row])

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
        """Inputs of the step; advances the rows' counters."""
        for scheduled in batch.rows:
            if scheduled.num_tokens != 1 or not scheduled.samples:
                return self._pack_mixed(batch)
        rows = [scheduled.row for scheduled in batch.rows]
        self._pack_decodes(rows)
        return StepInputs(batch.rows, rows)

    def decode_tokens(self, num_rows: int) -> PackedTokens:
        """The packed inputs of a step whose `packed` is None, for a run that is not captured."""
        return self.decode.packed(num_rows, seq_lens=self.decode.places(num_rows).seq_lens.tolist())

    def append(self, rows: list[int], token_ids: list[int]) -> None:
        """The ids that were sampled for these rows; `UNKNOWN_TOKEN` when only the device knows them."""
        self._last_ids[rows] = token_ids
        for row, token_id in zip(rows, token_ids, strict=True):
            self._rows[row].token_ids.append(token_id)

    def learn(self, number: int, row: Row, end: int, token_id: int) -> bool:
        """The id behind the `UNKNOWN_TOKEN` that made `row`, of that number, `end` tokens long. False when another row has
        the number by now."""
        row.token_ids[end - 1] = token_id
        alive = self._rows.get(number) is row
        if alive and end == len(row.token_ids):
            self._last_ids[number] = token_id
        return alive

    def reads_tokens(self, batch: ScheduledBatch) -> bool:
        """Does any row that samples in this step need to know the ids before it on the host?"""
        known = self._rows
        return any(
            scheduled.samples and scheduled.row in known and known[scheduled.row].reads_tokens
            for scheduled in batch.rows
        )

    def _pack_decodes(self, rows: list[int]) -> None:
        """A few array operations, whatever the number of rows."""
        if rows != self._placed:
            self._place(rows)
        index, places = self._index, self.decode.places(len(rows))
        if self._pack_placed is not None:
            self._pack_placed()
            return
        self._num_computed.take(index, out=places.positions)
        self._last_ids.take(index, out=places.token_ids)
        places.rows[:] = index
        if not self._device.is_host:
            np.copyto(places.sources, np.where(places.token_ids == UNKNOWN_TOKEN, index, -1))
        np.add(places.positions, 1, out=places.seq_lens, casting="unsafe")
        blocks, offsets = np.divmod(places.positions, self._block_size)
        for table, slots in zip(self._tables, places.slots, strict=True):
            np.multiply(table[index, blocks], self._block_size, out=slots, dtype=np.int64)
            slots += offsets
        self._num_computed[index] = places.seq_lens

    def _place(self, rows: list[int]) -> None:
        """Other rows than in the last step of decodes, or in another order: their tables move to their places."""
        self._placed = rows
        self._place_of = {row: place for place, row in enumerate(rows)}
        self._index = np.array(rows, dtype=np.int64)
        for group, table in enumerate(self._tables):
            used = max(self._rows[row].num_blocks[group] for row in rows)
            self.decode.replace_tables(group, table[self._index, :used])
        if self._packer is not None:
            places = self.decode.places(len(rows))
            self._pack_placed = self._packer.bind(
                self._index,
                num_computed=self._num_computed,
                last_ids=self._last_ids,
                tables=self._tables,
                block_size=self._block_size,
                token_ids=places.token_ids,
                positions=places.positions,
                row_numbers=places.rows,
                slots=places.slots,
                seq_lens=places.seq_lens,
            )

    def _pack_mixed(self, batch: ScheduledBatch) -> StepInputs:
        """Any numbers of tokens, decodes first."""
        rows = sorted(batch.rows, key=lambda scheduled: scheduled.num_tokens > 1)
        token_ids: list[int] = []
        positions: list[int] = []
        query_start = [0]
        sampling: list[int] = []
        last_tokens: list[int] = []
        for scheduled in rows:
            row, first = self._rows[scheduled.row], self.num_computed_tokens(scheduled.row)
            last = first + scheduled.num_tokens
            token_ids += row.token_ids[first:last]
            positions += range(first, last)
            query_start.append(len(token_ids))
            self._num_computed[scheduled.row] = last
            if scheduled.samples:
                sampling.append(scheduled.row)
                last_tokens.append(len(token_ids) - 1)
        arrays = [
            np.array(values, dtype=np.int64) for values in (sampling, last_tokens, token_ids, positions)
        ]
        return self._stage(rows, sampling, arrays, np.array(query_start, dtype=np.int32))

    def _stage(
        self, rows: list[ScheduledRow], sampling: list[int], longs: list[Int64s], query_start: Int32s
    ) -> StepInputs:
        """`longs` are sampling rows, last tokens, token ids and positions."""
        ids, packed_positions = longs[2:]
        index = np.array([scheduled.row for scheduled in rows])
        query_lens = [scheduled.num_tokens for scheduled in rows]
        seq_lens = self._num_computed[index]
        max_blocks = -(-int(seq_lens.max()) // self._block_size)
        packed_rows = np.repeat(index, query_lens)
        unknown = ids == UNKNOWN_TOKEN
        arrays: list[npt.NDArray[np.generic]] = [
            *longs,
            np.where(unknown, packed_rows, -1),
            query_start,
            seq_lens.astype(np.int32),
        ]
        for table in self._tables:
            blocks = table[packed_rows, packed_positions // self._block_size].astype(np.int64)
            arrays.append(blocks * self._block_size + packed_positions % self._block_size)
            arrays.append(table[index, :max_blocks])
        staged = self._device.stage(arrays)
        sampling_index, last_tokens, token_ids, positions, sources, starts, lens = staged[:7]
        lens_list = seq_lens.tolist()
        attention = {
            name: AttentionMetadata(
                query_start=starts,
                seq_lens=lens,
                block_tables=staged[2 * group + 8],
                slot_mapping=staged[2 * group + 7],
                query_lens_list=query_lens,
                seq_lens_list=lens_list,
                block_size=self._block_size,
            )
            for group, name in enumerate(self._groups)
        }
        packed = PackedTokens(token_ids, positions, attention, sources if unknown.any() else None)
        return StepInputs(rows, sampling, packed, last_tokens, sampling_index)

    def _begin(self, new: NewRow) -> None:
        token_ids = list(new.token_ids)
        self._rows[new.row] = Row(
            token_ids=token_ids,
            num_prompt_tokens=new.num_prompt_tokens,
            num_blocks=[0 for _ in self._groups],
            params=new.params,
            sampling=SamplingRow(
                row=new.row,
                params=new.params,
                seed=new.seed,
                token_ids=token_ids,
                num_prompt_tokens=new.num_prompt_tokens,
            ),
            reads_tokens=_reads_tokens(new.params),
        )
        self._num_computed[new.row] = new.num_computed_tokens
        self._last_ids[new.row] = token_ids[-1]
        if new.row in self._place_of:
            self._placed, self._place_of = [], {}
        for group, blocks in enumerate(new.block_tables):
            self._append_blocks(new.row, group, blocks)

    def _append_blocks(self, row: int, group: int, blocks: list[int]) -> None:
        num_blocks = self._rows[row].num_blocks
        start = num_blocks[group]
        num_blocks[group] = end = start + len(blocks)
        self._tables[group][row, start:end] = blocks
        place = self._place_of.get(row)
        if place is not None:
            self.decode.extend_table(group, place, start, blocks)


def _reads_tokens(params: SamplingParams) -> bool:
    return params.penalized or params.watermark is not None or params.grammar is not None
