"""What the format forbids is refused, with the file's name; what it allows is found where the library finds it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from serving.errors import ModelError
from serving.weights.safetensors_file import SafetensorsFile

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(encoded) if length is None else length).to_bytes(8, "little") + encoded + data)
    return path


def test_tensors_are_found_where_the_library_finds_them(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"a": torch.arange(6).view(2, 3), "b": torch.ones(4).bfloat16(), "c": torch.zeros(0, 3)}
    save_file(tensors, path, metadata={"format": "pt"})
    with SafetensorsFile(path) as file, safe_open(path, framework="pt") as reference:
        assert set(file.tensors) == set(reference.offset_keys())
        for name, stored in file.tensors.items():
            expected = reference.get_slice(name)
            assert (stored.dtype, list(stored.shape)) == (expected.get_dtype(), expected.get_shape())
            content = bytearray(stored.stop - stored.start)
            file.read_into(memoryview(content), stored.start)
            assert content == tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"", b""),
        (b"[]", b""),
        (b"{", b""),
        (b'{"a": "\xff"}', b""),
        ({"a": {"dtype": "F32", "shape": [2]}}, b"8 bytes.."),
        ({"a": F32 | {"dtype": "F33"}}, bytes(8)),
        ({"a": F32 | {"dtype": 3}}, bytes(8)),
        ({"a": F32 | {"shape": [3]}}, bytes(8)),
        ({"a": F32 | {"shape": [-1, -2]}}, bytes(8)),
        ({"a": F32 | {"shape": [1 << 62, 1 << 62]}}, bytes(8)),
        ({"a": F32 | {"data_offsets": [8, 0]}}, bytes(8)),
        ({"a": F32 | {"data_offsets": [-8, 0]}}, bytes(8)),
        ({"a": F32 | {"data_offsets": [0, 8, 16]}}, bytes(8)),
        ({"a": F32 | {"data_offsets": [4, 12]}}, bytes(12)),
        ({"a": F32, "b": F32}, bytes(8)),
        ({"a": F32, "b": F32 | {"data_offsets": [4, 12]}}, bytes(12)),
        ({"a": F32, "b": F32 | {"data_offsets": [12, 20]}}, bytes(20)),
        ({"a": F32}, bytes(7)),
        ({"a": F32}, bytes(9)),
        ({}, b"?"),
    ],
)
def test_what_the_format_forbids(tmp_path: Path, header: object, data: bytes) -> None:
    path = write(tmp_path / "model.safetensors", header, data)
    with pytest.raises(ModelError, match=r"model\.safetensors is corrupt or incomplete"):
        SafetensorsFile(path)


@pytest.mark.parametrize("length", [1 << 63, 100_000_001, 3000])
def test_a_header_longer_than_the_file(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "model.safetensors", {"a": F32}, bytes(8), length=length)
    with pytest.raises(ModelError, match=f"a header of {length} bytes in a file of"):
        SafetensorsFile(path)


def test_metadata_is_no_tensor(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", {"__metadata__": {"format": "pt"}, "a": F32}, bytes(8))
    with SafetensorsFile(path) as file:
        assert list(file.tensors) == ["a"]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="corrupt or incomplete"):
        SafetensorsFile(tmp_path)
