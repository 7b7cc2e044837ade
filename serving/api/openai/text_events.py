"""The short way of a token's text through the OpenAI routes: chunks that differ in nothing but the text are made once,
with a gap. Knows no route's shape.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

_encode = msgspec.json.Encoder().encode


class Answer(Protocol):
    """One choice, as it reads its sequence."""

    def expects(self) -> bool:
        """Whether the next text is shown as it is, and nothing of its token but the text."""
        ...

    def pass_on(self, text: str) -> None:
        """Take the text of one token."""
        ...


@dataclass(slots=True, frozen=True)
class Gap:
    """The bytes of a chunk before and after its text."""

    before: bytes
    after: bytes

    def filled(self, text: str) -> bytes:
        return self.before + _encode(text) + self.after


def gap_of(chunk: Callable[[str], bytes]) -> Gap:
    """`chunk` makes a chunk that has a text once, in JSON."""
    mark = secrets.token_hex(16)  # in nothing that a client has chosen
    before, _, after = chunk(mark).partition(_encode(mark))
    return Gap(before, after)


@dataclass(slots=True)
class TextEvents:
    """Chunks of plain tokens (`PlainEvents`) of a call with one choice."""

    answer: Answer
    gap: Gap
    begun: bool
    """False as long as something has to come before the text."""

    def expects(self) -> bool:
        return self.begun and self.answer.expects()

    def event(self, token_id: int, text: str, logprob: float) -> bytes:
        self.answer.pass_on(text)
        return self.gap.filled(text) if text else b""
