from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serving.errors import ModelError
from serving.weights.loader import load_weights
from serving.weights.target import WeightMap, WeightTarget, whole

NOTHING = re.compile(r"(?!)")


def tensors() -> dict[str, Tensor]:
    return {"a": torch.arange(12.0).view(4, 3), "b": torch.arange(4.0), "c": torch.ones(2, 2)}


def places() -> tuple[dict[str, Tensor], WeightMap]:
    parameters = {name: torch.zeros_like(tensor) for name, tensor in tensors().items()}
    return parameters, {name: [whole(tensor)] for name, tensor in parameters.items()}


def write_sharded(folder: Path, shards: dict[str, list[str]], index: dict[str, str] | None = None) -> None:
    for file_name, names in shards.items():
        save_file({name: tensors()[name] for name in names}, folder / file_name)
    weight_map = index or {name: file_name for file_name, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def test_single_file_fills_every_parameter(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "model.safetensors")
    parameters, weight_map = places()
    load_weights(tmp_path, weight_map, ignored=NOTHING)
    for name, tensor in tensors().items():
        assert torch.equal(parameters[name], tensor)


def test_sharded_index_and_progress_in_bytes(tmp_path: Path) -> None:
    write_sharded(tmp_path, {"one.safetensors": ["a", "c"], "two.safetensors": ["b"]})
    parameters, weight_map = places()
    seen: list[tuple[int, int]] = []
    load_weights(
        tmp_path, weight_map, ignored=NOTHING, progress=lambda done, total: seen.append((done, total))
    )
    assert torch.equal(parameters["b"], tensors()["b"])
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == ((0, 80), (80, 80))


def test_slices_are_sharded_fused_and_converted(tmp_path: Path) -> None:
    save_file({"a": tensors()["a"].bfloat16()}, tmp_path / "model.safetensors")
    fused = torch.full((3, 2), -1.0)
    targets = [
        WeightTarget(fused[:1], (4, 3), (slice(3, 4), slice(1, 3))),
        WeightTarget(fused[1:], (4, 3), (slice(0, 2), slice(0, 2))),
    ]
    load_weights(tmp_path, {"a": targets}, ignored=NOTHING)
    assert fused.tolist() == [[10.0, 11.0], [0.0, 1.0], [3.0, 4.0]]


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    save_file({"a": tensors()["a"]}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="lacks 2 tensors the model needs: b, c"):
        load_weights(tmp_path, places()[1], ignored=NOTHING)


def test_at_most_five_names_are_listed(tmp_path: Path) -> None:
    save_file({"a": tensors()["a"]}, tmp_path / "model.safetensors")
    weight_map = {f"w{number}": [whole(torch.zeros(1))] for number in range(7)}
    with pytest.raises(ModelError, match="lacks 7 tensors .*: w0, w1, w2, w3, w4, …"):
        load_weights(tmp_path, weight_map, ignored=NOTHING)


def test_superfluous_tensor_is_named_unless_ignored(tmp_path: Path) -> None:
    extra = {"layers.0.rotary_emb.inv_freq": torch.ones(2)}
    save_file(tensors() | extra, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"no place for: layers\.0\.rotary_emb\.inv_freq"):
        load_weights(tmp_path, places()[1], ignored=NOTHING)
    load_weights(tmp_path, places()[1], ignored=re.compile(r".*\.inv_freq"))


def test_wrong_shape_names_both(tmp_path: Path) -> None:
    save_file(tensors() | {"b": torch.zeros(5)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"'b' has shape \[5\], the config needs \[4\]"):
        load_weights(tmp_path, places()[1], ignored=NOTHING)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e4m3fn])
def test_packed_weights_are_not_read_as_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file(tensors() | {"b": torch.zeros(4).to(dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="'b' is stored as"):
        load_weights(tmp_path, places()[1], ignored=NOTHING)


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    write_sharded(tmp_path, {"one.safetensors": ["a", "b"], "two.safetensors": ["b", "c"]})
    with pytest.raises(ModelError, match="two.safetensors holds 'b', which another file"):
        load_weights(tmp_path, places()[1], ignored=NOTHING)


@pytest.mark.parametrize("kept_bytes", [0, 4, 40, -3])
def test_truncated_file_is_named(tmp_path: Path, kept_bytes: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tensors(), path)
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(ModelError, match=r"model\.safetensors is corrupt or incomplete"):
        load_weights(tmp_path, places()[1], ignored=NOTHING)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    write_sharded(tmp_path, {"one.safetensors": ["a", "c"], "two.safetensors": ["b"]})
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(ModelError, match=r"two\.safetensors is missing"):
        load_weights(tmp_path, places()[1], ignored=NOTHING)


def test_index_promises_what_a_shard_lacks(tmp_path: Path) -> None:
    index = {"a": "one.safetensors", "b": "one.safetensors", "c": "one.safetensors"}
    write_sharded(tmp_path, {"one.safetensors": ["a", "c"]}, index)
    with pytest.raises(ModelError, match=r"one\.safetensors lacks b"):
        load_weights(tmp_path, places()[1], ignored=NOTHING)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "..\\x"])
def test_index_may_not_leave_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelError, match="must be a file in the same folder"):
        load_weights(tmp_path, places()[1], ignored=NOTHING)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {"a": 3}}', '{"weight_map": {}}'])
def test_malformed_index_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json"):
        load_weights(tmp_path, places()[1], ignored=NOTHING)


def test_pickles_are_refused_with_the_conversion(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"pickled weights \(pytorch_model\.bin\).*save_pretrained"):
        load_weights(tmp_path, places()[1], ignored=NOTHING)


def test_empty_folder_and_shards_without_index(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no weights"):
        load_weights(tmp_path, places()[1], ignored=NOTHING)
    save_file(tensors(), tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ModelError, match="but neither"):
        load_weights(tmp_path, places()[1], ignored=NOTHING)
    with pytest.raises(ModelError, match="does not exist"):
        load_weights(tmp_path / "absent", places()[1], ignored=NOTHING)
