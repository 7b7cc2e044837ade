"""The reading end of a pipe on which a child writes lines. Knows no meaning of them."""

from __future__ import annotations

import os
from collections.abc import Callable

_READ_BYTES = 64 * 1024
_MAX_LINE_BYTES = 64 * 1024
_LAST_READS = 8
"""What a pipe of the usual size still holds when its writer has ended, with room to spare; others may hold it open and
write on."""


class LinePipe:
    """Hands every line, without its end, to `take`; one that is longer than 64 KiB in pieces."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._buffer = b""
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)

    def close_writer(self) -> None:
        """The child has it now."""
        os.close(self.writer)

    def read(self) -> bool:
        """Read once. False when there is nothing more now, or ever."""
        try:
            data = os.read(self.reader, _READ_BYTES)
        except BlockingIOError:
            return False
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) >= _MAX_LINE_BYTES:
            lines.append(self._buffer)
            self._buffer = b""
        for line in lines:
            self._take(line)
        return bool(data)

    def close(self) -> None:
        """Hand over what is left, and close."""
        for _ in range(_LAST_READS):
            if not self.read():
                break
        if self._buffer:
            self._take(self._buffer)
        os.close(self.reader)
