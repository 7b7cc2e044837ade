"""The examples of docs/clients.md do what the page says: each block is run, and prints the text block that follows it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from container.families.hugging_face import LIBRARY_NAMES
from container.families.tgi import TGI
from container.variables import HF_TOKENS, MODEL_ID_NAMES, VARIABLES, names_of
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


def _guide_rows(name: str) -> list[list[str]]:
    """Cells of the rows that begin with a name."""
    guide = (PAGE.parent / name).read_text(encoding="utf-8")
    return [line.split("|") for line in guide.splitlines() if line.startswith("| `")]


def _names(text: str) -> set[str]:
    return set(re.findall(r"`([A-Z][A-Z0-9_]{3,})(?:=[^`]*)?`", text))


def test_the_guide_for_tgi_names_settings_that_exist() -> None:
    rows = [row for row in _guide_rows("migration-from-tgi.md") if len(row) == 5]
    settings = {name for variable in VARIABLES for name in names_of(variable.field)}
    settings |= {*HF_TOKENS, *MODEL_ID_NAMES, *LIBRARY_NAMES, "HF_MODEL_ID", "HF_HUB_OFFLINE"}
    named = {name for row in rows for name in _names(row[2])}
    assert len(rows) > 20 and named <= settings


@pytest.mark.parametrize(
    "guide", ["migration-from-tgi.md", "migration-from-lmi.md", "migration-from-vllm-dlc.md"]
)
def test_guides_name_variables_that_are_known(guide: str) -> None:
    """And say the same of them as the map that is made from the code, to which they link."""
    text = (PAGE.parent / guide).read_text(encoding="utf-8")
    known = _names((PAGE.parent / "configuration.md").read_text(encoding="utf-8")) | LIBRARY_NAMES
    foreign = re.compile(r"(SM_VLLM|OPTION|SERVING|SAGEMAKER|HF|MAX)_[A-Z0-9_]*[A-Z0-9]")
    named = {name for name in _names(text) if foreign.fullmatch(name)}
    assert named and named - known == set()
    assert re.search(r"\(configuration\.md#[a-z_-]+\)", text)


def test_the_guide_for_tgi_calls_refused_and_idle_what_the_map_does() -> None:
    text = (PAGE.parent / "migration-from-tgi.md").read_text(encoding="utf-8")
    paragraph = text.split("**Refused at start**")[1].split("\n\n")[0]
    refused, idle = paragraph.split("**without effect**")
    assert _names(refused) - {"CHAT_TEMPLATE", "QUANTIZE", "HF_MODEL_QUANTIZE"} <= {
        refusal.name for refusal in TGI.refusals
    }
    assert _names(idle) and _names(idle) <= {item.name for item in TGI.no_effects}
