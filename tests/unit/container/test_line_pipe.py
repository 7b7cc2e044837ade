"""Lines of a child: cut anywhere, without end, larger than memory should hold, and last words."""

from __future__ import annotations

import os

from container.line_pipe import LinePipe


def pipe() -> tuple[LinePipe, list[bytes]]:
    lines: list[bytes] = []
    return LinePipe(lines.append), lines


def test_lines_are_whole_however_they_come() -> None:
    end, lines = pipe()
    for piece in (b"a", b"b\nc", b"\n\nd"):
        os.write(end.writer, piece)
        assert end.read()
    assert lines == [b"ab", b"c", b""]
    assert not end.read()  # nothing now
    end.close_writer()
    end.close()
    assert lines[-1] == b"d"


def test_a_line_without_end_comes_in_pieces() -> None:
    end, lines = pipe()
    for _ in range(5):
        os.write(end.writer, b"x" * 32_000)
        end.read()
    assert lines and all(len(line) < 100_000 for line in lines)
    end.close_writer()
    end.close()
    assert sum(map(len, lines)) == 160_000


def test_who_writes_on_does_not_hold_up_the_close() -> None:
    end, lines = pipe()
    os.write(end.writer, b"last\n")
    end.close()  # another process may still have the writing end
    assert lines == [b"last"]
    end.close_writer()
