"""The compiled packing of decodes against numpy's: the same numbers after any steps."""

from __future__ import annotations

import random

import numpy as np
import pytest

from serving.batch import NewRow, ScheduledBatch, ScheduledRow
from serving.kernels.cpu.native import library
from serving.kernels.cpu.native.packing import DecodePacker
from serving.platform.cpu import CpuDevice
from serving.sampling_params import SamplingParams
from serving.worker.input_batch import InputBatch

BLOCK_SIZE, MAX_ROWS, MAX_BLOCKS = 4, 9, 8


def _batch(packer: DecodePacker | None, groups: int) -> InputBatch:
    return InputBatch(
        MAX_ROWS, [f"group{index}" for index in range(groups)], block_size=BLOCK_SIZE, max_blocks=MAX_BLOCKS,
        device=CpuDevice(), packer=packer,
    )  # fmt: skip


class _Plans:
    """Plans of decodes as a scheduler would make them: rows come, go and change places, and get blocks when they do."""

    def __init__(self, seed: int, groups: int) -> None:
        self._chance = random.Random(seed)
        self._groups = groups
        self._length: dict[int, int] = {}
        self._step = 0

    def next(self) -> ScheduledBatch:
        self._step += 1
        released = [
            row
            for row, length in self._length.items()
            if length >= BLOCK_SIZE * MAX_BLOCKS or self._chance.random() < 0.1
        ]
        for row in released:
            del self._length[row]
        new_rows = []
        for row in range(MAX_ROWS):
            if row not in self._length and row not in released and self._chance.random() < 0.5:
                length = self._chance.randint(1, 9)
                blocks = [self._blocks(-(-length // BLOCK_SIZE)) for _ in range(self._groups)]
                self._length[row] = length
                new_rows.append(
                    NewRow(
                        row=row, token_ids=self._ids(length), num_prompt_tokens=length, num_computed_tokens=length - 1,
                        params=SamplingParams(), seed=0, block_tables=blocks,
                    )
                )  # fmt: skip
        order = list(self._length)
        if self._chance.random() < 0.3:
            self._chance.shuffle(order)
        fresh = {new.row for new in new_rows}
        rows = []
        for row in order:
            grows = row not in fresh and (self._length[row] - 1) % BLOCK_SIZE == 0
            blocks = [self._blocks(1) for _ in range(self._groups)] if grows else []
            rows.append(ScheduledRow(row=row, num_tokens=1, samples=True, new_blocks=blocks))
            self._length[row] += 1
        return ScheduledBatch(
            step=self._step, rows=rows, new_rows=new_rows, released_rows=released, block_copies=[]
        )

    def _blocks(self, count: int) -> list[int]:
        return [self._chance.randrange(1, 1000) for _ in range(count)]

    def _ids(self, count: int) -> list[int]:
        return [self._chance.randrange(50_000) for _ in range(count)]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_packs_what_numpy_packs(seed: int, groups: int) -> None:
    loaded = library.load()
    assert loaded is not None
    ours, twin, plans = _batch(DecodePacker(loaded), groups), _batch(None, groups), _Plans(seed, groups)
    steps = 0
    for _ in range(60):
        plan = plans.next()
        sides = [ours, twin]
        for side in sides:
            side.apply(plan)
        if not plan.rows:
            continue
        steps += 1
        packed = [side.pack(plan) for side in sides]
        assert packed[0].packed is None and packed[0].sampling == packed[1].sampling
        places = [side.decode.places(len(plan.rows)) for side in sides]
        for name in ("token_ids", "positions", "rows", "seq_lens"):
            assert np.array_equal(getattr(places[0], name), getattr(places[1], name)), name
        for slots, expected in zip(places[0].slots, places[1].slots, strict=True):
            assert np.array_equal(slots, expected)
        for row in packed[0].sampling:
            assert ours.num_computed_tokens(row) == twin.num_computed_tokens(row)
        sampled = [7 * row + steps for row in packed[0].sampling]
        for side in sides:
            side.append(packed[0].sampling, sampled)
    assert steps > 40
