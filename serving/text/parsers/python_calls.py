"""Calls written as Python: `[f(a=1, b="x"), g()]`. Literals are read by hand, nothing is ever evaluated."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection

from serving.text.parsers.blocks import FoundCall
from serving.text.parsers.json_scanner import MAX_DEPTH, JsonScanner

MAX_WORD_CHARS = 256

_WHITESPACE = " \t\n\r"
_WORD_PUNCTUATION = "_.-+"
_CONSTANTS = {
    "True": "true",
    "False": "false",
    "None": "null",
    "true": "true",
    "false": "false",
    "null": "null",
}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0", "\n": ""}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_HEX = "0123456789abcdefABCDEF"
_CLOSERS = {"[": "]", "(": ")", "{": "}"}


class PythonCalls:
    """A list of calls with keyword arguments, or with `**{…}` alone. What it finds are the arguments as JSON text.

    JSON's `true`, `false` and `null` are understood as well. One character is looked at once; memory is bounded by
    the names of a call's arguments and the open brackets.
    """

    __slots__ = (
        "_brackets",
        "_digits",
        "_expect",
        "_keywords",
        "_names",
        "_quote",
        "_string",
        "_unpacked",
        "_word",
        "broken",
        "calls",
        "done",
    )

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._expect: Callable[[str], bool] = self._open
        # The quote that ends the string at hand; "" outside of strings.
        self._quote = ""
        # Inside a string: reads the character behind a backslash, and the digits of a code.
        self._string: Callable[[str], str | None] | None = None
        self._digits = ""
        self._word = ""
        self._brackets: list[str] = []
        self._keywords: set[str] = set()
        self._unpacked = False
        self.calls: list[FoundCall] = []
        self.done = False
        self.broken = False

    @property
    def leftover(self) -> str:
        return ""

    def feed(self, text: str, position: int) -> int:
        while position < len(text) and not self.done and not self.broken:
            char = text[position]
            if self._quote:
                self.broken = not self._read_string(char)
            elif char.isalnum() or char in _WORD_PUNCTUATION:
                self._word += char
                self.broken = len(self._word) > MAX_WORD_CHARS
            elif (self._word or char not in _WHITESPACE) and not self._read_token(char):
                self.broken = True
            if self.broken:
                break
            position += 1
        return position

    def _read_token(self, char: str) -> bool:
        """Read the word that ends before `char`, if any, and `char` itself."""
        if self._word:
            word, self._word = self._word, ""
            if not self._expect(word):
                return False
        return char in _WHITESPACE or self._expect(char)

    def _emit(self, text: str) -> bool:
        self.calls[-1].arguments.append(text)
        return True

    def _open(self, token: str) -> bool:
        self._expect = self._function
        return token == "["

    def _function(self, token: str) -> bool:
        if token not in self._names:
            return False
        self.calls.append(FoundCall(token, []))
        self._keywords = set()
        self._unpacked = False
        self._expect = self._parenthesis
        return True

    def _parenthesis(self, token: str) -> bool:
        self._expect = self._keyword
        return token == "("

    def _keyword(self, token: str) -> bool:
        if token == ")":
            self._expect = self._next_call
            return self._emit("}" if self._keywords else "{}")
        if token == "*" and not self._keywords:
            self._expect = self._second_star
            return True
        if not token.replace("-", "_").isidentifier() or token in self._keywords:
            return False
        self._emit(("{" if not self._keywords else ", ") + json.dumps(token, ensure_ascii=False) + ": ")
        self._keywords.add(token)
        self._expect = self._equals
        return True

    def _second_star(self, token: str) -> bool:
        self._unpacked = True
        self._expect = self._unpacked_object
        return token == "*"

    def _unpacked_object(self, token: str) -> bool:
        return token == "{" and self._value(token)

    def _equals(self, token: str) -> bool:
        self._expect = self._value
        return token == "="

    def _value(self, token: str) -> bool:
        if token in ("'", '"'):
            return self._begin_string(token)
        if token in _CLOSERS:
            if len(self._brackets) == MAX_DEPTH:
                return False
            self._brackets.append(token)
            self._expect = self._first_key if token == "{" else self._first_element
            return self._emit("{" if token == "{" else "[")
        value = _CONSTANTS.get(token) or _number(token)
        if value is None:
            return False
        self._end_value()
        return self._emit(value)

    def _end_value(self) -> None:
        self._expect = self._next_item if self._brackets else self._next_keyword

    def _next_keyword(self, token: str) -> bool:
        if token == ",":
            self._expect = self._keyword
            return not self._unpacked
        if token != ")":
            return False
        self._expect = self._next_call
        return self._unpacked or self._emit("}")

    def _first_element(self, token: str) -> bool:
        return self._close(token) if token in "])" else self._value(token)

    def _first_key(self, token: str) -> bool:
        return self._close(token) if token == "}" else self._key(token)

    def _key(self, token: str) -> bool:
        return token in ("'", '"') and self._begin_string(token, key=True)

    def _colon(self, token: str) -> bool:
        self._expect = self._value
        return token == ":" and self._emit(": ")

    def _next_item(self, token: str) -> bool:
        if token == ",":
            self._expect = self._further_key if self._brackets[-1] == "{" else self._further_element
            return True
        return token in "])}" and self._close(token)

    def _further_element(self, token: str) -> bool:
        # Python allows a comma behind the last element, JSON does not: it is written only before a further one.
        return self._close(token) if token in "])" else self._emit(", ") and self._value(token)

    def _further_key(self, token: str) -> bool:
        return self._close(token) if token == "}" else self._emit(", ") and self._key(token)

    def _close(self, token: str) -> bool:
        if token != _CLOSERS[self._brackets.pop()]:
            return False
        self._end_value()
        return self._emit("}" if token == "}" else "]")

    def _next_call(self, token: str) -> bool:
        self._expect = self._function
        self.done = token == "]"
        return self.done or token == ","

    def _begin_string(self, quote: str, *, key: bool = False) -> bool:
        self._quote = quote
        if key:
            self._expect = self._colon
        else:
            self._end_value()
        return self._emit('"')

    def _read_string(self, char: str) -> bool:
        if self._string is not None:
            text = self._string(char)
            return text is not None and self._emit(text)
        if char == "\\":
            self._string = self._escape
        elif char == self._quote:
            self._quote = ""
            return self._emit('"')
        else:
            return self._emit(_json_char(char))
        return True

    def _escape(self, char: str) -> str | None:
        """JSON text of an escape sequence that goes on with `char`, "" while it is unfinished."""
        if char in _HEX_DIGITS:
            self._digits = ""
            self._string = lambda digit: self._code(digit, _HEX_DIGITS[char])
            return ""
        self._string = None
        if char in ("\\", "'", '"'):
            return _json_char(char)
        escaped = _ESCAPES.get(char)
        # Python keeps the backslash of a sequence that it does not know.
        return _json_char("\\") + _json_char(char) if escaped is None else "".join(map(_json_char, escaped))

    def _code(self, digit: str, num_digits: int) -> str | None:
        if digit not in _HEX:
            return None
        self._digits += digit
        if len(self._digits) < num_digits:
            return ""
        self._string = None
        code = int(self._digits, 16)
        return _json_char(chr(code)) if code <= 0x10FFFF else None


def _json_char(char: str) -> str:
    """`char` inside a JSON string. A surrogate stays an escape: it cannot be sent as UTF-8."""
    if " " <= char <= "~" and char not in '"\\':
        return char
    return json.dumps(char, ensure_ascii="\ud800" <= char <= "\udfff")[1:-1]


def _number(word: str) -> str | None:
    """JSON text of a Python number, None when `word` is none."""
    scanner = JsonScanner()
    if scanner.feed(word + " ", 0)[0] == len(word) and scanner.done and word[0] in "-0123456789":
        return word
    if not set(word) <= set("0123456789.eE+-_"):
        return None
    try:
        value = float(word)
    except ValueError:
        return None
    return json.dumps(value) if math.isfinite(value) else None
