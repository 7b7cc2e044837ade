"""What ships says the same everywhere: one version, one list of dependencies, images that start the same program."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.version import VERSION
from tests import house_rules

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = {"Dockerfile": "cuda", "Dockerfile.cpu": "cpu"}
BIND_TO_PORT = "com.amazonaws.sagemaker.capabilities.accept-bind-to-port"


def _instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, continued lines joined, comments dropped."""
    text = (ROOT / "container" / name).read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    lines = (line.split(None, 1) for line in text.splitlines() if line.strip())
    return [(line[0].upper(), line[1].strip()) for line in lines]


def _final_stage(name: str) -> list[tuple[str, str]]:
    instructions = _instructions(name)
    last = max(i for i, (kind, _) in enumerate(instructions) if kind == "FROM")
    return instructions[last:]


def _labels(name: str) -> dict[str, str]:
    words = [word for kind, rest in _final_stage(name) if kind == "LABEL" for word in shlex.split(rest)]
    return dict(word.split("=", 1) for word in words)


def _environment(name: str) -> dict[str, str]:
    words = [word for kind, rest in _final_stage(name) if kind == "ENV" for word in shlex.split(rest)]
    return dict(word.split("=", 1) for word in words)


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _name(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None
    return match[0].lower()


@pytest.mark.parametrize("name", DOCKERFILES)
def test_image_starts_pid_1_without_a_shell(name: str) -> None:
    (entrypoint,) = [rest for kind, rest in _final_stage(name) if kind == "ENTRYPOINT"]
    assert json.loads(entrypoint) == ["python3", "-m", "container.entrypoint"]
    assert [rest for kind, rest in _final_stage(name) if kind == "CMD"] == []
    assert ("EXPOSE", "8080") in _final_stage(name)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_image_labels(name: str) -> None:
    labels = _labels(name)
    assert labels[BIND_TO_PORT] == "true"
    assert labels["org.opencontainers.image.version"] == "${VERSION}"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_image_build_compares_the_version_with_the_command(name: str) -> None:
    stage = _final_stage(name)
    declared = stage.index(("ARG", "VERSION"))
    (check,) = [i for i, (kind, rest) in enumerate(stage) if kind == "RUN" and "--version" in rest]
    label = next(i for i, (kind, _) in enumerate(stage) if kind == "LABEL")
    assert declared < check < label
    expected = re.search(r'= "(.*?)\$\{VERSION', stage[check][1])
    assert expected is not None
    shown = subprocess.run(
        [sys.executable, "-m", "serving.cli", "--version"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert shown.stdout == f"{expected[1]}{VERSION}\n"


@pytest.mark.parametrize(("name", "device"), DOCKERFILES.items())
def test_image_names_its_device(name: str, device: str) -> None:
    assert _environment(name)["DEVICE"] == device


@pytest.mark.parametrize("name", DOCKERFILES)
def test_image_holds_the_compiler_that_kernels_need(name: str) -> None:
    (packages,) = [rest for kind, rest in _final_stage(name) if kind == "RUN" and "apt-get install" in rest]
    assert {"gcc", "libc6-dev"} <= set(packages.split())


@pytest.mark.parametrize("name", DOCKERFILES)
def test_image_copies_the_packages_of_the_distribution(name: str) -> None:
    packages = {
        pattern.rstrip("*") for pattern in _pyproject()["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    copied = {rest.split()[-1] for kind, rest in _instructions(name) if kind == "COPY"}
    assert packages <= copied
    assert all((ROOT / package / "__init__.py").is_file() for package in packages)


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


def test_buildspec_builds_with_the_makefile() -> None:
    phases = yaml.safe_load((ROOT / "buildspec.yml").read_text(encoding="utf-8"))["phases"]
    assert all(command.startswith("make image ") for command in phases["build"]["commands"])
    assert ".ci/run" in phases["pre_build"]["commands"]


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
    "httpx2": "openai",
    "langchain_core": "langchain-openai",
    "pydantic": "openai",
    "requests": "schemathesis",
    "tqdm": "huggingface-hub",
    "urllib3": "botocore",
    "werkzeug": "flask",
}
# Imported inside functions, when they are there. `text_generation` is installed by the Makefile, and the SDKs, which exclude
# each other, are in environments of their own (`make sdk-environments`).
OPTIONAL = {"flash_attn", "openai", "sagemaker", "text_generation", "transformers", "triton"}


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
