"""Copies a checkpoint into parameters and accounts for every tensor on both sides. Knows no model and no layer."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from serving.errors import ModelError
from serving.weights.checkpoint import Checkpoint, CheckpointFile
from serving.weights.target import WeightMap

_LISTED = 5
_FLOATING = ("F64", "F32", "BF16", "F16")


def load_weights(
    model_dir: str | Path,
    weight_map: WeightMap,
    *,
    ignored: re.Pattern[str],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fill every target of `weight_map`, reading one slice at a time.

    `ignored` matches checkpoint names that need no place. `progress(done, total)` counts files.
    Raises ModelError when a tensor is absent, superfluous, doubled or of another shape.
    """
    checkpoint = Checkpoint(model_dir)
    loaded: set[str] = set()
    unused: list[str] = []
    total = len(checkpoint.files)
    for done, path in enumerate(checkpoint.files):
        if progress is not None:
            progress(done, total)
        with checkpoint.open(path) as file:
            for name in file.names:
                if name in weight_map:
                    _load_tensor(file, name, weight_map, loaded)
                elif not ignored.fullmatch(name):
                    unused.append(name)
    missing = sorted(weight_map.keys() - loaded)
    if missing:
        raise ModelError(f"{model_dir} lacks {len(missing)} tensors the model needs: {_first(missing)}")
    if unused:
        raise ModelError(
            f"{model_dir} holds {len(unused)} tensors the model has no place for: {_first(unused)}"
        )
    if progress is not None:
        progress(total, total)


def _load_tensor(file: CheckpointFile, name: str, weight_map: WeightMap, loaded: set[str]) -> None:
    if name in loaded:
        raise ModelError(f"{file.path} holds {name!r}, which another file of the model already gave")
    if file.dtype(name) not in _FLOATING:
        raise ModelError(
            f"{file.path}: {name!r} is stored as {file.dtype(name)}; only {', '.join(_FLOATING)} weights load as they are"
        )
    shape = file.shape(name)
    for target in weight_map[name]:
        if shape != target.shape:
            raise ModelError(
                f"{file.path}: {name!r} has shape {list(shape)}, the config needs {list(target.shape)}"
            )
        target.destination.copy_(file.read(name, target.index))
    loaded.add(name)


def _first(names: list[str]) -> str:
    return ", ".join(sorted(names)[:_LISTED]) + (", …" if len(names) > _LISTED else "")
