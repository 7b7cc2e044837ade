"""The layouts of a model folder: what each is taken for, what is refused, what gets a line in the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from container.model_layout import find_layout, read_properties
from container.plan import Plan, make_plan
from serving.errors import ConfigError, ModelError


def write(folder: Path, *names: str, **contents: str) -> Path:
    for name in (*names, *contents):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(contents.get(name, "{}"))
    return folder


def snapshot(folder: Path, *names: str) -> Path:
    return write(folder, "config.json", "tokenizer.json", "model.safetensors", *names)


def plan(base: Path, **environ: str) -> Plan:
    return make_plan({"SAGEMAKER_BASE_DIR": str(base), **environ})


def test_a_plain_snapshot(tmp_path: Path) -> None:
    layout = find_layout(snapshot(tmp_path))
    assert layout.kind == "snapshot" and layout.warnings() == ()
    layout.require_servable(trusted=False)


def test_a_handler_of_the_hugging_face_toolkit(tmp_path: Path) -> None:
    layout = find_layout(snapshot(tmp_path, "code/inference.py", "code/requirements.txt"))
    assert layout.kind == "handler"
    assert layout.handler_script == tmp_path / "code" / "inference.py"
    assert layout.requirements == tmp_path / "code" / "requirements.txt"
    (line,) = layout.warnings()
    assert "code/requirements.txt is not installed" in line


def test_the_handler_that_the_sdk_names(tmp_path: Path) -> None:
    write(tmp_path, "code/serve.py", "src/serve.py")
    assert find_layout(tmp_path, "serve.py").handler_script == tmp_path / "code" / "serve.py"
    assert (
        find_layout(tmp_path, "serve.py", str(tmp_path / "src")).handler_script == tmp_path / "src/serve.py"
    )
    assert find_layout(tmp_path, "serve.py", "s3://bucket/source.tar.gz").kind == "handler"
    assert find_layout(tmp_path).handler_script is None


def test_a_script_that_is_named_and_missing_gets_a_line(tmp_path: Path) -> None:
    (line,) = find_layout(snapshot(tmp_path), "serve.py").warnings()
    assert f"SAGEMAKER_PROGRAM names {tmp_path / 'code' / 'serve.py'}, which is not there" in line


def test_model_code_of_lmi_is_refused_by_name(tmp_path: Path) -> None:
    layout = find_layout(snapshot(tmp_path, "model.py", "requirements.txt", "serving.properties"))
    assert (layout.kind, layout.requirements) == ("lmi", tmp_path / "requirements.txt")
    with pytest.raises(ModelError, match=r"model\.py: custom model code of LMI is not run"):
        layout.require_servable(trusted=False)


def test_model_code_of_the_hosting_standards_is_refused_by_name(tmp_path: Path) -> None:
    layout = find_layout(snapshot(tmp_path, "model.py"))
    assert layout.kind == "mhcs"
    with pytest.raises(
        ModelError, match=r"model\.py: custom model code of the model hosting container standards"
    ):
        layout.require_servable(trusted=False)


def test_adapters_are_told_and_not_pretended(tmp_path: Path) -> None:
    layout = find_layout(snapshot(tmp_path, "adapters/b/adapter_config.json", "adapters/a/x.safetensors"))
    assert layout.adapters == ("a", "b")
    (line,) = layout.warnings()
    assert "a, b in" in line and "refused" in line
    layout.require_servable(trusted=False)


def test_fast_model_loader_output_is_refused_with_the_reason(tmp_path: Path) -> None:
    layout = find_layout(snapshot(tmp_path, "sagemaker-fast-model-loader-tp4/chunk.0"))
    with pytest.raises(ModelError, match="format is not public"):
        layout.require_servable(trusted=False)


def test_unsafe_files_are_named(tmp_path: Path) -> None:
    layout = find_layout(snapshot(tmp_path, "pytorch_model.bin", "extra/optimizer.pt"))
    assert layout.unsafe_files == ("extra/optimizer.pt", "pytorch_model.bin")
    (line,) = layout.warnings()
    assert "never opened: extra/optimizer.pt, pytorch_model.bin" in line


def test_properties_are_names_of_the_lmi_family(tmp_path: Path) -> None:
    path = tmp_path / "serving.properties"
    path.write_text(
        "# comment\n! another\n\nengine=Python\noption.max_model_len = 512\noption.dtype: fp16\n"
        "option.chat_template=/a=\\\nb\noption.empty=\n"
    )
    assert [(given.name, given.text) for given in read_properties(path)] == [
        ("SERVING_ENGINE", "Python"),
        ("OPTION_MAX_MODEL_LEN", "512"),
        ("OPTION_DTYPE", "fp16"),
        ("OPTION_CHAT_TEMPLATE", "/a=b"),
    ]
    assert read_properties(path)[1].source == f"option.max_model_len in {path}"


@pytest.mark.parametrize("content", [b"x" * 70_000, b"option.dtype=\xff"])
def test_properties_that_are_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "serving.properties"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"serving\.properties"):
        read_properties(path)


def test_properties_in_the_model_folder_are_read(tmp_path: Path) -> None:
    folder = snapshot(tmp_path / "model")
    (folder / "serving.properties").write_text("option.max_model_len=256\noption.unheard_of=1\n")
    found = plan(tmp_path)
    assert found.environment.config.limits.max_total_tokens == 256
    assert "serving.properties" in found.environment.sources["limits.max_total_tokens"]
    assert any("option.unheard_of in" in line for line in found.environment.warnings)
    with pytest.raises(ConfigError, match=r"MAX_TOTAL_TOKENS=300 and option\.max_model_len=256 in "):
        plan(tmp_path, MAX_TOTAL_TOKENS="300")


def test_properties_cannot_ask_for_trust(tmp_path: Path) -> None:
    folder = snapshot(tmp_path / "model", "code/inference.py")
    (folder / "serving.properties").write_text("option.trust_remote_code=true\n")
    found = plan(tmp_path).environment
    assert not found.config.model.trust_remote_code
    assert any("set HF_MODEL_TRUST_REMOTE_CODE=true in the environment" in line for line in found.warnings)
    assert plan(tmp_path, HF_MODEL_TRUST_REMOTE_CODE="true").environment.config.model.trust_remote_code


def test_properties_may_name_the_model(tmp_path: Path) -> None:
    write(tmp_path / "model", "serving.properties")
    (tmp_path / "model" / "serving.properties").write_text("engine=Python\noption.model_id=owner/name\n")
    source = plan(tmp_path).source
    assert (source.kind, source.location) == ("hub", "owner/name")
    assert source.rung == f"option.model_id in {tmp_path / 'model' / 'serving.properties'}"


def test_a_handler_beside_a_hub_model_is_seen(tmp_path: Path) -> None:
    write(tmp_path / "model", "code/inference.py")
    found = plan(tmp_path, HF_MODEL_ID="owner/name")
    assert found.source.kind == "hub"
    assert found.layout is not None and found.layout.handler_script is not None


def test_a_model_one_folder_too_deep(tmp_path: Path) -> None:
    inner = snapshot(tmp_path / "model" / "my-model", "pytorch_model.bin")
    found = plan(tmp_path)
    assert found.layout is not None
    assert (found.layout.folder, found.layout.unsafe_files) == (inner, ("pytorch_model.bin",))


def test_what_the_ladder_passed_over_is_known(tmp_path: Path) -> None:
    folder = snapshot(tmp_path / "model")
    assert plan(tmp_path, HF_MODEL_ID="owner/name").source.passed_over == "HF_MODEL_ID=owner/name"
    assert plan(tmp_path, HF_MODEL_ID=str(folder)).source.passed_over == ""
    assert plan(tmp_path, MODEL_ID="demo", HF_MODEL_ID="a/b").source.passed_over == "HF_MODEL_ID=a/b"
    assert plan(tmp_path).source.passed_over == ""
