"""One answer of a chat: reasoning first, then text and calls."""

from __future__ import annotations

from serving.text.parsers.contract import MessageDelta
from serving.text.parsers.reasoning import ReasoningSplitter
from serving.text.parsers.splitter import CallSplitter


class AnswerParser:
    """A `MessageParser` made of the two splitters; either may be absent."""

    __slots__ = ("_calls", "_reasoning")

    def __init__(self, reasoning: ReasoningSplitter | None, calls: CallSplitter | None) -> None:
        self._reasoning = reasoning
        self._calls = calls

    @property
    def called_tools(self) -> bool:
        return self._calls is not None and self._calls.called_tools

    def push(self, text: str) -> MessageDelta:
        delta = MessageDelta()
        if self._reasoning is not None:
            text = self._reasoning.push(text, delta)
        self._add(text, delta)
        return delta

    def push_special(self, spelling: str) -> MessageDelta:
        delta = MessageDelta()
        if self._reasoning is not None and self._reasoning.push_special(spelling, delta):
            return delta
        if self._calls is not None and self._calls.knows(spelling):
            if self._reasoning is not None:
                self._add(self._reasoning.skip(), delta)
            self._calls.push_special(spelling, delta)
        return delta

    def finish(self) -> MessageDelta:
        delta = MessageDelta()
        if self._reasoning is not None:
            self._add(self._reasoning.finish(delta), delta)
        if self._calls is not None:
            self._calls.finish(delta)
        return delta

    def _add(self, text: str, delta: MessageDelta) -> None:
        if self._calls is None:
            delta.content += text
        else:
            self._calls.push(text, delta)
