"""Finds the first of a few short markers in a text that arrives in pieces, and closers that may follow a block."""

from __future__ import annotations

from collections.abc import Sequence

WHITESPACE = " \t\r\n"


def first_marker(text: str, markers: Sequence[str]) -> tuple[int, str] | None:
    """Where the first of `markers` begins, and which; of two that begin together the longer one."""
    best: tuple[int, int, str] | None = None
    for marker in markers:
        end = len(text) if best is None else best[0] + len(marker)
        position = text.find(marker, 0, end)
        if position >= 0 and (best is None or (position, -len(marker)) < best[:2]):
            best = (position, -len(marker), marker)
    return None if best is None else (best[0], best[2])


def possible_start(text: str, markers: Sequence[str]) -> int:
    """Position of the longest end of `text` that may be the beginning of a marker; its length without one."""
    earliest = len(text)
    for marker in markers:
        position = text.find(marker[0], max(0, len(text) - len(marker) + 1))
        while 0 <= position < earliest:
            if marker.startswith(text[position:]):
                earliest = position
                break
            position = text.find(marker[0], position + 1)
    return earliest


class MarkerFinder:
    """Cuts a text at the first marker. What may be the beginning of one waits for more text."""

    __slots__ = ("_first_chars", "_markers", "_waiting")

    def __init__(self, markers: Sequence[str]) -> None:
        """Of two markers that begin together, neither may be the beginning of the other."""
        self._markers = tuple(markers)
        self._first_chars = {marker[0] for marker in markers}
        self._waiting = ""

    def feed(self, text: str) -> tuple[str, str | None, str]:
        """(text that is certainly none, the marker found, what follows it)."""
        if not self._waiting and not any(char in text for char in self._first_chars):
            return text, None, ""
        text = self._waiting + text
        self._waiting = ""
        found = first_marker(text, self._markers)
        if found is not None:
            position, marker = found
            return text[:position], marker, text[position + len(marker) :]
        end = possible_start(text, self._markers)
        self._waiting = text[end:]
        return text[:end], None, ""

    def flush(self) -> str:
        """What waited: no marker comes of it any more."""
        text, self._waiting = self._waiting, ""
        return text


class TrailingSpace:
    """Keeps the whitespace at the end of a text back until it is known what follows."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: list[str] = []

    def feed(self, text: str) -> str:
        """What can be shown: everything held and `text` up to its last character that is not whitespace."""
        shown = text.rstrip(WHITESPACE)
        space = text[len(shown) :]
        if shown and self._held:
            shown = self.flush() + shown
        if space:
            self._held.append(space)
        return shown

    def flush(self) -> str:
        text = "".join(self._held)
        self._held.clear()
        return text

    def drop(self) -> None:
        self._held.clear()
