"""An engine client that answers from a script, and a text processor over bytes. No torch, no sockets."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence

from serving.api.roles import TokenSink
from serving.errors import InvalidRequest, RequestError, SessionRefused
from serving.messages import (
    AddRequest,
    EngineReady,
    EngineStats,
    RequestAccepted,
    SequenceOutput,
    SessionOpened,
    TopToken,
)
from serving.sampling_params import SamplingParams
from serving.text.chat import ChatPreparer, ChatRequest, PreparedChat
from serving.text.chat_template import ChatTemplate
from serving.text.sequence_text import PromptTokenText, SequenceText, prompt_tokens
from serving.text.tokenizer import TokenSpan
from serving.vocabulary import Vocabulary

EOS = 256
VOCABULARY = Vocabulary(
    token_bytes=(*(bytes([i]) for i in range(256)), b""),
    special_text={EOS: "</s>"},
    eos_token_ids=frozenset({EOS}),
)

READY = EngineReady(
    model_id="demo",
    model_dir="/nowhere",
    revision="abc123",
    device="cpu",
    dtype="float32",
    num_ranks=1,
    vocab_size=257,
    eos_token_ids=[EOS],
    max_input_tokens=200,
    max_total_tokens=256,
    max_step_tokens=512,
    max_num_seqs=256,
    num_blocks=64,
    block_size=16,
    stall_limit_s=20.0,
)

News = RequestAccepted | SequenceOutput | RequestError
Script = Callable[["FakeStream"], None]
"""Called for each submitted request; feeds the stream, now or later."""


class FakeStream:
    def __init__(self, engine: FakeEngine, requests: Sequence[AddRequest]) -> None:
        self.requests = requests
        self.request = requests[0]
        self.closed = False
        self.num_taken = 0
        """Tokens that a sink took."""
        self.num_blocked = 0
        """Of those, how many it could not write to the end."""
        self.num_open = sum(request.params.n for request in requests)
        self._engine = engine
        self._news: queue.SimpleQueue[News | None] = queue.SimpleQueue()
        self._sink: TokenSink | None = None

    def put(self, *news: News | None) -> None:
        self._sink = None
        for each in news:
            self._news.put(each)

    @property
    def waits(self) -> bool:
        """Whether a call waits with a sink for plain tokens."""
        return self._sink is not None

    def accept(self) -> None:
        self.put(RequestAccepted(request_id=self.request.request_id))

    def tokens(self, text: str, finish: str | None = None, **fields: object) -> None:
        """One output with the bytes of `text` as tokens; a sink may take it, as in the client."""
        ids = [EOS if c == "$" else ord(c) for c in text]
        output = SequenceOutput(
            request_id=self.request.request_id,
            token_ids=ids,
            logprobs=[-0.25] * len(ids),
            top_tokens=self._top(ids),
            finish_reason=finish,
            **fields,  # type: ignore[arg-type]
        )
        sink = self._sink
        if sink is None or not sink.take(output, time.monotonic()):
            self.put(output)
            return
        self.num_taken += 1
        if not sink.flush():
            self.num_blocked += 1
            self.put(None)

    @property
    def has_news(self) -> bool:
        return not self._news.empty()

    def get(self, timeout_s: float, sink: TokenSink | None) -> RequestAccepted | SequenceOutput:
        self._sink = None if self.has_news else sink
        try:
            news = self._news.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError from None
        finally:
            self._sink = None
        if news is None:
            raise TimeoutError
        if isinstance(news, RequestError):
            self.num_open = 0
            raise news
        if isinstance(news, SequenceOutput) and news.finish_reason is not None:
            self.num_open -= 1
        return news

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._engine.closed_streams.append(self)
        if self.num_open > 0:
            self._engine.aborted.extend((request.request_id, None) for request in self.requests)
            self._engine.changed.set()

    def _top(self, ids: Sequence[int]) -> list[list[TopToken]] | None:
        count = self.request.params.top_n_tokens
        return [[TopToken(i, -0.5 * (k + 1)) for k in range(count)] for i in ids] if count else None


class FakeEngine:
    """`script` decides what a request gets; by default `hello` one letter at a time, ending with `length`."""

    def __init__(self, script: Script | None = None, ready: EngineReady | None = READY) -> None:
        self.script = script or hello
        self.ready = ready
        self.health = (True, "")
        self.requests: list[AddRequest] = []
        self.streams: list[FakeStream] = []
        self.closed_streams: list[FakeStream] = []
        self.aborted: list[tuple[str, int | None]] = []
        self.changed = threading.Event()
        self.stats_error: Exception | None = None
        self.submit_error: RequestError | None = None
        self.session_error: RequestError | TimeoutError | None = None
        self.sessions: list[str] = []
        self._numbers = itertools.count(1)

    def next_request_id(self) -> str:
        return f"fake-{next(self._numbers)}"

    def submit(self, *requests: AddRequest) -> FakeStream:
        """The script runs once per request; `stream.request` is the one it runs for."""
        if self.submit_error is not None:
            raise self.submit_error
        stream = FakeStream(self, requests)
        self.streams.append(stream)
        for request in requests:
            request.params.validate(vocab_size=257)
            self.requests.append(request)
            stream.request = request
            if request.session_id and request.session_id not in self.sessions:
                stream.put(SessionRefused("session not found"))
                continue
            self.script(stream)
        return stream

    def abort(self, request_id: str, index: int | None = None) -> None:
        self.aborted.append((request_id, index))

    def stats(self, timeout_s: float) -> EngineStats:
        if self.stats_error is not None:
            raise self.stats_error
        structs = ("queue_s", "step", "grammar", "session")
        numbers = {name: 1 for name in EngineStats.__struct_fields__ if name not in structs}
        return EngineStats(**{**numbers, "num_blocks": 64, "num_free_blocks": 60, "num_cached_tokens": 7})

    def open_session(self, timeout_s: float) -> SessionOpened:
        """Named `session-1` and so on; each ends on 2 January 2026, 3:04:05.9."""
        if self.session_error is not None:
            raise self.session_error
        self.sessions.append(f"session-{len(self.sessions) + 1}")
        return SessionOpened(session_id=self.sessions[-1], expires_at_s=1767323045.9)

    def close_session(self, session_id: str, timeout_s: float) -> None:
        if session_id not in self.sessions:
            raise SessionRefused("session not found")
        self.sessions.remove(session_id)

    def healthy(self) -> tuple[bool, str]:
        return self.health


def hello(stream: FakeStream) -> None:
    stream.accept()
    for letter in "hell":
        stream.tokens(letter)
    stream.tokens("o", "length", queue_s=0.002, inference_s=0.5)


CHAT_TEMPLATE = (
    "{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


class FakeText:
    """Every byte of the text is a token; chats are rendered with a short template."""

    vocabulary = VOCABULARY

    def __init__(self, chat_template: str | None = CHAT_TEMPLATE) -> None:
        template = None if chat_template is None else ChatTemplate(chat_template, {"eos_token": "</s>"})
        self._chats = ChatPreparer(
            template, encode=lambda text: list(text.encode()), special_ids={"</s>": EOS}
        )

    def prepare_chat(self, chat: ChatRequest, *, max_chars: int | None = None) -> PreparedChat:
        return self._chats.prepare(chat, max_chars=max_chars)

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[TokenSpan]:
        return [TokenSpan(byte, chr(byte), i, i + 1) for i, byte in enumerate(text.encode())]

    def new_sequence(self, params: SamplingParams, *, prompt_token_ids: Sequence[int] = ()) -> SequenceText:
        return SequenceText(self.vocabulary, params, prompt_token_ids=prompt_token_ids)

    def prepare(
        self, text: str, *, truncate: int | None = None, add_special_tokens: bool = True
    ) -> list[int]:
        ids = list(text.encode())
        if not ids:
            raise InvalidRequest("`inputs` has no tokens", field="inputs")
        return ids if truncate is None else ids[-truncate:]

    def prompt_tokens(
        self, token_ids: Sequence[int], logprobs: Sequence[float | None]
    ) -> list[PromptTokenText]:
        return prompt_tokens(self.vocabulary, token_ids, logprobs)
