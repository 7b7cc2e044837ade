"""Log files laid out as CloudWatch names its groups and streams. A container's lines stay as it printed them; lines of the
platform (downloads, limits it cannot enforce) carry a time stamp and the word `platform`. Knows no container.
"""

from __future__ import annotations

import json
import logging
import os
import re
from datetime import UTC, datetime
from pathlib import Path

_log = logging.getLogger("local_mode.hosting")

MAX_LOG_BYTES = 32 * 1024 * 1024
_TAIL_BYTES = 64 * 1024
_REASON = re.compile(r" failed .*?\breason=(\"(?:[^\"\\]|\\.)*\"|\S+)")


class LogFile:
    """Appends to one file; a file over `max_bytes` becomes `<name>.1`, whose predecessor goes."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_LOG_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = self._open()

    def append(self, content: bytes) -> None:
        """What a full disk does not take is lost: it must not cost the container that printed it."""
        try:
            os.write(self._fd, content)
            written = os.fstat(self._fd)
            if written.st_size > self._max_bytes:
                self._rotate(written)
        except OSError as error:
            _log.warning("%s: %s", self._path, error.strerror or error)

    def close(self) -> None:
        os.close(self._fd)

    def _rotate(self, written: os.stat_result) -> None:
        """Only what still has the name: `note` may have rotated it already."""
        if os.path.samestat(written, self._path.stat()):
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        fresh = self._open()
        os.close(self._fd)
        self._fd = fresh

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def note(path: Path, text: str) -> None:
    """One line of the platform's own."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    log = LogFile(path)
    log.append(f"{stamp} INFO platform {' '.join(text.split())}\n".encode())
    log.close()


def tail(path: Path) -> list[str]:
    """The last lines, without empty ones."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            content = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in content.splitlines() if line.strip()]


def last_words(path: Path) -> str | None:
    """Why a container failed, as its log says: its last `failed reason=…`, else its last line."""
    lines = [line for line in tail(path) if " INFO platform " not in line]
    for line in reversed(lines):
        reason = _reason(line)
        if reason is not None:
            return reason
    return lines[-1] if lines else None


def _reason(line: str) -> str | None:
    try:
        entry = json.loads(line)
    except ValueError:
        found = _REASON.search(line)
        if found is None:
            return None
        text = found[1]
        return str(json.loads(text)) if text.startswith('"') else text
    if isinstance(entry, dict) and entry.get("message") == "failed" and entry.get("reason"):
        return str(entry["reason"])
    return None
