"""Masks find their rows among those that sample, also where a step repeats the one before."""

from __future__ import annotations

import numpy as np

from serving.grammar.row_matchers import RowMasks
from serving.worker.step_masks import PlacedMasks


def test_masks_are_placed_anew_when_the_rows_or_the_masks_are_others() -> None:
    bits = np.zeros((2, 3), dtype=np.int32)
    masks, placed = RowMasks([4, 9], bits), PlacedMasks()
    first = placed.among([4, 7, 9], masks)
    assert first.rows == [0, 2]
    bits[1, 2] = 5
    repeated = placed.among([4, 7, 9], masks)
    assert repeated is first and repeated.bits[1, 2] == 5, "the bits lie at the same place"
    assert placed.among([9, 7, 4], masks).rows == [2, 0]
    other = placed.among([9, 7, 4], RowMasks([9], bits[:1]))
    assert other.rows == [0] and other.bits.shape == (1, 3)
