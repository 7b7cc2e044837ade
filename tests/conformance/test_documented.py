"""The examples of docs/clients.md do what the page says: each block is run, and prints the text block that follows it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance.conftest import Endpoint

PAGE = Path(__file__).resolve().parents[2] / "docs" / "clients.md"
ADDRESS = "http://localhost:8080"
NOT_RUN = "<!-- not run"
BLOCK = re.compile(
    r"(?P<before>[^\n]*)\n```(?P<language>python|bash)\n(?P<code>.*?)```\n(?:\n```text\n(?P<prints>.*?)```)?",
    re.S,
)


@dataclass(frozen=True)
class Example:
    language: str
    code: str
    prints: str
    line: int

    def command(self, url: str) -> list[str]:
        code = self.code.replace(ADDRESS, url)
        # text_generation was written for pydantic 1 and warns; examples are judged by what they print.
        return (
            [sys.executable, "-W", "ignore", "-c", code]
            if self.language == "python"
            else ["bash", "-c", code]
        )


def _examples() -> list[Example]:
    page = PAGE.read_text(encoding="utf-8")
    return [
        Example(
            found["language"],
            found["code"],
            found["prints"] or "",
            page[: found.start("code")].count("\n") + 1,
        )
        for found in BLOCK.finditer(page)
        if not found["before"].startswith(NOT_RUN)
    ]


@pytest.mark.parametrize("example", _examples(), ids=lambda example: f"line{example.line}")
def test_example(endpoint: Endpoint, example: Example) -> None:
    assert ADDRESS in example.code and example.prints, "an example calls the server and shows what it prints"
    if example.language == "bash" and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(
        example.command(endpoint.url), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == example.prints.strip()


def test_no_example_is_overlooked() -> None:
    page = PAGE.read_text(encoding="utf-8")
    blocks = len(re.findall(r"^```(?:python|bash)$", page, re.M))
    assert len(_examples()) == blocks - page.count(NOT_RUN) > 10


def test_the_migration_guide_names_variables_that_exist() -> None:
    guide = (PAGE.parent / "migration-from-tgi.md").read_text(encoding="utf-8")
    reference = (PAGE.parent / "configuration.md").read_text(encoding="utf-8")
    known = set(re.findall(r"\b[A-Z][A-Z0-9_]{3,}\b", reference))
    rows = [
        line.split("|") for line in guide.split("## What clients")[0].splitlines() if line.startswith("| `")
    ]
    named = {name for row in rows for name in re.findall(r"`([A-Z][A-Z0-9_]+)`", row[2])}
    refused = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", guide.split("**Refused at start**")[1].split("\n\n")[0]))
    idle = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", guide.split("**Without effect**")[1].split("\n\n")[0]))
    assert len(rows) > 20 and named <= known and refused <= known
    assert idle and not idle & known
