"""The output items of one response, put together from what its sequence says, and the events that tell of them. Knows
nothing of streams or HTTP.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from serving.api.openai.chat_reply import ChatAnswer
from serving.api.openai.token_logprobs import chat_logprobs
from serving.api.roles import TokenText
from serving.api.schema.openai_answers import TokenLogprob
from serving.api.schema.responses_answers import (
    ItemStatus,
    OutputFunctionCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputTextPart,
    ReasoningTextPart,
)
from serving.api.schema.responses_events import (
    ContentPartAdded,
    ContentPartDone,
    FunctionCallArgumentsDelta,
    FunctionCallArgumentsDone,
    OutputItemAdded,
    OutputItemDone,
    OutputTextDelta,
    OutputTextDone,
    ReasoningTextDelta,
    ReasoningTextDone,
    StreamEvent,
)
from serving.text.answer import AnswerDelta
from serving.text.parsers import ToolCallDelta


class _Item(Protocol):
    """An item that grows. `index` is its place in the output."""

    index: int

    def item(self, status: ItemStatus) -> OutputItem: ...

    def begun(self) -> Iterable[StreamEvent]:
        """What follows the item's own event when it begins."""

    def ended(self) -> Iterable[StreamEvent]:
        """What goes before the item's own event when it ends."""


@dataclass(slots=True)
class _Message:
    index: int
    id: str = field(default_factory=lambda: _new_id("msg"))
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def add(self, text: str, logprobs: list[TokenLogprob]) -> StreamEvent:
        self.pieces.append(text)
        self.logprobs += logprobs
        return OutputTextDelta(item_id=self.id, output_index=self.index, delta=text, logprobs=logprobs)

    def item(self, status: ItemStatus) -> OutputMessage:
        return OutputMessage(
            id=self.id, status=status, content=[] if status == "in_progress" else [self._part]
        )

    def begun(self) -> Iterable[StreamEvent]:
        yield ContentPartAdded(item_id=self.id, output_index=self.index, part=OutputTextPart(text=""))

    def ended(self) -> Iterable[StreamEvent]:
        part = self._part
        yield OutputTextDone(item_id=self.id, output_index=self.index, text=part.text, logprobs=part.logprobs)
        yield ContentPartDone(item_id=self.id, output_index=self.index, part=part)

    @property
    def _part(self) -> OutputTextPart:
        return OutputTextPart(text="".join(self.pieces), logprobs=self.logprobs)


@dataclass(slots=True)
class _Reasoning:
    index: int
    id: str = field(default_factory=lambda: _new_id("rs"))
    pieces: list[str] = field(default_factory=list)

    def add(self, text: str) -> StreamEvent:
        self.pieces.append(text)
        return ReasoningTextDelta(item_id=self.id, output_index=self.index, delta=text)

    def item(self, status: ItemStatus) -> OutputReasoning:
        return OutputReasoning(
            id=self.id, status=status, content=[] if status == "in_progress" else [self._part]
        )

    def begun(self) -> Iterable[StreamEvent]:
        yield ContentPartAdded(item_id=self.id, output_index=self.index, part=ReasoningTextPart(text=""))

    def ended(self) -> Iterable[StreamEvent]:
        yield ReasoningTextDone(item_id=self.id, output_index=self.index, text=self._part.text)
        yield ContentPartDone(item_id=self.id, output_index=self.index, part=self._part)

    @property
    def _part(self) -> ReasoningTextPart:
        return ReasoningTextPart(text="".join(self.pieces))


@dataclass(slots=True)
class _Call:
    index: int
    number: int
    call_id: str
    name: str
    id: str = field(default_factory=lambda: _new_id("fc"))
    pieces: list[str] = field(default_factory=list)

    def add(self, arguments: str) -> StreamEvent:
        self.pieces.append(arguments)
        return FunctionCallArgumentsDelta(item_id=self.id, output_index=self.index, delta=arguments)

    def item(self, status: ItemStatus) -> OutputFunctionCall:
        return OutputFunctionCall(
            id=self.id, status=status, call_id=self.call_id, name=self.name, arguments="".join(self.pieces)
        )

    def begun(self) -> Iterable[StreamEvent]:
        return ()

    def ended(self) -> Iterable[StreamEvent]:
        yield FunctionCallArgumentsDone(
            item_id=self.id, output_index=self.index, arguments="".join(self.pieces)
        )


