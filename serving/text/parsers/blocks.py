"""A block of calls in a model's output, as JSON objects or as a name with a JSON object behind it.

Knows nothing of the text around a block.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Protocol

from serving.text.parsers.json_scanner import JsonScanner

MAX_WORD_CHARS = 256
MAX_HEAD_CHARS = 384

_WHITESPACE = " \t\n\r"
_NAME_KEYS = ("name", "tool_name")
_ARGUMENT_KEYS = ("arguments", "parameters")
# What models write besides: any other member means that the object is no call.
_IGNORED_KEYS = ("id", "type", "index", "tool_call_id")

# Reads the text between the start of a block and its first brace: the function's name, None when it has none.
HeadReader = Callable[[str], str | None]


class FoundCall:
    """A call whose name is known. Its `arguments` join to JSON text; the reader may take away what is there."""

    __slots__ = ("arguments", "name")

    def __init__(self, name: str, arguments: list[str]) -> None:
        self.name = name
        self.arguments = arguments


class CallBlock(Protocol):
    """Reads one block of calls. What it makes of a text does not depend on how the text is cut."""

    @property
    def calls(self) -> list[FoundCall]:
        """Found so far, the last one perhaps unfinished."""

    @property
    def done(self) -> bool: ...

    @property
    def broken(self) -> bool: ...

    @property
    def leftover(self) -> str:
        """Of a broken block: the end of what was fed, to be looked at again as plain text. Bounded."""

    def feed(self, text: str, position: int) -> int:
        """Read on at `position`; returns where the block ends or turns out to be none, else the end of `text`."""


class JsonCalls:
    """`{"name": …, "arguments": {…}}`, or with `several` also an array of them."""

    __slots__ = (
        "_arguments",
        "_array",
        "_expect",
        "_has_arguments",
        "_key",
        "_named",
        "_names",
        "_scanner",
        "_several",
        "_word",
        "_word_chars",
        "broken",
        "calls",
        "done",
    )

    def __init__(self, names: Collection[str], *, several: bool = True) -> None:
        self._names = names
        self._several = several
        self._array = False
        # Which of the methods below reads the next character that is not whitespace.
        self._expect: Callable[[str], bool] = self._start
        self._scanner: JsonScanner | None = None
        # A key, or the name: its text and how much of the input that was.
        self._word: list[str] = []
        self._word_chars = 0
        self.calls: list[FoundCall] = []
        self.done = False
        self.broken = False
        self._begin_object()

    def _begin_object(self) -> None:
        self._key = ""
        self._named = False
        self._has_arguments = False
        # Shared with the call, as soon as its name is known.
        self._arguments: list[str] = []

    def feed(self, text: str, position: int) -> int:
        while position < len(text) and not self.done and not self.broken:
            if self._scanner is not None:
                position = self._scan(text, position, self._scanner)
                continue
            char = text[position]
            if char not in _WHITESPACE and not self._expect(char):
                self.broken = True
                break
            # A value is read from its first character on by its own scanner.
            position += self._scanner is None
        return position

    def _scan(self, text: str, position: int, scanner: JsonScanner) -> int:
        if self._key and self._key not in _NAME_KEYS:
            position, piece = scanner.feed(text, position)
            if self._key in _ARGUMENT_KEYS and piece:
                self._arguments.append(piece)
        else:
            start, room = position, MAX_WORD_CHARS - self._word_chars
            position, piece = scanner.feed(text[: start + room], start)
            self._word.append(piece)
            self._word_chars += position - start
            self.broken = self._word_chars == MAX_WORD_CHARS
        self.broken = self.broken or scanner.broken
        if scanner.done:
            self._scanner = None
            self._expect = self._end_value() if self._key else self._end_key()
        return position

    @property
    def leftover(self) -> str:
        return ""

    def _start(self, char: str) -> bool:
        if char == "[" and self._several:
            self._array, self._expect = True, self._element
            return True
        return self._element(char)

    def _element(self, char: str) -> bool:
        self._begin_object()
        self._expect = self._member_key
        return char == "{"

    def _member_key(self, char: str) -> bool:
        self._key, self._scanner = "", JsonScanner()
        self._word, self._word_chars = [], 0
        return char == '"'

    def _end_key(self) -> Callable[[str], bool]:
        self._key = str(json.loads("".join(self._word)))
        repeated = (self._key in _NAME_KEYS and self._named) or (
            self._key in _ARGUMENT_KEYS and self._has_arguments
        )
        if repeated or self._key not in (*_NAME_KEYS, *_ARGUMENT_KEYS, *_IGNORED_KEYS):
            self.broken = True
        self._has_arguments = self._has_arguments or self._key in _ARGUMENT_KEYS
        return self._colon

    def _colon(self, char: str) -> bool:
        self._expect = self._value
        return char == ":"

    def _value(self, char: str) -> bool:
        self._scanner = JsonScanner()
        self._word, self._word_chars = [], 0
        if self._key in _NAME_KEYS:
            return char == '"'
        return self._key in _IGNORED_KEYS or char == "{"

    def _end_value(self) -> Callable[[str], bool]:
        if self._key in _NAME_KEYS:
            name = str(json.loads("".join(self._word)))
            if name in self._names:
                self._named = True
                self.calls.append(FoundCall(name, self._arguments))
            else:
                self.broken = True
        return self._next_member

    def _next_member(self, char: str) -> bool:
        if char == ",":
            self._expect = self._member_key
            return True
        if char != "}" or not self._named:
            return False
        if not self._has_arguments:
            self._arguments.append("{}")
        self._expect = self._next_element
        self.done = not self._array
        return True

    def _next_element(self, char: str) -> bool:
        if char == ",":
            self._expect = self._element
            return True
        self.done = char == "]"
        return self.done


class NamedCall:
    """A function's name, marked in some way, and the JSON object of its arguments."""

    __slots__ = ("_head", "_names", "_read_head", "_scanner", "broken", "calls", "done", "leftover")

    def __init__(self, names: Collection[str], read_head: HeadReader) -> None:
        """`read_head` gets everything before the object."""
        self._names = names
        self._read_head = read_head
        self._head = ""
        self._scanner: JsonScanner | None = None
        self.calls: list[FoundCall] = []
        self.done = False
        self.broken = False
        self.leftover = ""

    def feed(self, text: str, position: int) -> int:
        if self._scanner is None:
            brace = text.find("{", position)
            end = min(brace if brace >= 0 else len(text), position + MAX_HEAD_CHARS - len(self._head))
            self._head += text[position:end]
            position = end
            if len(self._head) == MAX_HEAD_CHARS:
                return self._give_up(position)
            if brace < 0:
                return position
            name = self._read_head(self._head)
            if name is None or name not in self._names:
                return self._give_up(position)
            self.calls.append(FoundCall(name, []))
            self._scanner = JsonScanner()
        position, piece = self._scanner.feed(text, position)
        if piece:
            self.calls[0].arguments.append(piece)
        self.done, self.broken = self._scanner.done, self._scanner.broken
        return position

    def _give_up(self, position: int) -> int:
        self.broken = True
        self.leftover = self._head
        return position


class Either:
    """One of two ways to write a block, told apart by its first character that is not whitespace."""

    __slots__ = ("_block", "_brackets", "_other")

    def __init__(self, brackets: CallBlock, other: CallBlock) -> None:
        """`brackets` reads what begins with `[` or `{`."""
        self._brackets = brackets
        self._other = other
        self._block: CallBlock | None = None

    @property
    def calls(self) -> list[FoundCall]:
        return [] if self._block is None else self._block.calls

    @property
    def done(self) -> bool:
        return self._block is not None and self._block.done

    @property
    def broken(self) -> bool:
        return self._block is not None and self._block.broken

    @property
    def leftover(self) -> str:
        return "" if self._block is None else self._block.leftover

    def feed(self, text: str, position: int) -> int:
        while self._block is None and position < len(text):
            if text[position] in _WHITESPACE:
                position += 1
            else:
                self._block = self._brackets if text[position] in "[{" else self._other
        return position if self._block is None else self._block.feed(text, position)
