"""What a client of the OpenAI routes sees of one sequence: no stop string, no special token, and the tool calls and
the reasoning taken out of the text. Knows nothing of HTTP; streams and whole answers are the same calls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import msgspec

from serving.text.parsers.contract import MessageDelta, MessageParser, ToolCallDelta
from serving.text.sequence_text import TokenText
from serving.text.stop import StopMatch

_FINISH_REASONS = {"eos_token": "stop", "stop_sequence": "stop"}


class AnswerDelta(msgspec.Struct):
    """What one `take` adds. `tokens` are those whose text it shows, for logprobs: no special token, none of a stop
    string; a token that a stop string begins in is cut to what is shown of it."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = []
    tokens: list[TokenText] = []

    @property
    def empty(self) -> bool:
        return not (self.content or self.reasoning or self.tool_calls or self.tokens)


class TextSource(Protocol):
    """What is needed of a `SequenceText`."""

    finish_reason: str | None

    @property
    def num_chars(self) -> int: ...

    @property
    def hold_back(self) -> int: ...

    @property
    def searches(self) -> bool: ...

    @property
    def stop_match(self) -> StopMatch | None: ...


class _Held(msgspec.Struct):
    """A token that is not shown to its end yet. `start` is the position of its text in the sequence."""

    token: TokenText
    start: int


class AnswerText:
    """Feed it every token of one sequence, in any portions; the joined deltas never depend on the portions.

    What may be the beginning of a stop string waits until it is known; the text ends before a stop string.
    Special tokens show nowhere: with a parser they reach it, in order, spelled; EOS does not.
    """

    __slots__ = ("_ended", "_held", "_num_taken", "_parser", "_sequence", "_shown", "_unfinished")

    def __init__(self, sequence: TextSource, parser: MessageParser | None = None) -> None:
        self._sequence = sequence
        self._parser = parser
        self._held: deque[_Held] = deque()
        # Tokens that only begin a character: shown with the token that ends it.
        self._unfinished: list[TokenText] = []
        self._num_taken = 0
        self._shown = 0
        self._ended = False

    @property
    def finish_reason(self) -> str | None:
        """OpenAI's value, None before the final `take`."""
        if not self._ended:
            return None
        reason = self._sequence.finish_reason
        if self._sequence.stop_match is not None:
            reason = "stop"
        elif reason is not None:
            reason = _FINISH_REASONS.get(reason, reason)
        if reason == "stop" and self._parser is not None and self._parser.called_tools:
            return "tool_calls"
        return reason

    @property
    def passes(self) -> bool:
        """Whether the next text would be shown as it is, and at once."""
        return self._parser is None and not self._held and not self._sequence.searches and not self._ended

    def pass_on(self, text: str) -> None:
        """As `take` for the text of a token that nobody asked the log-probability of, while `passes`; it is all content."""
        self._num_taken += len(text)
        self._shown = self._num_taken

    def take(self, tokens: Sequence[TokenText], *, final: bool) -> AnswerDelta:
        """What can be shown now that `tokens` followed; with `final` everything that ever will be.

        `tokens` come from `SequenceText.push`, in order, each once.
        """
        for token in tokens:
            self._held.append(_Held(token, self._num_taken))
            if not token.special:
                self._num_taken += len(token.text)
        delta = AnswerDelta(tool_calls=[], tokens=[])
        if self._ended:
            return delta
        self._release(delta, self._limit(final), final)
        if final:
            self._ended = True
            self._held.clear()
            if self._parser is not None:
                _add(delta, self._parser.finish())
        return delta

    def _limit(self, final: bool) -> int:
        """Position in the sequence up to which text may be shown."""
        match = self._sequence.stop_match
        if match is not None:
            return match.start
        if final:
            return self._num_taken
        return min(self._num_taken, self._sequence.num_chars - self._sequence.hold_back)

    def _release(self, delta: AnswerDelta, limit: int, final: bool) -> None:
        text: list[str] = []
        while self._held and self._held[0].start <= limit:
            held = self._held[0]
            token = held.token
            if token.special:
                self._held.popleft()
                if self._parser is not None and not (final and not self._held and self._ends_sequence()):
                    self._feed(delta, text)
                    _add(delta, self._parser.push_special(token.text))
                continue
            end = held.start + len(token.text)
            cut = min(end, limit)
            text.append(token.text[max(self._shown, held.start) - held.start : cut - held.start])
            self._shown = max(self._shown, cut)
            if end > limit and not (final and cut > held.start):
                break
            self._held.popleft()
            self._show(delta, token, cut - held.start)
        self._feed(delta, text)
        if final and self._sequence.stop_match is None:
            delta.tokens.extend(self._unfinished)

    def _ends_sequence(self) -> bool:
        return self._sequence.stop_match is None and self._sequence.finish_reason in _FINISH_REASONS

    def _show(self, delta: AnswerDelta, token: TokenText, num_chars: int) -> None:
        if not token.text:
            self._unfinished.append(token)
            return
        delta.tokens.extend(self._unfinished)
        self._unfinished.clear()
        shown = token.text[:num_chars]
        delta.tokens.append(token if shown == token.text else msgspec.structs.replace(token, text=shown))

    def _feed(self, delta: AnswerDelta, pieces: list[str]) -> None:
        text = "".join(pieces)
        pieces.clear()
        if not text:
            return
        if self._parser is None:
            delta.content += text
        else:
            _add(delta, self._parser.push(text))


def _add(delta: AnswerDelta, news: MessageDelta) -> None:
    delta.content += news.content
    delta.reasoning += news.reasoning
    delta.tool_calls.extend(news.tool_calls)
