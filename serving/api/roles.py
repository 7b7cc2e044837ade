"""What the front needs from the engine client and from the text package, as roles. No behaviour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from serving.messages import (
    AddRequest,
    EngineReady,
    EngineStats,
    RequestAccepted,
    SequenceOutput,
    SessionOpened,
)
from serving.sampling_params import SamplingParams
from serving.text.chat import ChatRequest, PreparedChat
from serving.text.sequence_text import TokenText as TokenText
from serving.text.stop import StopMatch
from serving.vocabulary import Vocabulary


class TokenSink(Protocol):
    """Takes outputs at once, as `serving.ipc.output_stream` says."""

    def take(self, output: SequenceOutput, now_s: float) -> bool: ...

    def flush(self) -> bool: ...


class OutputStream(Protocol):
    @property
    def has_news(self) -> bool:
        """True when `get` would not wait."""
        ...

    def get(self, timeout_s: float, sink: TokenSink | None) -> RequestAccepted | SequenceOutput:
        """Next news of the requests; `sink` may get tokens instead while this waits. Raises `TimeoutError`, or the
        `RequestError` that ended one of them."""
        ...

    def close(self) -> None:
        """Forget the requests; aborts those that still run."""
        ...


class EngineClient(Protocol):
    @property
    def ready(self) -> EngineReady | None: ...

    def next_request_id(self) -> str: ...

    def submit(self, *requests: AddRequest) -> OutputStream:
        """Requests that belong together share one stream."""
        ...

    def abort(self, request_id: str, index: int | None = None) -> None: ...

    def stats(self, timeout_s: float) -> EngineStats: ...

    def open_session(self, timeout_s: float) -> SessionOpened:
        """Raises `Overloaded`, `NotReady` or `TimeoutError`."""
        ...

    def close_session(self, session_id: str, timeout_s: float) -> None:
        """Raises `SessionRefused`, `NotReady` or `TimeoutError`."""
        ...

    def healthy(self) -> tuple[bool, str]: ...


class SpelledToken(Protocol):
    """A token as answers show it. `special` tokens are not part of the text."""

    @property
    def id(self) -> int: ...

    @property
    def text(self) -> str: ...

    @property
    def logprob(self) -> float: ...

    @property
    def special(self) -> bool: ...


class PromptTokenText(Protocol):
    @property
    def id(self) -> int: ...

    @property
    def text(self) -> str: ...

    @property
    def logprob(self) -> float | None: ...


class SequenceText(Protocol):
    """Text of one sequence. `finish_reason` is set once it ended, be it by the engine or by a stop string."""

    finish_reason: str | None
    num_tokens: int
    stopped: bool
    """True when a stop string ended the text while the engine goes on."""

    @property
    def text(self) -> str: ...

    @property
    def num_chars(self) -> int: ...

    @property
    def hold_back(self) -> int: ...

    @property
    def stop_match(self) -> StopMatch | None: ...

    @property
    def searches(self) -> bool:
        """Whether a stop string may end the text."""
        ...

    def push(self, output: SequenceOutput) -> Sequence[TokenText]: ...

    def push_one(self, token_id: int) -> str | None:
        """Text of one token that is not the last; None, and nothing done, for a special one."""
        ...


class TokenSpan(Protocol):
    """A token of a text: `text` lies at the UTF-8 bytes from `start` to `stop`."""

    @property
    def id(self) -> int: ...

    @property
    def text(self) -> str: ...

    @property
    def start(self) -> int: ...

    @property
    def stop(self) -> int: ...


class TextProcessor(Protocol):
    @property
    def vocabulary(self) -> Vocabulary: ...

    def new_sequence(
        self, params: SamplingParams, *, prompt_token_ids: Sequence[int] = ()
    ) -> SequenceText: ...

    def prepare(
        self, text: str, *, truncate: int | None = None, add_special_tokens: bool = True
    ) -> list[int]: ...

    def prompt_tokens(
        self, token_ids: Sequence[int], logprobs: Sequence[float | None]
    ) -> Sequence[PromptTokenText]: ...

    def prepare_chat(self, chat: ChatRequest, *, max_chars: int | None = None) -> PreparedChat:
        """Takes time for long chats. Raises `TemplateError`, `ToolError` or `InvalidRequest`; `ContextTooLong` for a
        prompt of more than `max_chars`."""
        ...

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> Sequence[TokenSpan]: ...
