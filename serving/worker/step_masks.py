"""The masks of a step: what grammars permit, less the tokens that would end a row too early. Knows rows and bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from serving.grammar.row_matchers import RowMasks
from serving.sampling.adjustments import Adjustments
from serving.sampling.sampler import SamplingRow
from serving.sampling.token_mask import TokenMasks
from serving.worker.decode_inputs import Int32s

_WORD = 32


class PlacedMasks:
    """The masks that grammars gave, at the places of their rows in a step. Often all is as before, but the bits."""

    def __init__(self) -> None:
        self._known: tuple[RowMasks, list[int], TokenMasks] | None = None

    def among(self, sampling: list[int], masks: RowMasks) -> TokenMasks:
        """`sampling` are the rows of the logits, in their order."""
        if self._known is not None and self._known[0] is masks and self._known[1] == sampling:
            return self._known[2]
        places = {row: place for place, row in enumerate(sampling)}
        placed = TokenMasks(rows=[places[row] for row in masks.rows], bits=torch.from_numpy(masks.bits))
        self._known = (masks, list(sampling), placed)
        return placed


class StepMasks:
    def __init__(self, eos_token_ids: Sequence[int], *, vocab_size: int) -> None:
        self._adjustments = Adjustments(eos_token_ids)
        self._vocab_size = vocab_size
        self._width = -(-vocab_size // _WORD)
        self._without: dict[tuple[int, ...], Int32s] = {}

    def of(
        self, rows: list[SamplingRow], banning: list[int], masks: TokenMasks | None
    ) -> tuple[Int32s, dict[int, int]]:
        """(bits [M, W], the mask of each line that has one). `banning` are the lines of `rows` that may ban tokens. Lines
        that are banned the same share a mask; one that a grammar leaves no other choice keeps it."""
        numbers: dict[int, int] = {}
        bits: list[Int32s] = []
        if masks is not None:
            numbers = {line: number for number, line in enumerate(masks.rows)}
            bits = list(self._widened(masks.bits.numpy()))
        shared: dict[tuple[int, ...], int] = {}
        for line in banning:
            row = rows[line]
            banned = self._adjustments.banned(row.params, num_output_tokens=row.num_output_tokens)
            if not banned:
                continue
            if line in numbers:
                left = bits[numbers[line]] & self._all_but(banned)
                bits[numbers[line]] = left if left.any() else bits[numbers[line]]
            else:
                if banned not in shared:
                    shared[banned] = len(bits)
                    bits.append(self._all_but(banned))
                numbers[line] = shared[banned]
        return np.array(bits, dtype=np.int32).reshape(len(bits), self._width), numbers

    def _widened(self, bits: Int32s) -> Int32s:
        """Tokens beyond a mask are not permitted."""
        missing = self._width - bits.shape[1]
        return np.pad(bits, ((0, 0), (0, missing))) if missing > 0 else bits[:, : self._width]

    def _all_but(self, banned: tuple[int, ...]) -> Int32s:
        if banned not in self._without:
            permitted = np.ones(self._width * _WORD, dtype=np.uint8)
            permitted[[token_id for token_id in banned if token_id < self._vocab_size]] = 0
            self._without[banned] = np.packbits(permitted, bitorder="little").view(np.int32)
        return self._without[banned]
