"""`docs/container-checks.md` and the tests that it names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
TABLE = ROOT / "docs" / "container-checks.md"
SUITE = ROOT / "tests" / "e2e" / "container"
_TEST = re.compile(r"`(tests/\S+\.py)::(test_\w+)`")

# One word or two of each check that the hosting contract asks for, in its order.
CHECKS = (
    "`serve` argument", "SIGTERM under load", "full batch", "prefill of 32,000", "1,000 connections", "shard died",
    "unset and empty", "safe port range", "two containers", "odd parts", "client gone", "error body", "read-only model",
    "no network", "`/dev/shm` of 64 MB", "Content-Type absent", "25 MB", "statuses of sessions", "statuses of adapters",
)  # fmt: skip


def rows() -> list[list[str]]:
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_check_has_its_row() -> None:
    assert len(rows()) == len(CHECKS)
    for words, row in zip(CHECKS, rows(), strict=True):
        assert words in row[0]
        assert len(row) == 4 and all(row), row


def test_every_row_names_tests_that_exist() -> None:
    for row in rows():
        named = _TEST.findall(row[2])
        assert named, row[0]
        for path, name in named:
            assert name in functions(ROOT / path), f"{row[0]}: {path} has no {name}"


def test_every_test_of_the_suite_is_in_a_row() -> None:
    named = {(path, name) for row in rows() for path, name in _TEST.findall(row[2])}
    for path in sorted(SUITE.glob("test_*.py")):
        for name in functions(path):
            assert (str(path.relative_to(ROOT)), name) in named, name