class OutputItems:
    """Reads one sequence, token by token, so that items and events do not depend on the portions it arrives in.

    One item is open at a time: reasoning, text and each call follow each other as the model wrote them. A stream sends
    the events of each `take`, a whole answer shows `items` at the end.
    """

    def __init__(self, answer: ChatAnswer) -> None:
        self._answer = answer
        self._ended: list[OutputItem] = []
        self._open: _Item | None = None
        # Of tokens whose text no item shows yet.
        self._waiting: list[TokenText] = []
        self._num_waiting = 0
        self.num_reasoning_tokens = 0

    @property
    def items(self) -> list[OutputItem]:
        """All items; one that did not end is incomplete."""
        return self._ended if self._open is None else [*self._ended, self._open.item("incomplete")]

    @property
    def cut_off(self) -> bool:
        """True when the answer reached its longest length. Raises `IncompleteGeneration` before the sequence ended."""
        return self._answer.finish_reason == "length"

    def take(self, tokens: Sequence[TokenText], *, final: bool) -> list[StreamEvent]:
        events: list[StreamEvent] = []
        last = len(tokens) - 1
        for position, token in enumerate(tokens):
            self._num_waiting += 1
            delta = self._answer.read([token], final=final and position == last)
            self._show(delta, events)
        if final:
            if not tokens:
                self._show(self._answer.read([], final=True), events)
            self._finish(events)
        return events

    def _show(self, delta: AnswerDelta, events: list[StreamEvent]) -> None:
        self._waiting += delta.tokens
        if delta.reasoning:
            before = self._num_waiting
            self._take_waiting(delta.reasoning)
            self.num_reasoning_tokens += before - self._num_waiting
            events.append(self._reasoning(events).add(delta.reasoning))
        if delta.content:
            tokens = self._take_waiting(delta.content)
            events.append(self._message(events).add(delta.content, self._logprobs(tokens)))
        for piece in delta.tool_calls:
            self._waiting, self._num_waiting = [], 0
            call = self._call(piece, events)
            if piece.arguments:
                events.append(call.add(piece.arguments))

    def _finish(self, events: list[StreamEvent]) -> None:
        if self._open is None and not self._ended:
            self._message(events)  # an answer of nothing is a message of nothing
        self._close(events, "incomplete" if self.cut_off else "completed")

    def _take_waiting(self, shown: str) -> list[TokenText]:
        """The waiting tokens that `shown` consists of. What stands before them are markers that nobody sees; what stands
        behind them goes on waiting.
        """
        text = "".join(token.text for token in self._waiting)
        start = 0 if text.startswith(shown) else max(0, text.rfind(shown))
        end = start + len(shown)
        taken: list[TokenText] = []
        rest: list[TokenText] = []
        position = 0
        for token in self._waiting:
            # A token without text begins the character that the next one ends.
            if position >= end:
                rest.append(token)
            elif position >= start:
                taken.append(token)
            position += len(token.text)
        self._waiting, self._num_waiting = rest, len(rest)
        return taken

    def _logprobs(self, tokens: Sequence[TokenText]) -> list[TokenLogprob]:
        asked = chat_logprobs(tokens, self._answer.vocabulary, self._answer.num_top_logprobs)
        return [] if asked is None else asked.content or []

    def _message(self, events: list[StreamEvent]) -> _Message:
        found = self._open
        if not isinstance(found, _Message):
            found = _Message(self._next_index(events))
            self._begin(found, events)
        return found

    def _reasoning(self, events: list[StreamEvent]) -> _Reasoning:
        found = self._open
        if not isinstance(found, _Reasoning):
            found = _Reasoning(self._next_index(events))
            self._begin(found, events)
        return found

    def _call(self, piece: ToolCallDelta, events: list[StreamEvent]) -> _Call:
        found = self._open
        if not isinstance(found, _Call) or found.number != piece.index:
            index = self._next_index(events)
            found = _Call(index, number=piece.index, call_id=piece.id or "", name=piece.name or "")
            self._begin(found, events)
        return found

    def _next_index(self, events: list[StreamEvent]) -> int:
        """Place of the next item, the open one being ended."""
        self._close(events, "completed")
        return len(self._ended)

    def _begin(self, item: _Item, events: list[StreamEvent]) -> None:
        self._open = item
        events.append(OutputItemAdded(output_index=item.index, item=item.item("in_progress")))
        events.extend(item.begun())

    def _close(self, events: list[StreamEvent], status: ItemStatus) -> None:
        item, self._open = self._open, None
        if item is None:
            return
        events.extend(item.ended())
        ended = item.item(status)
        events.append(OutputItemDone(output_index=item.index, item=ended))
        self._ended.append(ended)


def _new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
