"""The sections of the record: their command lines are understood, and what is finished is not done again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import compare, suite


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    ran: list[list[str]] = []

    def run(command: list[str]) -> int:
        ran.append(command)
        return suite.UNFINISHED if "vllm-32m" in command[-1] else 0

    monkeypatch.setattr(suite, "_run", run)
    return ran


@pytest.mark.parametrize(
    "section", [one for one in suite.SECTIONS if one.can_resume], ids=lambda one: one.name
)
def test_every_section_is_a_comparison_that_there_is(section: suite.Section) -> None:
    options = compare.parse(list(section.arguments))
    assert options.rounds == 3 or section.name.startswith(("long", "arrivals", "prefix64"))


def test_sections_run_in_order_with_records_of_their_own(commands: list[list[str]], tmp_path: Path) -> None:
    arguments = [
        "--only",
        "prefix-32m",
        "front",
        "--out",
        str(tmp_path),
        "--date",
        "2026-01-02",
        "--rounds",
        "1",
    ]
    assert suite.main(arguments) == 0
    [prefix, front] = commands
    assert prefix[:3] == [sys.executable, "-m", "benchmarks.compare"]
    assert str(tmp_path / "2026-01-02-prefix-32m.json") in prefix
    assert prefix[-2:] == ["--rounds", "1"]
    assert front[2:] == ["benchmarks.front", "--output", str(tmp_path / "2026-01-02-front.json")]


def test_a_section_that_ran_out_of_time_ends_the_piece(commands: list[list[str]], tmp_path: Path) -> None:
    arguments = ["--only", "vllm-32m", "front", "--out", str(tmp_path)]
    assert suite.main(arguments) == suite.UNFINISHED
    assert len(commands) == 1


def test_no_section_begins_when_time_is_nearly_up(commands: list[list[str]], tmp_path: Path) -> None:
    assert suite.main(["--only", "front", "--out", str(tmp_path), "--limit-s", "5"]) == suite.UNFINISHED
    assert commands == []


def test_what_is_finished_is_skipped(commands: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "2026-01-02-front.json").write_text("{}")
    assert suite.main(["--only", "front", "--out", str(tmp_path), "--date", "2026-01-02"]) == 0
    assert commands == []


def test_an_unknown_section_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no section wrong"):
        suite.main(["--only", "wrong", "--out", str(tmp_path)])
