"""Every slice of every shape arrives where it belongs, whatever the pieces and strides."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from serving.errors import ModelError
from serving.weights import pieces, transfer
from serving.weights.checkpoint import Checkpoint
from serving.weights.loader import load_weights
from serving.weights.pieces import pieces_of
from serving.weights.safetensors_file import SafetensorsFile
from serving.weights.target import WeightMap, WeightTarget

NOTHING = re.compile(r"(?!)")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def random_target(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> WeightTarget:
    """A random part of a tensor of `shape`, for a poisoned destination with strides of its own."""
    index = []
    for size in shape:
        whole = rng.random() < 0.5
        start = 0 if whole else rng.randrange(size)
        index.append(slice(start, size if whole else rng.randrange(start, size + 1)))
    lengths = [part.stop - part.start for part in index]
    room = torch.full([length + rng.randrange(3) for length in lengths], float("nan"), dtype=dtype)
    view = room[tuple(slice(0, length) for length in lengths)]
    if len(shape) == 2 and rng.random() < 0.2:
        view = torch.full((lengths[1], lengths[0]), float("nan"), dtype=dtype).t()
    return WeightTarget(view, shape, tuple(index))


@pytest.mark.parametrize("piece_bytes", [64, 4096, 4 * 2**20])
def test_random_slices_equal_those_of_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(transfer, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(pieces, "_WORTH_A_CALL_BYTES", 24)
    rng = random.Random(piece_bytes)
    stored: dict[str, Tensor] = {}
    weight_map: WeightMap = {}
    for number in range(60):
        shape = tuple(rng.randrange(1, 12) for _ in range(rng.randrange(4)))
        stored[f"t{number}"] = torch.randn(shape).to(rng.choice(DTYPES))
        weight_map[f"t{number}"] = [random_target(rng, shape, rng.choice(DTYPES)) for _ in range(2)]
    save_file(stored, tmp_path / "model.safetensors")
    load_weights(tmp_path, weight_map, ignored=NOTHING)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as reference:
        for name, targets in weight_map.items():
            for target in targets:
                expected = reference.get_tensor(name)[target.index].to(target.destination.dtype)
                assert torch.equal(target.destination, expected), (name, target.shape, target.index)


def test_nothing_outside_a_destination_is_written(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3, 5000)}, tmp_path / "model.safetensors")
    room = torch.zeros(4, 3000)
    part = (slice(0, 3), slice(1000, 3000))
    load_weights(tmp_path, {"a": [WeightTarget(room[:3, :2000], (3, 5000), part)]}, ignored=NOTHING)
    assert room[:3, :2000].eq(1).all()
    assert room[3].eq(0).all() and room[:, 2000:].eq(0).all()


def test_a_rank_reads_its_share_only(tmp_path: Path) -> None:
    save_file({"a": torch.ones(8, 4096)}, tmp_path / "model.safetensors")
    with SafetensorsFile(tmp_path / "model.safetensors") as file:
        share = WeightTarget(torch.zeros(8, 2048), (8, 4096), (slice(0, 8), slice(2048, 4096)))
        found = list(pieces_of(file, file.tensors["a"], share))
    assert [(piece.num_bytes, piece.is_direct) for piece in found] == [(8 * 2048 * 4, True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_that_breaks_off_while_it_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    file = Checkpoint(tmp_path).open(path)
    found = pieces_of(
        file, file.tensors["a"], WeightTarget(torch.zeros(1000, dtype=dtype), (1000,), (slice(0, 1000),))
    )
    path.write_bytes(path.read_bytes()[:-8])
    with (
        file,
        pytest.raises(ModelError, match=r"model\.safetensors is corrupt or incomplete \(it ends at byte"),
    ):
        transfer.transfer(list(found), lambda done, total: None)
