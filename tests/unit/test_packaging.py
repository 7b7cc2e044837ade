"""What ships says the same everywhere: one version, one list of dependencies."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from serving.version import VERSION
from tests import house_rules

ROOT = Path(__file__).resolve().parents[2]


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _name(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None
    return match[0].lower()


@pytest.mark.parametrize(
    ("arguments", "file", "tag"),
    [((), "Dockerfile.cpu", f"{VERSION}-cpu"), (("CUDA=1",), "Dockerfile", VERSION)],
)
def test_make_image_passes_the_version(arguments: tuple[str, ...], file: str, tag: str) -> None:
    plan = subprocess.run(
        ["make", "-n", "image", "IMAGE=name", *arguments],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    words = shlex.split(plan.stdout.replace("\\\n", " "))
    assert words[words.index("--build-arg") + 1] == f"VERSION={VERSION}"
    assert words[words.index("--file") + 1] == f"container/{file}"
    assert words[words.index("--tag") + 1] == f"name:{tag}"


def test_torch_of_the_constraints_is_allowed() -> None:
    (allowed,) = [line for line in _pyproject()["project"]["dependencies"] if _name(line) == "torch"]
    assert allowed == "torch>=2.11,<2.14"
    assert "\ntorch==2.13.0\n" in (ROOT / "constraints-cpu.txt").read_text(encoding="utf-8")


def test_each_dependency_has_its_reason() -> None:
    project = _pyproject()["project"]
    asked = {("", _name(line)) for line in project["dependencies"]}
    asked |= {
        (extra, _name(line)) for extra, lines in project["optional-dependencies"].items() for line in lines
    }
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    sections = text.split("## ")
    runtime = {("", row[0]) for row in rows if len(row) == 2 and f"| {row[0]} |" in sections[1]}
    extras = {(row[0], row[1]) for row in rows if len(row) == 3}
    ignored = {("", "Package"), ("", "---"), ("Extra", "Package"), ("---", "---")}
    assert (runtime | extras) - ignored == asked


# Imported, and part of another package's promise: top-level module -> the dependency that brings it.
BROUGHT_BY = {
    "botocore": "boto3",
    "gevent": "gunicorn",
    "h11": "wsproto",
    "httpx2": "openai",
    "langchain_core": "langchain-openai",
    "packaging": "pytest",
    "pydantic": "openai",
    "requests": "schemathesis",
    "tqdm": "huggingface-hub",
    "urllib3": "botocore",
    "werkzeug": "flask",
}
# Imported inside functions, when they are there. `text_generation` is installed by the Makefile, and the SDKs, which exclude
# each other, are in environments of their own (`make sdk-environments`), as are the engines of benchmarks/peers.
OPTIONAL = {
    *("cuda", "flash_attn", "flash_attn_interface", "triton"),
    *("openai", "sagemaker", "text_generation", "transformers"),
    *("conversion", "onnxruntime_genai", "openvino", "openvino_genai"),
}


def _third_party(*folders: str) -> dict[str, str]:
    """Top-level modules of others that files in `folders` import -> one place where."""
    ours = {*sys.stdlib_module_names, *house_rules.EVERYTHING}
    found = {}
    for file in house_rules.python_files(*folders):
        for line, module in house_rules.imports(file.tree):
            top = module.split(".")[0]
            if top and top not in ours:
                found[top] = f"{file.name}:{line}"
    return found


@pytest.mark.parametrize(
    ("folders", "extras"),
    [
        (("serving", "container"), ()),
        (("local_mode",), ("docker", "local")),
        (("sagemaker_sdk_ext",), ("sagemaker2", "sagemaker3")),
        (("benchmarks", "scripts", "tests"), ("dev",)),
    ],
)
def test_what_is_imported_is_declared(folders: tuple[str, ...], extras: tuple[str, ...]) -> None:
    project = _pyproject()["project"]
    asked = [
        *project["dependencies"],
        *(line for e in extras for line in project["optional-dependencies"][e]),
    ]
    declared = {_name(line) for line in asked}
    distributions = metadata.packages_distributions()
    missing = {}
    for module, place in _third_party(*folders).items():
        names = {_name(name).replace("_", "-") for name in distributions.get(module, [module])}
        brought_by = BROUGHT_BY.get(module, "")
        if not (names | {brought_by, BROUGHT_BY.get(brought_by, "")}) & declared and module not in OPTIONAL:
            missing[module] = place
    assert missing == {}


@pytest.mark.parametrize(("module", "dependency"), BROUGHT_BY.items())
def test_what_is_brought_along_still_is(module: str, dependency: str) -> None:
    brought = {_name(line).replace("-", "_") for line in metadata.requires(dependency) or []}
    assert module in brought


def test_license_covers_the_demo_model() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert "demo model" in text
