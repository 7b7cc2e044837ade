"""Inputs of a step in which every row computes one token, at addresses that never change, so that such a step can be
captured once and replayed. Knows numbers and memory, neither requests nor plans.

A step occupies the first places. What lies behind them is padding, so that a captured step may be larger than the batch: a
padded place computes token 0 at position 0, writes it to the padding block, and reads that one key.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from serving.contracts import AttentionMetadata
from serving.platform import Device

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@dataclass(slots=True, frozen=True)
class PackedTokens:
    """What the model is run on: token_ids, positions [T] int64, and where the queries and keys of each KV group are.

    `sources` [T] int64 names the row whose last sampled token stands here, where only the device knows it, else it is -1;
    None: all of `token_ids` are known.
    """

    token_ids: Tensor
    positions: Tensor
    attention: dict[str, AttentionMetadata]
    sources: Tensor | None = None

    def take_sampled(self, last_ids: Tensor) -> None:
        """Put in what only the device knows: last_ids [rows], the last sampled token of each row."""
        if self.sources is not None:
            sampled = last_ids.index_select(0, self.sources.clamp(min=0))
            self.token_ids.copy_(torch.where(self.sources < 0, self.token_ids, sampled))


@dataclass(slots=True, frozen=True)
class Places:
    """The first places, to write to; `rows` are row numbers, `slots` has one array per KV group, `sources` is that of
    `PackedTokens`."""

    token_ids: Int64s
    positions: Int64s
    rows: Int64s
    sources: Int64s
    slots: list[Int64s]
    seq_lens: Int32s


class DecodeInputs:
    """On a device with memory of its own, `upload` brings what was written to the tensors that the model reads."""

    def __init__(
        self, max_rows: int, groups: list[str], *, block_size: int, max_blocks: int, device: Device
    ) -> None:
        self.max_rows = max_rows
        self._groups = groups
        self._block_size = block_size
        self._longest = block_size * max_blocks
        self._device = device
        kinds = ["int64"] * (4 + len(groups)) + ["int32"]
        # At multiples of 16 bytes, like what other steps are given: elsewhere Triton would compile its kernels once more.
        size = -(-8 * max_rows // 16) * 16
        self._arena = np.zeros(size * len(kinds), dtype=np.uint8)
        self._arena_on_device = device.mirror(self._arena)
        parts = [slice(index * size, index * size + size) for index in range(len(kinds))]
        self._arrays = [self._arena[part].view(kind) for part, kind in zip(parts, kinds, strict=True)]
        tensors = [
            self._arena_on_device[part].view(getattr(torch, kind))
            for part, kind in zip(parts, kinds, strict=True)
        ]
        self._token_ids, self._positions, self._rows, self._sources, *self._slots, self._seq_lens = tensors
        self._tables: list[Int32s] = [np.zeros((max_rows, max_blocks), dtype=np.int32) for _ in groups]
        self._tables_on_device = [device.mirror(table) for table in self._tables]
        self._query_start = device.mirror(np.arange(max_rows + 1, dtype=np.int32))
        self._places: dict[int, Places] = {}
        self._first_padding = max_rows
        self._pad(0)
        self._replaced: list[tuple[int, int]] = [(0, 0) for _ in groups]
        self._added: list[list[tuple[int, list[int]]]] = [[] for _ in groups]

    # ------------------------------------------------------------ writing

    def places(self, num_rows: int) -> Places:
        """The arrays of a step of `num_rows` rows. What a larger step before it left behind them becomes padding."""
        places = self._places.get(num_rows)
        if places is None:
            token_ids, positions, rows, sources, *slots, seq_lens = (
                array[:num_rows] for array in self._arrays
            )
            places = self._places[num_rows] = Places(token_ids, positions, rows, sources, slots, seq_lens)
        if num_rows < self._first_padding:
            self._pad(num_rows)
        self._first_padding = num_rows
        return places

    def replace_tables(self, group: int, tables: Int32s) -> None:
        """tables [rows, blocks] of the first places. Call before `places`, which pads what lies behind."""
        num_rows, num_blocks = tables.shape
        self._tables[group][:num_rows, :num_blocks] = tables
        if not self._device.is_host:
            rows, blocks = self._replaced[group]
            self._replaced[group] = (max(rows, num_rows), max(blocks, num_blocks))
            self._added[group].clear()

    def extend_table(self, group: int, place: int, start: int, blocks: list[int]) -> None:
        """Append `blocks` to the table of `place`, which has `start` so far."""
        table = self._tables[group]
        table[place, start : start + len(blocks)] = blocks
        if not self._device.is_host:
            self._added[group].append((place * table.shape[1] + start, blocks))

    def upload(self) -> None:
        """In one transfer."""
        if self._device.is_host:
            return
        arrays: list[npt.NDArray[np.generic]] = [self._arena]
        for group, (table, (rows, blocks)) in enumerate(zip(self._tables, self._replaced, strict=True)):
            added = [(first + i, block) for first, new in self._added[group] for i, block in enumerate(new)]
            flat = np.array(added, dtype=np.int64).reshape(-1, 2)
            arrays += [table[:rows, :blocks], flat[:, 0], flat[:, 1].astype(np.int32)]
            self._replaced[group] = (0, 0)
            self._added[group].clear()
        arena, *rest = self._device.stage(arrays)
        self._arena_on_device.copy_(arena)
        for group, target in enumerate(self._tables_on_device):
            replaced, indices, blocks_added = rest[3 * group : 3 * group + 3]
            target[: replaced.shape[0], : replaced.shape[1]] = replaced
            if len(indices):
                target.view(-1).index_copy_(0, indices, blocks_added)

    # ------------------------------------------------------------ reading

    def row_numbers(self, num_rows: int) -> Tensor:
        return self._rows[:num_rows]

    def packed(self, num_rows: int, *, seq_lens: list[int] | None = None) -> PackedTokens:
        """The first places as tensors. Without `seq_lens`, for a step to capture: the lengths that a backend reads on the
        host are the longest possible, because what it derives from them is frozen into the capture."""
        lens = [self._longest] * num_rows if seq_lens is None else seq_lens
        width = -(-max(lens) // self._block_size)
        attention = {
            name: AttentionMetadata(
                query_start=self._query_start[: num_rows + 1],
                seq_lens=self._seq_lens[:num_rows],
                block_tables=table[:num_rows, :width],
                slot_mapping=slots[:num_rows],
                query_lens_list=[1] * num_rows,
                seq_lens_list=lens,
                block_size=self._block_size,
            )
            for name, table, slots in zip(self._groups, self._tables_on_device, self._slots, strict=True)
        }
        return PackedTokens(
            token_ids=self._token_ids[:num_rows],
            positions=self._positions[:num_rows],
            attention=attention,
            sources=None if self._device.is_host else self._sources[:num_rows],
        )

    def _pad(self, first: int) -> None:
        behind = slice(first, self._first_padding)
        *longs, seq_lens = self._arrays
        for array in longs:
            array[behind] = 0
        longs[3][behind] = -1
        seq_lens[behind] = 1
        for group, table in enumerate(self._tables):
            for place in range(first, self._first_padding if table[behind, 0].any() else first):
                self.extend_table(group, place, 0, [0])
