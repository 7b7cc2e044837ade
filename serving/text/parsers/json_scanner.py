"""Follows one JSON value (RFC 8259) through text that arrives in pieces. Knows no tools."""

from __future__ import annotations

import re

MAX_DEPTH = 128

# One character class, no repetition: the search is a plain scan.
_STRING_BREAK = re.compile(r'["\\\x00-\x1f]')
_WHITESPACE = " \t\n\r"
_ESCAPES = '"\\/bfnrt'
_HEX_DIGITS = "0123456789abcdefABCDEF"
_DIGITS = "0123456789"
_CONTROL = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

# What may come next. Plain numbers: an Enum would double the time per character.
(
    _VALUE,
    _FIRST_ELEMENT,
    _FIRST_KEY,
    _KEY,
    _COLON,
    _NEXT,
    _STRING,
    _ESCAPE,
    _HEX,
    _LITERAL,
    _MINUS,
    _ZERO,
    _INTEGER,
    _DOT,
    _FRACTION,
    _E,
    _E_SIGN,
    _EXPONENT,
) = range(18)
_NUMBER_ENDS = {_ZERO, _INTEGER, _FRACTION, _EXPONENT}


def _number_step(at: int, char: str) -> int | None:
    """The state behind `char` inside a number, None when it does not belong to it."""
    if char in _DIGITS:
        if at in (_MINUS, _INTEGER):
            return _ZERO if at == _MINUS and char == "0" else _INTEGER
        if at in (_DOT, _FRACTION):
            return _FRACTION
        return _EXPONENT if at in (_E, _E_SIGN, _EXPONENT) else None
    if char == ".":
        return _DOT if at in (_ZERO, _INTEGER) else None
    if char in "eE":
        return _E if at in (_ZERO, _INTEGER, _FRACTION) else None
    return _E_SIGN if char in "+-" and at == _E else None


class JsonScanner:
    """Feed it text until `done` or `broken`. Each character is looked at once; state is one bit per open bracket.

    A raw control character in a string, which models write and JSON forbids, is taken as if it were escaped:
    `feed` gives it back escaped.
    """

    __slots__ = ("_at", "_brackets", "_key", "_rest", "broken", "done")

    def __init__(self) -> None:
        self._at = _VALUE
        self._brackets: list[str] = []
        # True inside a string that is a member's name.
        self._key = False
        # Characters still to come of a literal, or the number of hexadecimal digits.
        self._rest = ""
        self.done = False
        self.broken = False

    def feed(self, text: str, position: int) -> tuple[int, str]:
        """Read on at `position`. Returns where the value ends (or the offending character, or the end of `text`)
        and its text up to there. A number ends with the character behind it, which is not part of it."""
        pieces: list[str] = []
        start = position
        while position < len(text) and not self.done:
            char = text[position]
            if self._at == _STRING:
                found = _STRING_BREAK.search(text, position)
                if found is None:
                    position = len(text)
                    break
                position = found.start()
                char = text[position]
                if char < " ":
                    pieces += (text[start:position], _CONTROL.get(char, f"\\u{ord(char):04x}"))
                    start = position + 1
            ended_before = self._at in _NUMBER_ENDS and _number_step(self._at, char) is None
            if ended_before and self._end_value():
                break
            if not self._step(char):
                self.broken = True
                break
            position += 1
        pieces.append(text[start:position])
        return position, "".join(pieces)

    def _step(self, char: str) -> bool:
        at = self._at
        if at == _STRING:
            self._step_string(char)
        elif at == _ESCAPE:
            if char == "u":
                self._rest, self._at = "0000", _HEX
            elif char in _ESCAPES:
                self._at = _STRING
            else:
                return False
        elif at == _HEX:
            if char not in _HEX_DIGITS:
                return False
            self._rest = self._rest[1:]
            if not self._rest:
                self._at = _STRING
        elif at == _LITERAL:
            if char != self._rest[0]:
                return False
            self._rest = self._rest[1:]
            if not self._rest:
                self._end_value()
        elif at >= _MINUS:
            step = _number_step(at, char)
            if step is None:
                return False
            self._at = step
        else:
            return char in _WHITESPACE or self._step_structure(char)
        return True

    def _step_string(self, char: str) -> None:
        if char == "\\":
            self._at = _ESCAPE
        elif char == '"':
            if self._key:
                self._key, self._at = False, _COLON
            else:
                self._end_value()

    def _step_structure(self, char: str) -> bool:
        at = self._at
        if at == _COLON:
            self._at = _VALUE
            return char == ":"
        if at == _NEXT:
            return self._step_next(char)
        if (char == "]" and at == _FIRST_ELEMENT) or (char == "}" and at == _FIRST_KEY):
            self._brackets.pop()
            self._end_value()
            return True
        if at in (_FIRST_KEY, _KEY):
            self._key, self._at = True, _STRING
            return char == '"'
        return self._begin_value(char)

    def _step_next(self, char: str) -> bool:
        bracket = self._brackets[-1]
        if char == ",":
            self._at = _KEY if bracket == "{" else _VALUE
            return True
        if char != ("}" if bracket == "{" else "]"):
            return False
        self._brackets.pop()
        self._end_value()
        return True

    def _begin_value(self, char: str) -> bool:
        if char == '"':
            self._at = _STRING
        elif char in "{[":
            if len(self._brackets) == MAX_DEPTH:
                return False
            self._brackets.append(char)
            self._at = _FIRST_KEY if char == "{" else _FIRST_ELEMENT
        elif char in "tfn":
            self._rest = {"t": "rue", "f": "alse", "n": "ull"}[char]
            self._at = _LITERAL
        elif char == "-":
            self._at = _MINUS
        elif char in _DIGITS:
            self._at = _ZERO if char == "0" else _INTEGER
        else:
            return False
        return True

    def _end_value(self) -> bool:
        self._at = _NEXT
        self.done = not self._brackets
        return self.done
