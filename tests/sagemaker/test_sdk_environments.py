"""The environments of the two SDK lines: what is in them, what is kept out, and that they are not made twice."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.sagemaker.conftest import ROOT, interpreter

SCRIPT = ROOT / "scripts" / "sdk_environments.py"
QUESTION = """
import importlib.metadata, importlib.util, json
import sagemaker_sdk_ext
absent = [name for name in ("torch", "transformers", "triton") if importlib.util.find_spec(name) is None]
print(json.dumps({"sdk": importlib.metadata.version("sagemaker"), "absent": absent, "ours": sagemaker_sdk_ext.__file__}))
"""


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sdk_environments", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("line", ["sagemaker2", pytest.param("sagemaker3", marks=pytest.mark.full)])
def test_an_environment_holds_the_sdk_and_this_checkout_without_torch(line: str) -> None:
    command = [interpreter(line), "-c", QUESTION]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout)
    assert answer["sdk"].split(".")[0] == line.removeprefix("sagemaker")
    assert answer["absent"] == ["torch", "transformers", "triton"]
    assert Path(answer["ours"]).parents[1] == ROOT


def test_what_is_right_is_left_as_it_is() -> None:
    interpreter("sagemaker2")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "sagemaker2"], capture_output=True, text=True, check=True
    )
    assert done.stdout == ".venv-sagemaker2: up to date (sagemaker>=2.230,<3)\n"


def test_a_changed_requirement_is_no_longer_right(script: ModuleType) -> None:
    assert script._stamp(["sagemaker>=3"]) != script._stamp(["sagemaker>=3,<4"])
    assert script._stamp(["a", "b"]) == script._stamp(["b", "a"])


@pytest.mark.parametrize("name", ["torch", "nvidia-cublas-cu12", "cuda-bindings", "triton", "tensorflow"])
def test_an_sdk_that_brings_gigabytes_is_refused_before_the_download(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    packages = [
        {"metadata": {"name": "sagemaker", "version": "4.0"}},
        {"metadata": {"name": name, "version": "1"}},
    ]

    def pip(python: Path, *arguments: str) -> None:
        assert "--dry-run" in arguments
        Path(arguments[arguments.index("--report") + 1]).write_text(json.dumps({"install": packages}))

    monkeypatch.setattr(script, "_pip", pip)
    with pytest.raises(script.NoEnvironment, match=f"sagemaker brings {name}; tighten the requirement"):
        script._resolve(Path("python"), ["sagemaker"])


def test_a_test_without_its_environment_names_the_command() -> None:
    with pytest.raises(
        pytest.fail.Exception, match=r"no environment \.venv-sagemaker1; .* make sdk-environments"
    ):
        interpreter("sagemaker1")
