"""One answer of a chat: reasoning first, then text and calls."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter

from serving.text.parsers.contract import MessageDelta
from serving.text.parsers.reasoning import ReasoningSplitter
from serving.text.parsers.splitter import CallSplitter

# The splitters copy the rest of what they are given at every step: longer texts are given to them in slices.
_SLICE_CHARS = 1024


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
        if len(text) <= _SLICE_CHARS:
            return self._push(text)
        starts = range(0, len(text), _SLICE_CHARS)
        return _joined([self._push(text[start : start + _SLICE_CHARS]) for start in starts])

    def _push(self, text: str) -> MessageDelta:
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


def _joined(deltas: Sequence[MessageDelta]) -> MessageDelta:
    joined = MessageDelta(
        content="".join(delta.content for delta in deltas),
        reasoning="".join(delta.reasoning for delta in deltas),
    )
    calls = [call for delta in deltas for call in delta.tool_calls]
    for _, pieces in groupby(calls, key=attrgetter("index")):
        first, *others = pieces
        first.arguments = "".join([first.arguments, *(piece.arguments for piece in others)])
        joined.tool_calls.append(first)
    return joined
