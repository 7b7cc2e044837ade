"""Reading logs call by call: every line once, in order, whatever happens to the files between."""

from __future__ import annotations

from pathlib import Path

import pytest

from local_mode.hosting.logs import LogFile
from local_mode.playground.log_tail import FIRST_BYTES, STEP_BYTES, BadCursor, tail


def texts(folder: Path, after: str | None = None) -> tuple[list[str], str]:
    read = tail([folder], after)
    return [line.text for line in read.lines], read.cursor


def test_the_end_first_then_what_is_added(tmp_path: Path) -> None:
    log = tmp_path / "all" / "i-1.log"
    log.parent.mkdir()
    log.write_text("one\ntwo\nhalf a li")
    lines, cursor = texts(tmp_path)
    assert lines == ["one", "two"]
    assert texts(tmp_path, cursor) == ([], cursor)
    with log.open("a") as file:
        file.write("ne\n<b>three</b> é\n")
    assert texts(tmp_path, cursor)[0] == ["half a line", "<b>three</b> é"]


def test_streams_have_cloudwatchs_names_and_new_files_come_whole(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "i-1.log").write_text("old\n")
    first = tail([tmp_path])
    (tmp_path / "all" / "i-2").mkdir()
    (tmp_path / "all" / "i-2" / "second.log").write_text("new\n")
    second = tail([tmp_path], first.cursor)
    assert [(line.stream, line.text) for line in first.lines + second.lines] == [
        ("all/i-1", "old"),
        ("all/i-2/second", "new"),
    ]


def test_a_long_log_begins_at_a_line_and_comes_in_steps(tmp_path: Path) -> None:
    log = tmp_path / "i.log"
    numbered = [f"line {number}" for number in range(40_000)]
    log.write_text("".join(f"{line}\n" for line in numbered))
    lines, cursor = texts(tmp_path)
    assert lines == numbered[-len(lines) :]
    assert FIRST_BYTES - 20 < sum(len(line) + 1 for line in lines) <= FIRST_BYTES
    with log.open("a") as file:
        file.write("".join(f"{line}\n" for line in numbered))
    read: list[str] = []
    while more := (step := texts(tmp_path, cursor))[0]:
        assert sum(len(line) + 1 for line in more) <= STEP_BYTES
        cursor = step[1]
        read += more
    assert read == numbered
    assert len(log.read_bytes()) // 2 > STEP_BYTES


def test_a_line_longer_than_a_step_does_not_stop_it(tmp_path: Path) -> None:
    log = tmp_path / "i.log"
    log.write_text("begin\n")
    _, cursor = texts(tmp_path)
    with log.open("a") as file:
        file.write("x" * (STEP_BYTES + 10) + "\nend\n")
    seen = ""
    for _ in range(3):
        lines, cursor = texts(tmp_path, cursor)
        seen += "".join(lines)
    assert seen.endswith("xend")


def test_a_renamed_log_is_read_to_its_end(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "i.log", max_bytes=30)
    log.append(b"one\n")
    lines, cursor = texts(tmp_path)
    log.append(b"two, which makes it too long....\n")  # it becomes i.log.1
    log.append(b"three\n")
    log.close()
    assert (tmp_path / "i.log.1").exists()
    more, _ = texts(tmp_path, cursor)
    assert lines + more == ["one", "two, which makes it too long....", "three"]
    assert {line.stream for line in tail([tmp_path]).lines} == {"i"}


def test_a_cut_log_is_read_again_and_no_folder_is_no_log(tmp_path: Path) -> None:
    log = tmp_path / "i.log"
    log.write_text("one\ntwo\n")
    _, cursor = texts(tmp_path)
    log.write_text("new\n")
    assert texts(tmp_path, cursor)[0] == ["new"]
    assert texts(tmp_path / "missing") == ([], "")


@pytest.mark.parametrize("cursor", ["x", "1", "1-", "1-2.", "../etc", "1-2,3-4", "9" * 30 + "-1"])
def test_a_cursor_is_one_that_was_given(tmp_path: Path, cursor: str) -> None:
    with pytest.raises(BadCursor, match="is no cursor"):
        tail([tmp_path], cursor)
