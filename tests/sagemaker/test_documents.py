"""The Python blocks of docs/sagemaker.md and docs/local-mode.md do what the pages say, against the emulator.

Each block is a program of its own, after the page's lines that define IMAGE, ROLE and BUCKET; it prints the text block
that follows it. A comment before a block names the SDK whose environment runs it, or says why nothing does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from typer.main import get_group as click_command

from local_mode.cli import app as local_app
from local_mode.runtime.faults import FAULT_KINDS
from sagemaker_sdk_ext.instances import PRICE_DATE, PRICE_REGION
from serving.api.error_styles import NATIVE, OPENAI
from serving.errors import (
    BodyTimeout,
    DeadlineExceeded,
    Draining,
    GenerationFailed,
    HandlerFailed,
    HandlerRefused,
    IncompleteGeneration,
    InvalidRequest,
    MalformedBody,
    NotFound,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    SessionRefused,
    TemplateError,
    ToolError,
    Unauthorized,
    UnsupportedMediaType,
)
from tests.sagemaker.conftest import REGION, ROOT, Aws, create_endpoint, delete_endpoint, wait_in_service

PAGES = (ROOT / "docs" / "sagemaker.md", ROOT / "docs" / "local-mode.md")
ENDPOINT = "my-endpoint"
BLOCK = re.compile(
    r"(?P<before>[^\n]*)\n```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<prints>.*?)```)?", re.S
)
WITH = re.compile(r"<!-- with: (\w+) -->")
NOT_RUN = re.compile(r"<!-- not run: .+ -->")
NAMES = re.compile(r"^IMAGE = .*\nROLE = .*\nBUCKET = .*\n", re.M)


@dataclass(frozen=True)
class Block:
    page: str
    line_number: int
    code: str
    prints: str
    sdk: str
    """boto3, sagemaker2 or sagemaker3; empty: not run."""


def _blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            named = WITH.fullmatch(match["before"])
            sdk = "" if NOT_RUN.fullmatch(match["before"]) else named[1] if named else "boto3"
            number = text[: match.start("code")].count("\n") + 1
            found.append(Block(page.stem, number, match["code"], match["prints"] or "", sdk))
    return found


BLOCKS = _blocks()
PREAMBLE = next(block.code for block in BLOCKS if NAMES.fullmatch(block.code))


def _cases() -> list[object]:
    return [
        pytest.param(
            block,
            id=f"{block.page}-line{block.line_number}-{block.sdk}",
            marks=[] if block.sdk == "boto3" else [pytest.mark.full],
        )
        for block in BLOCKS
        if block.sdk and block.code != PREAMBLE
    ]


@pytest.fixture(scope="module")
def pages_world(aws: Aws) -> Iterator[Aws]:
    """The endpoint and the bucket that the pages speak of."""
    bucket = re.findall(r'^BUCKET = "(.*)"$', PREAMBLE, re.M)[0]
    s3 = boto3.session.Session("test", "test", region_name=REGION).client("s3", endpoint_url=aws.moto_url)
    s3.create_bucket(Bucket=bucket)
    s3.close()
    made = create_endpoint(aws, ENDPOINT)
    wait_in_service(aws, made.name)
    yield aws
    delete_endpoint(aws, made.name)


@pytest.mark.parametrize("block", _cases())
def test_block(pages_world: Aws, block: Block, tmp_path: Path) -> None:
    program = tmp_path / "block.py"
    program.write_text(PREAMBLE + block.code, encoding="utf-8")
    started = pages_world.start(program, line=block.sdk, PYTHONPATH=str(ROOT))
    output, _ = started.process.communicate(timeout=240)
    assert started.process.returncode == 0, f"{output[-2000:]}\n{started.log.read_text()[-4000:]}"
    assert block.prints, "a block shows what it prints"
    assert output.strip().endswith(block.prints.strip())


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page}-line{block.line_number}")
def test_block_compiles(block: Block) -> None:
    compile(block.code, f"{block.page}.md", "exec", flags=0, dont_inherit=True)


def test_no_block_is_overlooked() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert len(BLOCKS) == text.count("\n```python\n")
    assert sum(not block.sdk for block in BLOCKS) == len(NOT_RUN.findall(text)) <= 2
    assert {block.sdk for block in BLOCKS} == {"", "boto3", "sagemaker2", "sagemaker3"}


def test_links_lead_somewhere() -> None:
    """Of all pages, to files of the repository and to headings of these pages."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" in target:
                continue
            path, _, heading = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.name}: {target}"
            if heading:
                assert heading in _headings(file), f"{page.name}: {target}"


def _headings(page: Path) -> set[str]:
    """As GitHub names them in links."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _rows(page: Path, heading: str) -> list[list[str]]:
    """Cells of the table rows below a heading, without the table's head."""
    section = page.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:1] == "|"
    ]
    return [row for row in rows if not set(row[0]) <= {"-"}][1:]


def test_the_table_of_faults_is_complete() -> None:
    rows = _rows(PAGES[1], "Break things")
    told = {re.findall(r"`([a-z-]+)(?:=([A-Z]+))?`", row[0])[0]: row[2] for row in rows}
    kinds = {(kind.name, kind.value or ""): kind.default for kind in FAULT_KINDS}
    assert set(told) == set(kinds)
    assert all(told[kind] == f"{default:g}" for kind, default in kinds.items() if default is not None)


def test_the_table_of_commands_is_complete() -> None:
    rows = _rows(PAGES[1], "Start it")
    told = {re.findall(r"`textgen-endpoint local ([a-z-]+)", row[0])[0] for row in rows}
    assert told == {command.name for command in click_command(local_app).commands.values()}


def test_the_table_of_errors_has_the_containers_statuses() -> None:
    rows = _rows(PAGES[0], "Errors")
    told = {name: row[0] for row in rows for name in re.findall(r"`([a-z_]+)`", row[1])}
    for error in (InvalidRequest, TemplateError, ToolError, Unauthorized, MalformedBody, PayloadTooLarge,
                  UnsupportedMediaType, BodyTimeout, NotFound, SessionRefused, Overloaded, Draining, NotReady,
                  HandlerFailed, HandlerRefused, GenerationFailed, DeadlineExceeded, IncompleteGeneration):  # fmt: skip
        status, on_openai = (style.status_of(error("why")) for style in (NATIVE, OPENAI))
        assert told[error.error_type].startswith(str(status)), error
        assert on_openai == status or f"on OpenAI bodies {on_openai}" in told[error.error_type], error


def test_the_prices_are_of_the_date_that_is_told() -> None:
    assert f"of {PRICE_REGION} on {PRICE_DATE}" in PAGES[0].read_text(encoding="utf-8")
