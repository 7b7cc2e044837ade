"""The build specification of CodeBuild: phases in order, variables explained, commands that a shell can read."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
import yaml

from tests.house_rules import ROOT

TEXT = (ROOT / "buildspec.yml").read_text(encoding="utf-8")
SPEC: dict[str, Any] = yaml.safe_load(TEXT)
PHASES = ("install", "pre_build", "build", "post_build")
COMMANDS = [command for phase in PHASES for command in SPEC["phases"][phase]["commands"]]


def _at(part: str) -> int:
    """Where a command that holds `part` comes, the first one."""
    return next(index for index, command in enumerate(COMMANDS) if part in command)


def test_tests_builds_scans_pushes_and_signs_in_this_order() -> None:
    assert tuple(SPEC["phases"]) == PHASES
    steps = [".ci/run", "make image ", '"$TRIVY_IMAGE" image', "docker push", "notation sign"]
    positions = [_at(step) for step in steps]
    assert positions == sorted(positions)
    assert len([command for command in COMMANDS if command.startswith("make image ")]) == 2
    # CodeBuild runs post_build after a failed build too.
    assert SPEC["phases"]["post_build"]["commands"][0] == 'test "$CODEBUILD_BUILD_SUCCEEDING" = 1'


def test_every_variable_is_explained_at_the_head_and_nothing_else_is_read() -> None:
    head = TEXT[: TEXT.index("version: 0.2")]
    declared = set(SPEC["env"]["variables"])
    assert declared == set(re.findall(r"^#   ([A-Z_]+) ", head, re.MULTILINE))
    text = "\n".join(COMMANDS)
    assigned = set(re.findall(r"(?:^|\s|export )(\w+)=(?=[$\"])", text)) | set(
        re.findall(r"\bfor (\w+) in", text)
    )
    used = set(re.findall(r"\$\{?(\w+)", text))
    assert {name for name in used - declared - assigned if not name.startswith("CODEBUILD_")} == set()
    assert declared <= used


@pytest.mark.parametrize("index", range(len(COMMANDS)))
def test_a_shell_can_read_each_command(index: int) -> None:
    read = subprocess.run(["bash", "-n"], input=COMMANDS[index], check=False, capture_output=True, text=True)
    assert (read.returncode, read.stderr) == (0, "")


def test_pins_what_it_runs_beside_ours() -> None:
    assert "@sha256:" in COMMANDS[_at("TRIVY_IMAGE")]
    assert "BASE_IMAGE=$BASE_PINNED" in COMMANDS[_at("IMAGE_ARGS=")]
    assert "RepoDigests" in COMMANDS[_at("BASE_PINNED=")]
