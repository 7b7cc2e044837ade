"""Executing a Dockerfile without an engine: stages, copies, variables and sizes, on a base that is one folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.image_dockerfile import parse
from scripts.image_roots import FORWARDED, Process, StepFailed, _shown
from scripts.image_steps import Build, sizes

TEXT = """
ARG BASE_IMAGE=debian:tiny-slim
FROM ${BASE_IMAGE} AS build
ARG NAME=nobody
ARG REVISION
WORKDIR /src
COPY LICENSE pyproject.toml ./
COPY container/locks locks
COPY LICENSE /opt/venv/lib/python3.11/site-packages/torch/
ENV GREETING="hello ${NAME}" PATH=/opt/venv/bin:${PATH}
FROM ${BASE_IMAGE}
COPY --from=build /opt/venv /opt/venv
ENV AGAIN=${WORD:-none}
"""


@pytest.fixture
def build(tmp_path: Path) -> Build:
    (tmp_path / "debian-tiny/etc").mkdir(parents=True)
    (tmp_path / "debian-tiny/etc/debian_version").write_bytes(b"x" * (1 << 20))
    (tmp_path / "work").mkdir()
    return Build(parse(TEXT), tmp_path / "work", tmp_path, {"NAME": "world"})


def test_runs_every_stage_in_a_root_of_its_own(build: Build) -> None:
    environment = build.run()
    first = build.root_of(build.dockerfile.stages[0])
    assert (first / "src/LICENSE").is_file() and (first / "src/locks/cpu.txt").is_file()
    assert (first / "etc/debian_version").is_file()
    left = {
        path.relative_to(build.final_root).as_posix()
        for path in build.final_root.rglob("*")
        if path.is_file()
    }
    assert left == {"etc/debian_version", "opt/venv/lib/python3.11/site-packages/torch/LICENSE"}
    assert environment["AGAIN"] == "none" and "GREETING" not in environment


def test_says_what_takes_the_room(build: Build) -> None:
    build.run()
    (build.final_root / "opt/venv/lib/python3.11/site-packages/torch/big.so").write_bytes(b"x" * (3 << 20))
    lines = sizes(build, top=1).splitlines()
    assert lines[0].split() == ["1.0", "MiB", "base", "root", "file", "system", "(debian:tiny-slim)"]
    assert lines[2].startswith("     3.0 MiB  run-time environment")
    assert lines[3].split() == ["3.0", "MiB", "torch"]
    assert lines[-1].split() == ["4.0", "MiB", "together"]


def test_refuses_bases_that_cannot_be_made(tmp_path: Path) -> None:
    other = Build(parse("FROM nvidia/cuda:13.0.1-base\n"), tmp_path, tmp_path, {})
    with pytest.raises(StepFailed, match="only releases of Debian"):
        other.run()


def test_shows_a_build_the_mirrors_and_a_server_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in FORWARDED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    shown, environment = _shown(Process({"A": "1"}))
    assert shown == [tmp_path.resolve()]
    assert environment["PIP_FIND_LINKS"].startswith("/run/")
    assert environment["PIP_INDEX_URL"] == "https://mirror.example/simple"
    assert _shown(Process({"A": "1"}, forward=False)) == ([], {"HOME": "/root", "A": "1"})
