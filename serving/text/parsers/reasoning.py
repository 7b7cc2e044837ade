"""Reasoning: how models mark it, the part of an answer that it is, and where the constrained part of an answer begins.

Knows nothing of tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from serving.sampling_params import Grammar
from serving.text.parsers.contract import MessageDelta
from serving.text.parsers.lark import LarkGrammar
from serving.text.parsers.markers import WHITESPACE, MarkerFinder, TrailingSpace


class Phase(Enum):
    """Where in an answer we are. In UNKNOWN the answer has not begun and may begin with reasoning."""

    UNKNOWN = auto()
    REASONING = auto()
    ANSWER = auto()


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """Reasoning stands between one of `opens` and one of `closes`, at the beginning of an answer.

    `implicit`: answers begin inside the reasoning even when the prompt does not end with an opening marker.
    """

    name: str
    opens: tuple[str, ...]
    closes: tuple[str, ...]
    implicit: bool = False
    special_ids: Mapping[str, int] = field(default_factory=dict)

    @property
    def markers(self) -> tuple[str, ...]:
        return (*self.opens, *self.closes)

    def first_phase(self, prompt_text: str) -> Phase:
        """The phase that the answer to `prompt_text` begins in: templates write the opening marker, or both."""
        prompt_text = prompt_text[-256:].rstrip(WHITESPACE)
        if prompt_text.endswith(self.closes):
            return Phase.ANSWER
        if self.implicit or prompt_text.endswith(self.opens):
            return Phase.REASONING
        return Phase.UNKNOWN

    def wrap(self, grammar: Grammar, *, prompt_text: str = "") -> Grammar:
        """Free reasoning, then what `grammar` describes. Raises nothing: a broken grammar stays broken."""
        lark = LarkGrammar(self.special_ids)
        before = self.before(lark, prompt_text)
        return lark.build(f"{before} {lark.embed('constrained', grammar)}") if before else grammar

    def before(self, lark: LarkGrammar, prompt_text: str) -> str:
        """The reasoning as an expression to stand before a constrained part; "" when none can come."""
        phase = self.first_phase(prompt_text)
        if phase is Phase.ANSWER:
            return ""
        reasoning = lark.text_up_to("thoughts", self.closes, self.opens)
        if phase is Phase.REASONING:
            return f"{reasoning} {lark.space()}"
        opens = " | ".join(map(lark.literal, self.opens))
        return f"(({opens}) {reasoning} {lark.space()})?"


class ReasoningSplitter:
    """Takes the reasoning off the front of an answer; what follows goes back to the caller as it is.

    Whitespace around the reasoning is dropped: templates put it there.
    """

    __slots__ = ("_closes", "_format", "_opened", "_phase", "_space", "_waiting")

    def __init__(self, reasoning: ReasoningFormat, *, prompt_text: str = "") -> None:
        self._format = reasoning
        self._phase = reasoning.first_phase(prompt_text)
        self._closes = MarkerFinder(
            [marker for marker in reasoning.closes if marker not in reasoning.special_ids]
        )
        self._space = TrailingSpace()
        # At the start of a part, where whitespace is skipped: what may be an opening marker; elsewhere None.
        self._waiting: str | None = "" if self._phase is not Phase.ANSWER else None
        self._opened = False

    def push(self, text: str, delta: MessageDelta) -> str:
        """Add reasoning to `delta`; returns what belongs to the answer."""
        if self._waiting is not None:
            text = self._push_start(self._waiting + text)
        if self._phase is Phase.REASONING and self._waiting is None:
            shown, marker, rest = self._closes.feed(text)
            delta.reasoning += self._space.feed(shown)
            if marker is None:
                return ""
            self._end()
            return self.push(rest, delta)
        return text

    def push_special(self, spelling: str, delta: MessageDelta) -> bool:
        """True when the token was a marker of the reasoning, or stands inside of it."""
        if self._phase is Phase.UNKNOWN and spelling in self._format.opens:
            self._phase, self._opened, self._waiting = Phase.REASONING, True, ""
            return True
        if self._phase is not Phase.REASONING:
            return False
        if spelling in self._format.closes:
            delta.reasoning += self._space.feed((self._waiting or "") + self._closes.flush())
            self._end()
        return True

    def skip(self) -> str:
        """A special token begins the answer: no reasoning comes any more. Returns text that waited for it."""
        if self._phase is not Phase.UNKNOWN:
            return ""
        self._phase = Phase.ANSWER
        waiting, self._waiting = self._waiting or "", None
        return self._space.flush() + waiting

    def finish(self, delta: MessageDelta) -> str:
        """Add what was held back; returns what belongs to the answer."""
        if self._phase is Phase.REASONING:
            delta.reasoning += (
                self._space.feed((self._waiting or "") + self._closes.flush()) + self._space.flush()
            )
        return self.skip()

    def _end(self) -> None:
        self._space.drop()
        self._phase, self._waiting = Phase.ANSWER, ""

    def _push_start(self, text: str) -> str:
        """Skip whitespace and an opening marker. Returns what is certainly behind them; the rest waits."""
        stripped = text.lstrip(WHITESPACE)
        if self._phase is Phase.UNKNOWN:
            self._space.feed(text[: len(text) - len(stripped)])
        self._waiting = ""
        if not stripped:
            return ""
        if self._phase is not Phase.ANSWER and not self._opened:
            for marker in self._format.opens:
                if stripped.startswith(marker):
                    self._phase, self._opened = Phase.REASONING, True
                    self._space.drop()
                    return self._push_start(stripped[len(marker) :])
            if any(marker.startswith(stripped) for marker in self._format.opens):
                self._waiting = stripped
                return ""
        self._waiting = None
        if self._phase is Phase.UNKNOWN:
            self._phase = Phase.ANSWER
            return self._space.flush() + stripped
        return stripped
