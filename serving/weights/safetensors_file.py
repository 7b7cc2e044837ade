"""The safetensors format: where each tensor of a file lies, checked before a byte of it is used. Knows no tensors of torch.

A file is the length of its header (8 bytes, little-endian), the header (JSON: name -> type, shape, and its range of the
bytes that follow), and those bytes, without holes (github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import msgspec

from serving.errors import ModelError

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
_METADATA = "__metadata__"
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
    "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


@dataclass(slots=True, frozen=True)
class StoredTensor:
    """`dtype` in safetensors' spelling (`BF16`, `F32`, …); its bytes are `start:stop` of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """One open file and its directory. Raises ModelError, naming the file, for what the format does not allow."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise self.corrupt(str(error)) from error
        try:
            self.tensors = self._read_directory()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from byte `offset` of the file on. Any thread may call it; it waits without the GIL."""
        done = 0
        try:
            while done < len(buffer):
                count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
                if count == 0:
                    raise self.corrupt(f"it ends at byte {offset + done}")
                done += count
        except OSError as error:
            raise self.corrupt(str(error)) from error

    def corrupt(self, reason: str) -> ModelError:
        return ModelError(f"{self.path} is corrupt or incomplete ({reason}); download the model again")

    def _read_directory(self) -> dict[str, StoredTensor]:
        size = os.fstat(self._descriptor).st_size
        if size < _LENGTH_BYTES:
            raise self.corrupt(f"{size} bytes hold no header")
        prefix = bytearray(_LENGTH_BYTES)
        self.read_into(memoryview(prefix), 0)
        length = int.from_bytes(prefix, "little")
        first = _LENGTH_BYTES + length
        if length > _MAX_HEADER_BYTES or first > size:
            raise self.corrupt(f"a header of {length} bytes in a file of {size}")
        header = bytearray(length)
        self.read_into(memoryview(header), _LENGTH_BYTES)
        try:
            raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
            raw.pop(_METADATA, None)
            entries = {name: msgspec.json.decode(entry, type=_Entry) for name, entry in raw.items()}
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self.corrupt(f"its header is malformed: {error}") from error
        self._check(entries, size - first)
        return {
            name: StoredTensor(
                entry.dtype, entry.shape, first + entry.data_offsets[0], first + entry.data_offsets[1]
            )
            for name, entry in entries.items()
        }

    def _check(self, entries: dict[str, _Entry], num_bytes: int) -> None:
        """Tensors fill the bytes one after the other, each as many as its type and shape say."""
        position = 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
            bits = _BITS.get(entry.dtype)
            if bits is None:
                raise self.corrupt(f"{name!r} has the unknown type {entry.dtype!r}")
            start, stop = entry.data_offsets
            if start != position:
                raise self.corrupt(f"{name!r} starts at byte {start} of the data, {position} is expected")
            if min(entry.shape, default=0) < 0 or 8 * (stop - start) != math.prod(entry.shape) * bits:
                raise self.corrupt(
                    f"{name!r} of type {entry.dtype} and shape {list(entry.shape)} in {stop - start} bytes"
                )
            position = stop
        if position != num_bytes:
            raise self.corrupt(f"its tensors take {position} bytes, it holds {num_bytes}")
