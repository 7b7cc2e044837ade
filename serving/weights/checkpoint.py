"""Reads safetensors checkpoints: which files, which tensors, and slices of them. Knows no model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError, safe_open
from torch import Tensor

from serving.errors import ModelError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


class CheckpointFile:
    """One open safetensors file; tensors are read in slices, straight from the mapped file."""

    def __init__(self, path: Path, handle: Any) -> None:
        self.path = path
        self._handle = handle
        self.names: list[str] = list(handle.offset_keys())

    def dtype(self, name: str) -> str:
        """In safetensors' spelling: `BF16`, `F32`, `I32`, …"""
        return str(self._handle.get_slice(name).get_dtype())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._handle.get_slice(name).get_shape())

    def read(self, name: str, index: tuple[slice, ...]) -> Tensor:
        try:
            tensor: Tensor = self._handle.get_slice(name)[index] if index else self._handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{self.path}: tensor {name!r} cannot be read: {error}") from error
        return tensor


class Checkpoint:
    """The safetensors files of a model folder. Raises ModelError, naming the file, for whatever cannot be read."""

    def __init__(self, model_dir: str | Path) -> None:
        self._dir = Path(model_dir)
        self._index = self._read_index()
        self.files = [self._dir / name for name in sorted(set(self._index.values()))] or self._single_file()
        for path in self.files:
            if not path.is_file():
                raise ModelError(f"{path} is missing: {_INDEX} names it; download the model again")

    def _read_index(self) -> dict[str, str]:
        path = self._dir / _INDEX
        if not path.is_file():
            return {}
        try:
            weight_map = msgspec.json.decode(path.read_bytes(), type=_Index).weight_map
        except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
            raise ModelError(f"{path} is not a safetensors index: {error}") from error
        if not weight_map:
            raise ModelError(f"{path} lists no tensors")
        for file_name in weight_map.values():
            if Path(file_name).name != file_name or "\\" in file_name or file_name in ("", ".", ".."):
                raise ModelError(
                    f"{path} names the shard {file_name!r}; a shard must be a file in the same folder"
                )
        return weight_map

    def _single_file(self) -> list[Path]:
        path = self._dir / _SINGLE
        if path.is_file():
            return [path]
        if not self._dir.is_dir():
            raise ModelError(f"model folder {self._dir} does not exist")
        shards = sorted(self._dir.glob("*.safetensors"))
        if shards:
            raise ModelError(f"{self._dir} holds {shards[0].name} but neither {_SINGLE} nor {_INDEX}")
        pickles = sorted(file.name for pattern in _PICKLES for file in self._dir.glob(pattern))
        if pickles:
            raise ModelError(
                f"{self._dir} holds only pickled weights ({pickles[0]}), which can run code and are never loaded; "
                "convert them once: AutoModelForCausalLM.from_pretrained(dir).save_pretrained(new_dir)"
            )
        raise ModelError(f"{self._dir} holds no weights: neither {_SINGLE} nor {_INDEX}")

    @contextmanager
    def open(self, path: Path) -> Iterator[CheckpointFile]:
        """Also checks that the file holds every tensor that the index promises in it."""
        try:
            context = safe_open(path, framework="pt")
            with context as handle:
                file = CheckpointFile(path, handle)
                self._check_promised(file)
                yield file
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path} is corrupt or incomplete ({error}); download the model again"
            ) from error

    def _check_promised(self, file: CheckpointFile) -> None:
        promised = {name for name, file_name in self._index.items() if file_name == file.path.name}
        missing = sorted(promised.difference(file.names))
        if missing:
            raise ModelError(f"{file.path} lacks {_listed(missing)}, which {_INDEX} places in it")


def _listed(names: list[str]) -> str:
    """Up to five names and how many more."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
