"""What both Dockerfiles must keep: read by the reader that `make image-check` executes them with."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.image_dockerfile import Dockerfile, Instruction, Stage, expand, parse
from scripts.image_steps import COMPILERS, compilers_in, context_files
from serving.version import VERSION
from tests.house_rules import PRODUCT, ROOT

CAPABILITIES = "com.amazonaws.sagemaker.capabilities."
DOCKERFILES = {"Dockerfile": "cuda", "Dockerfile.cpu": "cpu"}
each_image = pytest.mark.parametrize("name", DOCKERFILES)


def _read(name: str) -> Dockerfile:
    return parse((ROOT / "container" / name).read_text(encoding="utf-8"))


def _runs(stage: Stage) -> list[str]:
    return [instruction.text for instruction in stage.of_kind("RUN")]


@each_image
def test_starts_process_1_without_a_shell(name: str) -> None:
    stage = _read(name).final
    (entrypoint,) = stage.of_kind("ENTRYPOINT")
    assert entrypoint.exec_form() == ["python3", "-m", "container.entrypoint"]
    assert [instruction.text for instruction in stage.of_kind("EXPOSE")] == ["8080"]


@each_image
def test_labels_say_what_is_implemented(name: str) -> None:
    labels = _read(name).final.pairs("LABEL")
    assert labels["org.opencontainers.image.version"] == "${VERSION}"
    wanted = {"title", "description", "version", "revision", "licenses", "base.name"}
    assert {
        key.removeprefix("org.opencontainers.image.") for key in labels if "opencontainers" in key
    } == wanted
    capabilities = {key.removeprefix(CAPABILITIES) for key in labels if key.startswith(CAPABILITIES)}
    api = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "serving" / "api").rglob("*.py"))
    streams_both_ways = {"bidirectional-streaming"} if "/invocations-bidirectional-stream" in api else set()
    assert capabilities == {"accept-bind-to-port"} | streams_both_ways
    assert all(labels[CAPABILITIES + capability] == "true" for capability in capabilities)


@each_image
def test_compares_the_version_with_the_command(name: str) -> None:
    stage = _read(name).final
    kinds = [(instruction.kind, instruction.text) for instruction in stage.instructions]
    (check,) = [index for index, (kind, text) in enumerate(kinds) if kind == "RUN" and "--version" in text]
    label = next(index for index, (kind, _) in enumerate(kinds) if kind == "LABEL")
    assert kinds.index(("ARG", "VERSION")) < check < label
    expected = re.search(r'= "(.*?)\$\{VERSION', kinds[check][1])
    assert expected is not None
    shown = subprocess.run(
        [sys.executable, "-m", "serving.cli", "--version"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert shown.stdout == f"{expected[1]}{VERSION}\n"


@pytest.mark.parametrize(("name", "device"), DOCKERFILES.items())
def test_names_its_device_and_writes_to_tmp_alone(name: str, device: str) -> None:
    environment = _read(name).final.pairs("ENV")
    assert environment["DEVICE"] == device
    assert environment["HF_HOME"].startswith("/tmp/")
    assert environment.get("TRITON_CACHE_DIR", "/tmp/").startswith("/tmp/")
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"


@each_image
def test_the_final_stage_holds_no_compiler(name: str) -> None:
    dockerfile = _read(name)
    (packages,) = [text for text in _runs(dockerfile.final) if "apt-get install" in text]
    words = packages.split()
    assert not {*COMPILERS, "libc6-dev", "python3-dev", "build-essential", "python3-venv"} & set(words)
    assert "--no-install-recommends" in words
    # What it could bring along comes from one stage, from folders that hold no program of the system.
    copied = {(c.option("from"), *c.words()[:-1]) for c in dockerfile.final.of_kind("COPY")}
    assert copied == {("build", "/opt/venv"), ("build", "/usr/share/sbom")}


@each_image
def test_what_needs_a_compiler_is_built_before(name: str) -> None:
    runs = "\n".join(_runs(_read(name).stages[0]))
    assert "find /opt/venv -path '*native/prebuilt/kernels-*.so'" in runs, (
        "the wheel brings them, or the build ends"
    )
    manager = _read(name).final.pairs("ENV").get("TRITON_CACHE_MANAGER")
    assert ("-m serving.kernels.triton.prebuilt" in runs) == (name == "Dockerfile")
    assert manager == ("serving.kernels.triton.prebuilt:PrebuiltModules" if name == "Dockerfile" else None)


@each_image
def test_installs_from_locks_with_hashes_alone(name: str) -> None:
    installs = [text for stage in _read(name).stages for text in _runs(stage) if "pip install" in text]
    own = [text for text in installs if "/wheels/textgen_endpoint" in text]
    assert len(own) == 1 and "--no-deps --no-index" in own[0]
    locked = [text for text in installs if text not in own]
    assert locked
    for text in locked:
        assert "--require-hashes" in text
        (lock,) = re.findall(r"--requirement (container/locks/\S+)", text)
        assert (ROOT / lock).is_file()
    assert "pip" not in "".join(_runs(_read(name).final))


@each_image
def test_writes_a_bill_of_materials_before_pruning(name: str) -> None:
    runs = _runs(_read(name).stages[0])
    (bill,) = [index for index, text in enumerate(runs) if "cyclonedx-py environment" in text]
    (prune,) = [index for index, text in enumerate(runs) if "image_prune.py" in text]
    assert bill < prune
    assert "image_exercise.py" in runs[prune], "what is left is not tried"


@each_image
def test_bases_are_pinned_or_can_be(name: str) -> None:
    dockerfile = _read(name)
    assert {stage.base for stage in dockerfile.stages} == {dockerfile.arguments["BASE_IMAGE"]}
    _, _, tag = dockerfile.arguments["BASE_IMAGE"].partition(":")
    assert tag and "latest" not in tag


@each_image
def test_fetches_no_urls_and_holds_no_secrets(name: str) -> None:
    dockerfile = _read(name)  # ADD is not among the instructions that it reads
    for stage in dockerfile.stages:
        for instruction in stage.instructions:
            assert not re.search(r"\b(curl|wget|git clone)\b", instruction.text)
            assert not re.search(r"(?i)token|password|secret|credential|api_key", instruction.text)
            if instruction.kind != "ARG":
                assert "://" not in instruction.text


@each_image
def test_copies_the_packages_of_the_distribution(name: str) -> None:
    copied = {word for c in _read(name).stages[0].of_kind("COPY") for word in c.words()[:-1]}
    assert {*PRODUCT, "setup.py"} <= copied
    for source in copied:
        assert context_files(source)


def test_the_context_holds_no_leftovers() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in context_files("serving")}
    assert "serving/kernels/cpu/native/products.c" in names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".so")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM a\nADD https://example.com/x /x\n", "ADD: only"),
        ("FROM a\nCMD serve\n", "CMD: only"),
        ("RUN true\n", "no FROM"),
    ],
)
def test_refuses_what_it_does_not_know(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_reads_stages_variables_and_continued_lines() -> None:
    dockerfile = parse(
        'ARG BASE=debian:x\nFROM ${BASE} AS one\nENV A=1 \\\n    # a comment\n    B=${A}-${C:-c}\nFROM one\nLABEL l="a b"\n'
    )
    assert [(stage.base, stage.name) for stage in dockerfile.stages] == [("debian:x", "one"), ("one", "1")]
    assert dockerfile.stages[0].pairs("ENV") == {"A": "1", "B": "${A}-${C:-c}"}
    assert expand("${A}-${C:-c}", {"A": "1"}) == "1-c"
    assert dockerfile.final.pairs("LABEL") == {"l": "a b"}
    with pytest.raises(ValueError, match="--build-arg VERSION="):
        expand("${VERSION}", {})
    with pytest.raises(ValueError, match="not the exec form"):
        Instruction("ENTRYPOINT", "python3 -m container.entrypoint").exec_form()


def test_finds_compilers(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/python3").touch()
    assert compilers_in(tmp_path) == []
    (tmp_path / "usr/bin/gcc-12").touch()
    (tmp_path / "usr/bin/ld").touch()
    assert compilers_in(tmp_path) == ["gcc-12", "ld"]
