"""Accounts for every tensor of a checkpoint and of a model, then reads each to its place. Knows no model and no layer."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from serving.errors import ModelError
from serving.weights.checkpoint import Checkpoint
from serving.weights.pieces import FLOATING, Piece, pieces_of
from serving.weights.safetensors_file import SafetensorsFile, StoredTensor
from serving.weights.target import WeightMap, WeightTarget
from serving.weights.transfer import transfer

_LISTED = 5


def load_weights(
    model_dir: str | Path,
    weight_map: WeightMap,
    *,
    ignored: re.Pattern[str],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fill every target of `weight_map`, reading no more of the files than that takes.

    `ignored` matches checkpoint names that need no place. `progress(done, total)` counts bytes.
    Raises ModelError when a tensor is absent, superfluous, doubled or of another shape, before any is read; and when a
    file breaks off while it is read.
    """
    checkpoint = Checkpoint(model_dir)
    with contextlib.ExitStack() as stack:
        found: dict[str, tuple[SafetensorsFile, StoredTensor]] = {}
        unused: list[str] = []
        for path in checkpoint.files:
            file = stack.enter_context(checkpoint.open(path))
            for name, stored in file.tensors.items():
                if name in weight_map:
                    _check(file, name, stored, weight_map[name], found)
                    found[name] = (file, stored)
                elif not ignored.fullmatch(name):
                    unused.append(name)
        missing = sorted(weight_map.keys() - found)
        if missing:
            raise ModelError(f"{model_dir} lacks {len(missing)} tensors the model needs: {_first(missing)}")
        if unused:
            raise ModelError(
                f"{model_dir} holds {len(unused)} tensors the model has no place for: {_first(unused)}"
            )
        transfer(_in_file_order(found, weight_map), progress or _unheard)


def _check(
    file: SafetensorsFile,
    name: str,
    stored: StoredTensor,
    targets: Iterable[WeightTarget],
    found: dict[str, tuple[SafetensorsFile, StoredTensor]],
) -> None:
    if name in found:
        raise ModelError(f"{file.path} holds {name!r}, which another file of the model already gave")
    if stored.dtype not in FLOATING:
        raise ModelError(
            f"{file.path}: {name!r} is stored as {stored.dtype}; only {', '.join(FLOATING)} weights load as they are"
        )
    for target in targets:
        if stored.shape != target.shape:
            raise ModelError(
                f"{file.path}: {name!r} has shape {list(stored.shape)}, the config needs {list(target.shape)}"
            )


def _in_file_order(
    found: dict[str, tuple[SafetensorsFile, StoredTensor]], weight_map: WeightMap
) -> list[Piece]:
    """Disks and their read-ahead like it best."""
    places = sorted(found, key=lambda name: (str(found[name][0].path), found[name][1].start))
    return [
        piece for name in places for target in weight_map[name] for piece in pieces_of(*found[name], target)
    ]


def _first(names: list[str]) -> str:
    return ", ".join(sorted(names)[:_LISTED]) + (", …" if len(names) > _LISTED else "")


def _unheard(done: int, total: int) -> None:
    """Nobody listens."""
