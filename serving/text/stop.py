"""Finds the first stop string in a text that arrives in pieces. Knows characters only, not tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from serving.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class StopMatch:
    """`text[start:end]` is the stop string; positions count characters from the first one ever pushed or skipped."""

    start: int
    end: int


class StopMatcher:
    """Searches for several strings at once, in time linear in the text for each (Knuth, Morris, Pratt 1977).

    The match is the one that ends first; of two that end together, the one that starts first.
    """

    __slots__ = ("_automata", "_num_chars", "match")

    def __init__(self, stops: Iterable[str]) -> None:
        """Raises `InvalidRequest` for an empty stop string: it would match before any text."""
        self._automata = [_Automaton(stop) for stop in stops]
        self._num_chars = 0
        self.match: StopMatch | None = None

    @property
    def searches(self) -> bool:
        """False without stop strings."""
        return bool(self._automata)

    def push(self, text: str) -> StopMatch | None:
        """Search on in `text`, which follows everything pushed before. After a match nothing may follow."""
        if self.match is not None:
            raise ValueError("the text ended with the match: nothing can follow")
        for automaton in self._automata:
            end = automaton.feed(text)
            if end is None:
                continue
            # Later automata need to look no further than the best match so far ends.
            text = text[:end]
            end += self._num_chars
            found = StopMatch(end - len(automaton.stop), end)
            if self.match is None or (found.end, found.start) < (self.match.end, self.match.start):
                self.match = found
        self._num_chars += len(text)
        return self.match

    def skip(self, text: str) -> None:
        """Count `text`, which comes before everything that is pushed, without searching it."""
        self._num_chars += len(text)

    @property
    def hold_back(self) -> int:
        """How many of the last characters may be the beginning of a stop string; 0 after a match."""
        if self.match is not None:
            return 0
        return max((automaton.num_matched for automaton in self._automata), default=0)


class _Automaton:
    __slots__ = ("_borders", "num_matched", "stop")

    def __init__(self, stop: str) -> None:
        if not stop:
            raise InvalidRequest(
                "`stop` holds an empty string, must hold texts of at least one character", field="stop"
            )
        self.stop = stop
        # _borders[k] is the length of the longest proper prefix of stop[:k] that is also its suffix. Filled
        # only as far as a text has matched, so that a huge stop string costs nothing up front.
        self._borders = [0, 0]
        self.num_matched = 0

    def feed(self, text: str) -> int | None:
        """Position in `text` just behind the first match, None when there is none."""
        stop, matched, position = self.stop, self.num_matched, 0
        while True:
            if matched == len(stop):
                self.num_matched = 0
                return position
            if position == len(text):
                break
            if matched == 0:
                position = text.find(stop[0], position) + 1
                if position == 0:
                    break
                matched = 1
            elif text[position] == stop[matched]:
                matched += 1
                position += 1
            else:
                matched = self._border(matched)
        self.num_matched = matched
        return None

    def _border(self, length: int) -> int:
        stop, borders = self.stop, self._borders
        while len(borders) <= length:
            last = stop[len(borders) - 1]
            border = borders[-1]
            while border and stop[border] != last:
                border = borders[border]
            borders.append(border + 1 if stop[border] == last else 0)
        return borders[length]
