"""The model ladder, and what a name can point at."""

from __future__ import annotations

from pathlib import Path

import pytest

from container import model_source
from container.environment import read_environment
from container.model_source import ModelSource, demo_folder, find_source, model_folder
from serving.errors import ConfigError, ModelError, StartupError


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    return folder


def find(base: Path, **environ: str) -> ModelSource:
    return find_source(read_environment({"SAGEMAKER_BASE_DIR": str(base), **environ}))


def test_model_id_comes_first(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    chosen = make_model(tmp_path / "other")
    source = find(tmp_path, MODEL_ID=str(chosen), HF_MODEL_ID="owner/name")
    assert source == ModelSource("local", str(chosen), str(chosen), "MODEL_ID")


def test_the_model_folder_beats_hf_model_id(tmp_path: Path) -> None:
    mounted = make_model(tmp_path / "model")
    source = find(tmp_path, HF_MODEL_ID="owner/name")
    assert source == ModelSource("local", str(mounted), str(mounted), str(mounted))


def test_an_empty_model_folder_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "model" / "code").mkdir(parents=True)
    assert find(tmp_path, HF_MODEL_ID="owner/name") == ModelSource(
        "hub", "owner/name", "owner/name", "HF_MODEL_ID"
    )


def test_no_rung_lists_all_three(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find(tmp_path)
    for rung in ("MODEL_ID", str(tmp_path / "model"), "HF_MODEL_ID"):
        assert rung in caught.value.message


def test_an_archive_in_the_model_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    archive = tmp_path / "model" / "model.tar.gz"
    archive.touch()
    assert find(tmp_path) == ModelSource(
        "archive", str(archive), str(tmp_path / "model"), str(tmp_path / "model")
    )


def test_a_model_one_folder_too_deep(tmp_path: Path) -> None:
    inner = make_model(tmp_path / "model" / "my-model")
    assert find(tmp_path).location == str(inner)
    make_model(tmp_path / "model" / "second")
    assert model_folder(tmp_path / "model") is None


def test_hf_model_id_may_be_the_model_folder_itself(tmp_path: Path) -> None:
    """Deploy scripts for Text Generation Inference write the mount point into HF_MODEL_ID."""
    mounted = make_model(tmp_path / "model")
    assert find(tmp_path / "elsewhere", HF_MODEL_ID=str(mounted)).location == str(mounted)


def test_demo_is_the_embedded_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "local_mode"
    (package / "demo_model").mkdir(parents=True)
    monkeypatch.setattr(model_source.resources, "files", lambda name: tmp_path / name)
    with pytest.raises(ModelError, match="reinstall"):
        demo_folder()
    make_model(package / "demo_model")
    source = find(tmp_path, HF_MODEL_ID="demo")
    assert (source.kind, source.model_id) == ("local", "demo")
    assert source.location == str(package / "demo_model")


@pytest.mark.parametrize("name", ["s3://bucket/prefix/", "s3://bucket/model.tar.gz"])
def test_s3(tmp_path: Path, name: str) -> None:
    assert find(tmp_path, HF_MODEL_ID=name) == ModelSource("s3", name, name, "HF_MODEL_ID")


@pytest.mark.parametrize("name", ["gpt2", "owner/name", "o/n.v-1_x"])
def test_hub_ids(tmp_path: Path, name: str) -> None:
    assert find(tmp_path, HF_MODEL_ID=name).kind == "hub"


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./gone", "a/b/c", "owner/", "o/n;rm", "../x", "o/..", "a b"]
)
def test_names_that_point_nowhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(StartupError) as caught:
        find(tmp_path, HF_MODEL_ID=name)
    assert f"HF_MODEL_ID={name}" in caught.value.message


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        find(tmp_path, MODEL_ID=str(tmp_path))
