"""The end of a few log files, then what is added to them, call by call. Keeps nothing between the calls: a cursor says
how far the caller has read, by inode, so that a file which was renamed when it grew too long is read on to its end."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

FIRST_BYTES = 64 * 1024
"""Of each file, for a caller who has read nothing."""
STEP_BYTES = 256 * 1024
"""Of each file and call; the rest comes with the next."""
_CURSOR = re.compile(r"(\d{1,20}-\d{1,20}(\.\d{1,20}-\d{1,20})*)?")


@dataclass(frozen=True, slots=True)
class Line:
    stream: str
    """The file, as CloudWatch would name its log stream."""
    text: str


@dataclass(frozen=True, slots=True)
class Tail:
    lines: list[Line]
    cursor: str


class BadCursor(ValueError):
    """Not something that `tail` gave."""


def tail(folders: Iterable[Path], after: str | None = None) -> Tail:
    """Whole lines of every log in `folders`, file by file. Raises `BadCursor`."""
    seen = _parse(after) if after is not None else None
    lines: list[Line] = []
    reached: dict[int, int] = {}
    for path, stream in _files(folders):
        try:
            with path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                size = file.seek(0, os.SEEK_END)
                if seen is not None:
                    start = seen.get(inode, 0)
                    start = start if start <= size else 0
                else:
                    start = _line_start(file.fileno(), max(0, size - FIRST_BYTES))
                content = os.pread(file.fileno(), STEP_BYTES, start)
        except OSError:  # it was just removed with its endpoint
            continue
        whole = content[: content.rfind(b"\n") + 1] or (content if len(content) == STEP_BYTES else b"")
        reached[inode] = start + len(whole)
        lines += [Line(stream, text) for text in whole.decode(errors="replace").split("\n")[:-1] if text]
    return Tail(lines, ".".join(f"{inode}-{offset}" for inode, offset in reached.items()))


def _parse(cursor: str) -> dict[int, int]:
    if not _CURSOR.fullmatch(cursor):
        raise BadCursor(f"'{cursor[:80]}' is no cursor: use the one of the last answer, or none")
    pairs = (pair.split("-") for pair in cursor.split(".") if pair)
    return {int(inode): int(offset) for inode, offset in pairs}


def _files(folders: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """With their streams' names, the file that is written to last coming last."""
    for folder in folders:
        found = [*folder.rglob("*.log"), *folder.rglob("*.log.1")]
        for path in sorted(found, key=_modified):
            yield path, str(path.relative_to(folder)).removesuffix(".1").removesuffix(".log")


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _line_start(fd: int, offset: int) -> int:
    """The first line that begins at `offset` or later."""
    if offset == 0:
        return 0
    cut = os.pread(fd, FIRST_BYTES, offset - 1).find(b"\n")
    return offset if cut < 0 else offset + cut
