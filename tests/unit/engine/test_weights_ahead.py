from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serving.config import ServerConfig
from serving.engine import weights_ahead
from serving.engine.weights_ahead import bytes_on_host


@pytest.fixture(autouse=True)
def host_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_ahead, "is_host_build", lambda: True)


def _model(folder: Path, config: dict[str, Any] | str, sizes: tuple[int, ...] = (1000, 600)) -> Path:
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text)
    for index, size in enumerate(sizes):
        (folder / f"model-{index}.safetensors").write_bytes(bytes(size))
    return folder


def _declared(*, device: str = "auto", dtype: str = "auto", num_ranks: int | None = None) -> ServerConfig:
    values = {"runtime": {"device": device}, "model": {"dtype": dtype}, "parallel": {"num_ranks": num_ranks}}
    return msgspec.convert(values, type=ServerConfig)


@pytest.mark.parametrize(
    ("config", "dtype", "expected"),
    [
        ({"dtype": "float32"}, "auto", 1600),
        ({"torch_dtype": "float32"}, "auto", 1600),
        ({"torch_dtype": "bfloat16"}, "auto", 3200),
        ({"torch_dtype": "float16"}, "float32", 3200),
        ({"torch_dtype": "bfloat16"}, "bfloat16", 1600),
        ({"dtype": "float32"}, "bfloat16", 800),
        ({"dtype": "float8_e4m3fn"}, "auto", 0),
        ({}, "auto", 0),
        ({"dtype": "float32", "quantization_config": {"bits": 4}}, "auto", 0),
        ({"dtype": "float32", "quantization_config": None}, "auto", 1600),
        ("{", "auto", 0),
        ('["dtype"]', "auto", 0),
    ],
)
def test_bytes_in_the_type_that_is_computed_in(
    tmp_path: Path, config: dict[str, Any] | str, dtype: str, expected: int
) -> None:
    assert bytes_on_host(_model(tmp_path, config), _declared(dtype=dtype)) == expected


def test_other_devices_and_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _model(tmp_path, {"dtype": "float32"})
    assert bytes_on_host(folder, _declared(device="cpu", num_ranks=1)) == 1600
    assert bytes_on_host(folder, _declared(device="cuda")) == 0
    assert bytes_on_host(folder, _declared(num_ranks=2)) == 0
    monkeypatch.setattr(weights_ahead, "is_host_build", lambda: False)
    assert bytes_on_host(folder, _declared(device="cpu")) == 0


def test_no_model_and_too_large_a_model(tmp_path: Path) -> None:
    assert bytes_on_host(tmp_path / "nowhere", _declared()) == 0
    folder = _model(tmp_path, {"dtype": "float32"}, sizes=())
    assert bytes_on_host(folder, _declared()) == 0
    with (folder / "model.safetensors").open("wb") as file:
        os.truncate(file.fileno(), 4 * 2**40)  # a file that takes no room, larger than any memory
    assert bytes_on_host(folder, _declared()) == 0
