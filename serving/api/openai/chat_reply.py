"""One choice of a chat completion, put together from what its sequence says. Knows nothing of streams or HTTP."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
from msgspec import UNSET

from serving.api.openai.token_logprobs import chat_logprobs
from serving.api.schema.openai_answers import (
    AssistantMessage,
    ChatChoice,
    ChatFinish,
    FunctionCall,
    FunctionCallPiece,
    ToolCall,
    ToolCallPiece,
)
from serving.errors import IncompleteGeneration
from serving.text.answer import AnswerDelta
from serving.text.parsers import ToolCallDelta
from serving.text.sequence_text import TokenText
from serving.vocabulary import Vocabulary

_FINISH: dict[str, ChatFinish] = {"stop": "stop", "length": "length", "tool_calls": "tool_calls"}


class _Reader(Protocol):
    @property
    def finish_reason(self) -> str | None: ...

    @property
    def passes(self) -> bool: ...

    def pass_on(self, text: str) -> None: ...

    def take(self, tokens: Sequence[TokenText], *, final: bool) -> AnswerDelta: ...


@dataclass(slots=True)
class _Call:
    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class ChatAnswer:
    """Reads one sequence. A stream takes each `read` as it comes, a whole answer collects them with `take`."""

    reader: _Reader
    vocabulary: Vocabulary
    num_top_logprobs: int | None
    """None: log-probabilities were not asked for."""
    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tokens: list[TokenText] = field(default_factory=list)
    calls: dict[int, _Call] = field(default_factory=dict)
    _cut_call: bool = False

    @property
    def finish_reason(self) -> ChatFinish:
        """Raises `IncompleteGeneration` before the sequence ended."""
        reason = _FINISH.get(self.reader.finish_reason or "")
        if reason is None:
            raise IncompleteGeneration("Incomplete generation")
        return reason

    def read(self, tokens: Sequence[TokenText], *, final: bool) -> AnswerDelta:
        """What `tokens` add. The first piece of each tool call has an id, the model's or a new one."""
        delta = self.reader.take(tokens, final=final)
        for piece in delta.tool_calls:
            if piece.name is not None and not piece.id:
                piece.id = f"call_{secrets.token_hex(12)}"
        return delta

    def expects(self) -> bool:
        """Whether `pass_on` may have the next token."""
        return self.num_top_logprobs is None and self.reader.passes

    def pass_on(self, text: str) -> None:
        """As `read` for the text of one token, all of which is content."""
        self.reader.pass_on(text)

    def event(self, token_id: int, text: str, logprob: float) -> bytes:
        """As `take` for one token that `expects` let in (`PlainEvents` of an answer that is not streamed)."""
        self.reader.pass_on(text)
        self.content.append(text)
        return b""

    def shows(self, delta: AnswerDelta) -> bool:
        """Whether a stream has a chunk to send for it."""
        shown = delta.content or delta.reasoning or delta.tool_calls
        return bool(shown or (delta.tokens and self.num_top_logprobs is not None))

    def take(self, tokens: Sequence[TokenText], *, final: bool) -> None:
        delta = self.read(tokens, final=final)
        self.content.append(delta.content)
        self.reasoning.append(delta.reasoning)
        if self.num_top_logprobs is not None:
            self.tokens.extend(delta.tokens)
        for piece in delta.tool_calls:
            if piece.name is not None:
                self.calls[piece.index] = _Call(piece.id or "", piece.name)
            self.calls[piece.index].arguments.append(piece.arguments)

    def drop_cut_calls(self) -> bool:
        """Take out the calls whose arguments are no JSON object, as of one that a deadline cut. False when nothing of the
        answer is left."""
        for index, call in list(self.calls.items()):
            if not _is_object("".join(call.arguments)):
                del self.calls[index]
                self._cut_call = True
        return not self._cut_call or bool(self.calls or "".join(self.content).strip())

    def choice(self, index: int) -> ChatChoice:
        """The whole choice. Raises `IncompleteGeneration` before the sequence ended."""
        calls = [
            ToolCall(id=call.id, function=FunctionCall(name=call.name, arguments="".join(call.arguments)))
            for _, call in sorted(self.calls.items())
        ]
        content = "".join(self.content)
        return ChatChoice(
            index=index,
            message=AssistantMessage(
                content=None if calls and not content else content,
                reasoning_content="".join(self.reasoning) or UNSET,
                tool_calls=calls or UNSET,
            ),
            logprobs=chat_logprobs(self.tokens, self.vocabulary, self.num_top_logprobs),
            finish_reason=self.finish_reason,
        )


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except msgspec.DecodeError:
        return False


def tool_call_pieces(pieces: Sequence[ToolCallDelta]) -> list[ToolCallPiece]:
    """As streams show them: id, type and name in the first piece of a call only."""
    return [
        ToolCallPiece(
            index=piece.index,
            id=piece.id if piece.name is not None else None,
            type="function" if piece.name is not None else None,
            function=FunctionCallPiece(name=piece.name, arguments=piece.arguments),
        )
        for piece in pieces
    ]
