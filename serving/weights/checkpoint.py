"""The safetensors files of a model folder: which they are, and whether they hold what its index says. Knows no model."""

from __future__ import annotations

from pathlib import Path

import msgspec

from serving.errors import ModelError
from serving.weights.safetensors_file import SafetensorsFile

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


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

    def open(self, path: Path) -> SafetensorsFile:
        """Also checks that the file holds every tensor that the index promises in it."""
        file = SafetensorsFile(path)
        promised = {name for name, file_name in self._index.items() if file_name == path.name}
        missing = sorted(promised.difference(file.tensors))
        if missing:
            file.close()
            raise ModelError(f"{path} lacks {_listed(missing)}, which {_INDEX} places in it")
        return file


def _listed(names: list[str]) -> str:
    """Up to five names and how many more."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
