"""Keeps the spelling of a control token in somebody's text from becoming that token.

Before a chat is rendered, a mark goes into every such spelling; afterwards the prompt is cut at the marks and the pieces
are tokenized one by one, so that no piece spells a token that the template did not write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

# A Unicode noncharacter: never assigned, not in any text that is meant to be read.
MARK = "\ufdd0"

Json = Any
Encode = Callable[[str], list[int]]


class ControlText:
    """The spellings of one tokenizer's control tokens. One of a single character cannot be kept apart."""

    __slots__ = ("_prefixes", "_spelling", "_spellings")

    def __init__(self, spellings: Collection[str]) -> None:
        self._spellings = frozenset(spelling for spelling in spellings if len(spelling) > 1)
        # Longer ones first, so that a spelling that contains another is found whole. Literals only: the search is
        # linear in the text.
        alternatives = sorted(map(re.escape, self._spellings), key=len, reverse=True)
        self._spelling = re.compile("|".join(alternatives) or "(?!)")
        self._prefixes = {
            spelling[:length]: length for spelling in self._spellings for length in range(1, len(spelling))
        }

    def holds(self, part: str) -> bool:
        """Whether `part` is written in one of the spellings."""
        return any(part in spelling for spelling in self._spellings)

    def marked(self, value: Json) -> Json:
        """`value`, plain JSON, with a mark inside each spelling in its texts and names; marks it had are removed.

        A text that ends with the beginning of a spelling gets a mark there: what follows might complete it.
        """
        if isinstance(value, str):
            return self._mark(value)
        if isinstance(value, list):
            return [self.marked(item) for item in value]
        if isinstance(value, Mapping):
            return {self.marked(key): self.marked(item) for key, item in value.items()}
        return value

    def _mark(self, text: str) -> str:
        text = text.replace(MARK, "")
        # What one mark leaves can be another spelling: `<s>` is in `<<s>>`.
        while self._spelling.search(text):
            text = self._spelling.sub(_broken, text)
        # A word alone may be a role or another name that templates compare.
        if not text.isidentifier() and self._ends_open(text):
            text += MARK
        return text

    def _ends_open(self, text: str) -> bool:
        longest = max(self._prefixes.values(), default=0)
        return any(text[-length:] in self._prefixes for length in range(1, min(longest, len(text)) + 1))


def _broken(match: re.Match[str]) -> str:
    return match[0][:1] + MARK + match[0][1:]


class MarkedEncoder:
    """Tokenizes prompts with marks. `encode` adds no tokens of its own."""

    __slots__ = ("_encode", "_newline_ids", "_prefixes_texts")

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._newline_ids = encode("\n")
        # SentencePiece tokenizers put a blank before a text, which the middle of a text must not get.
        self._prefixes_texts = self._newline_ids + encode("a") != encode("\na")

    def __call__(self, prompt: str) -> list[int]:
        """The ids of `prompt`, marks left out; without a mark those of one `encode`."""
        first, *others = prompt.split(MARK)
        ids = self._encode(first)
        for piece in others:
            if piece:
                ids = ids + self._middle(piece)
        return ids

    def _middle(self, piece: str) -> list[int]:
        if self._prefixes_texts:
            ids = self._encode("\n" + piece)
            length = len(self._newline_ids)
            if ids[:length] == self._newline_ids:
                return ids[length:]
        return self._encode(piece)


def unmarked(prompt: str) -> str:
    """The prompt as people read it."""
    return prompt.replace(MARK, "")
