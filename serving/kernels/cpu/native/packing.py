"""The compiled form of what `serving.worker.input_batch` does in numpy before a step of decodes. Knows arrays only."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

_POINTER, _LONG = ctypes.c_void_p, ctypes.c_long


class DecodePacker:
    def __init__(self, library: ctypes.CDLL) -> None:
        self._pack = library.pack_decodes
        rows: list[Any] = [_POINTER, _LONG, _POINTER, _POINTER]
        tables: list[Any] = [_POINTER, _LONG, _LONG, _LONG]
        self._pack.argtypes = [*rows, *tables, *[_POINTER] * 5]
        self._pack.restype = None

    def bind(
        self,
        rows: npt.NDArray[np.int64],
        *,
        num_computed: npt.NDArray[np.int64],
        last_ids: npt.NDArray[np.int64],
        tables: Sequence[npt.NDArray[np.int32]],
        block_size: int,
        token_ids: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        row_numbers: npt.NDArray[np.int64],
        slots: Sequence[npt.NDArray[np.int64]],
        seq_lens: npt.NDArray[np.int32],
    ) -> Callable[[], None]:
        """A call that packs the next token of `rows` [R] as these arrays are then. num_computed and last_ids [rows] and
        each of tables [rows, blocks] lie by row number; the others have R entries and are written, as num_computed is."""
        table_addresses, slot_addresses = (_addresses(arrays) for arrays in (tables, slots))
        arguments = [
            *(_address(rows), len(rows), _address(num_computed), _address(last_ids)),
            *(table_addresses, len(tables), tables[0].shape[1], block_size),
            *(_address(token_ids), _address(positions), _address(row_numbers)),
            *(slot_addresses, _address(seq_lens)),
        ]
        return partial(self._pack, *arguments)


def _address(array: npt.NDArray[Any]) -> int:
    return int(array.ctypes.data)


def _addresses(arrays: Sequence[npt.NDArray[Any]]) -> ctypes.Array[ctypes.c_void_p]:
    return (_POINTER * len(arrays))(*map(_address, arrays))
