"""One call's generations, one per prompt: submit, wait, watch the client, turn outputs into text, stop early, clean
up. Shared by all APIs, streams and single answers; knows nothing of their shapes.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from gevent import GreenletExit

from serving.api.connection import CHECK_INTERVAL_S, ClientConnection, ClientDisconnected, cooperative
from serving.api.plain_tokens import PlainEvents, PlainTokens
from serving.api.roles import EngineClient, OutputStream, SequenceText, TextProcessor, TokenText
from serving.api.schema.generate import GenerateRequest
from serving.buckets import DURATION_S, BucketCounts
from serving.errors import DeadlineExceeded, Draining, IncompleteGeneration, InvalidRequest, Overloaded
from serving.messages import RequestAccepted, SequenceOutput, TopToken

_GRAMMAR = "grammar"
_ENGINE_GAVE_UP = frozenset({"abort", "error"})
_LATE_RETRY_S = 5.0
_CHECK_INTERVAL_WHILE_WRITING_S = 1.0
"""Writing to a client that left fails, so a client that was written to needs no look of its own that often."""


@dataclass(slots=True)
class Timings:
    """Clock readings (`time.monotonic`) and engine-measured seconds of one request."""

    started: float
    queued: float = 0.0
    accepted: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    ended: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0
    token_gaps: BucketCounts = field(default_factory=lambda: BucketCounts(DURATION_S))

    @property
    def total_s(self) -> float:
        return self.ended - self.started

    @property
    def validation_s(self) -> float:
        return self.queued - self.started

    def note_token(self, sequence: SequenceState, now_s: float) -> None:
        """`sequence` got tokens."""
        if sequence.last_token:
            self.token_gaps.observe(now_s - sequence.last_token)
        self.first_token = self.first_token or now_s
        self.last_token = sequence.last_token = now_s


@dataclass(slots=True)
class SequenceState:
    """One of the n sequences of a prompt: its text so far, and what an answer with details needs."""

    request_id: str
    index: int
    text: SequenceText
    tokens: list[TokenText] = field(default_factory=list)
    logprob_sum: float = 0.0
    seed: int | None = None
    last_token: float = 0.0
    ended: bool = False

    @property
    def mean_logprob(self) -> float:
        return self.logprob_sum / max(1, self.text.num_tokens)


@dataclass(slots=True, frozen=True)
class Progress:
    """New tokens of `sequences[index]`; `final` when they are its last ones."""

    index: int
    tokens: Sequence[TokenText]
    final: bool


@dataclass(slots=True)
class PromptState:
    """What the engine said about one prompt."""

    request: GenerateRequest
    request_id: str
    first_sequence: int
    num_cached_tokens: int = 0
    logprobs: list[float | None] | None = None
    top_tokens: list[list[TopToken]] | None = None
    accepted: bool = False


class Generation:
    """Must be closed, or used as a context manager, so that nothing stays behind in the engine.

    `sequences` holds the n sequences of the first prompt, then those of the second, and so on.
    """

    def __init__(
        self,
        *requests: GenerateRequest,
        engine: EngineClient,
        text: TextProcessor,
        connection: ClientConnection,
        timings: Timings,
        keep_tokens: bool,
        on_submitted: Callable[[], None] = lambda: None,
        deadline: float | None = None,
        session_id: str = "",
    ) -> None:
        """`deadline` is the reading of `time.monotonic` at which all sequences end with what they have. `session_id` is
        that of the session whose turn this is."""
        self.timings = timings
        self.deadline_reached = False
        self.prompts: list[PromptState] = []
        self.sequences: list[SequenceState] = []
        for request in requests:
            self._add(request, engine.next_request_id(), text)
        self._by_id = {prompt.request_id: prompt for prompt in self.prompts}
        self._engine = engine
        self._connection = connection
        self._keep_tokens = keep_tokens
        self._on_submitted = on_submitted
        self._deadline = deadline
        self._session_id = session_id
        self._early: deque[SequenceOutput] = deque()
        self._stream: OutputStream | None = None
        self._checked = timings.started
        self._check_interval_s = CHECK_INTERVAL_S

    @property
    def request(self) -> GenerateRequest:
        """The first prompt's; parameters are the same for all prompts."""
        return self.prompts[0].request

    @property
    def request_id(self) -> str:
        """The first prompt's, the name of this call in the log."""
        return self.prompts[0].request_id

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(prompt.request.prompt_token_ids) for prompt in self.prompts)

    @property
    def num_cached_tokens(self) -> int:
        return sum(prompt.num_cached_tokens for prompt in self.prompts)

    @property
    def num_generated_tokens(self) -> int:
        return sum(sequence.text.num_tokens for sequence in self.sequences)

    def start(self) -> None:
        """Submit and wait until the engine admitted every prompt, or until the deadline. Raises the `RequestError` that
        refused one."""
        self.timings.queued = time.monotonic()
        if self._left_s() <= 0.0:
            raise self._too_late()
        self._stream = self._engine.submit(
            *(prompt.request.to_engine(prompt.request_id, self._session_id) for prompt in self.prompts)
        )
        self._on_submitted()
        while not all(prompt.accepted for prompt in self.prompts):
            if self._left_s() <= 0.0:
                return
            news = self._first_news(self._stream)
            if isinstance(news, RequestAccepted):
                self._by_id[news.request_id].accepted = True
            elif news is not None:
                self._early.append(news)  # a prompt that was admitted first may already run
        self.timings.accepted = time.monotonic()

    def has_news(self) -> bool:
        """True when `progress` would not wait."""
        return bool(self._early) or (self._stream is not None and self._stream.has_news)

    def progress(self, plain: PlainEvents | None = None) -> Iterator[Progress | None]:
        """Yield what happens until all sequences ended; None after a second at most in which nothing did. At the
        deadline those that go on end there, with `length` and no further tokens.

        Where `plain` is given, it may get tokens instead, while this waits; of a stream, what it makes of them is sent at
        once.

        Raises `ClientDisconnected` when the client left, and the `RequestError` that ended the request: at the deadline
        `Overloaded` when there is no token, `DeadlineExceeded` when what there is would be of no use.
        """
        if self._stream is None:
            raise IncompleteGeneration("Incomplete generation")
        tokens = None if plain is None else self._plain_tokens(plain)
        while True:
            if self._left_s() <= 0.0 and not self.has_news():
                yield from self._cut()
                return
            news = self._early.popleft() if self._early else self._next(self._stream, tokens)
            if news is None:
                yield None
                continue
            if isinstance(news, RequestAccepted):
                continue
            progress = self._take(news)
            finished = all(sequence.ended for sequence in self.sequences)
            if finished:
                self.close()  # now, not when a slow client has taken the last chunk
            if progress is not None:
                yield progress
            if finished:
                return

    def finish(self) -> None:
        """Note the end; stop matches leave no engine timings, so what is missing is measured here."""
        timings = self.timings
        timings.ended = time.monotonic()
        if timings.inference_s == 0.0 and timings.accepted:
            timings.inference_s = max(0.0, timings.ended - timings.queued - timings.queue_s)

    def close(self) -> None:
        """Free what the engine still holds. May be called twice."""
        if self._stream is not None:
            self._stream.close()

    def _add(self, request: GenerateRequest, request_id: str, text: TextProcessor) -> None:
        self.prompts.append(PromptState(request, request_id, len(self.sequences)))
        for index in range(request.params.n):
            sequence = text.new_sequence(request.params, prompt_token_ids=request.prompt_token_ids)
            self.sequences.append(SequenceState(request_id, index, sequence))

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _first_news(self, stream: OutputStream) -> RequestAccepted | SequenceOutput | None:
        """As `_next`; a refused grammar is named as the client named it."""
        try:
            return self._next(stream)
        except InvalidRequest as error:
            if error.field != _GRAMMAR:
                raise
            field = self.request.grammar_field
            raise InvalidRequest(
                error.message.replace(f"`{_GRAMMAR}`", f"`{field}`", 1), field=field
            ) from None

    def _plain_tokens(self, events: PlainEvents) -> PlainTokens | None:
        """None where a token is never plain, or nobody but this greenlet could take it."""
        outlet = self._connection.outlet if self.request.stream else None
        [sequence, *others] = self.sequences
        unseen = self.request.stream and outlet is None
        if others or unseen or sequence.text.searches or not cooperative():
            return None
        return PlainTokens(
            prompt=self.prompts[0],
            sequence=sequence,
            timings=self.timings,
            events=events,
            keep_tokens=self._keep_tokens,
            outlet=outlet,
        )

    def _next(
        self, stream: OutputStream, tokens: PlainTokens | None = None
    ) -> RequestAccepted | SequenceOutput | None:
        now = time.monotonic()
        if now - self._checked >= CHECK_INTERVAL_S:
            outlet = None if tokens is None else tokens.outlet
            writes = outlet is not None and outlet.last_sent_s > self._checked
            self._check_interval_s = _CHECK_INTERVAL_WHILE_WRITING_S if writes else CHECK_INTERVAL_S
            self._checked = now
            if self._connection.is_gone():
                raise ClientDisconnected
        try:
            wait_s = max(0.0, min(self._check_interval_s, self._left_s()))
            return stream.get(wait_s, tokens if tokens is not None and tokens.ready() else None)
        except TimeoutError:
            return None
        except GreenletExit:
            # gunicorn ends what still runs when its graceful timeout is over
            raise Draining("the server stopped before the generation was complete") from None

    def _left_s(self) -> float:
        return math.inf if self._deadline is None else self._deadline - time.monotonic()

    def _cut(self) -> Iterator[Progress]:
        if self.num_generated_tokens == 0:
            raise self._too_late()
        if self.request.needs_end:
            raise self.useless_part("an answer in a given format, or a tool call that must come,")
        self.deadline_reached = True
        self.close()
        for index, sequence in enumerate(self.sequences):
            if not sequence.ended:
                sequence.ended = True
                sequence.text.finish_reason = "length"
                yield Progress(index=index, tokens=(), final=True)

    def useless_part(self, what: str) -> DeadlineExceeded:
        """The error for an answer that was cut where the part is no answer. `what` was cut."""
        self.deadline_reached = True
        return DeadlineExceeded(
            f"{what} was not complete at the deadline of this call ({self._given_s():g} s, UNARY_DEADLINE_S), and part "
            "of it is of no use: stream the answer, ask for fewer tokens, or use asynchronous inference with "
            "UNARY_DEADLINE_S=0"
        )

    def _too_late(self) -> Overloaded:
        self.deadline_reached = True
        return Overloaded(
            f"no token was generated by the deadline of this call ({self._given_s():g} s, UNARY_DEADLINE_S): the server "
            "is busy, or the prompt is long for it. Come back later, stream the answer, or use asynchronous inference "
            "with UNARY_DEADLINE_S=0",
            retry_after_s=_LATE_RETRY_S,
        )

    def _given_s(self) -> float:
        return 0.0 if self._deadline is None else round(self._deadline - self.timings.started, 1)

    def _take(self, output: SequenceOutput) -> Progress | None:
        prompt = self._by_id[output.request_id]
        index = prompt.first_sequence + output.index
        sequence = self.sequences[index]
        if sequence.ended:
            return None
        self._note(prompt, sequence, output)
        if output.finish_reason in _ENGINE_GAVE_UP:
            raise IncompleteGeneration("Incomplete generation")
        tokens = sequence.text.push(output)
        for token in tokens:
            sequence.logprob_sum += token.logprob
        if self._keep_tokens:
            sequence.tokens.extend(tokens)
        sequence.ended = sequence.text.finish_reason is not None
        if sequence.text.stopped and len(self.sequences) > 1:
            self._engine.abort(sequence.request_id, sequence.index)
        if not tokens and not sequence.ended:
            return None
        return Progress(index=index, tokens=tokens, final=sequence.ended)

    def _note(self, prompt: PromptState, sequence: SequenceState, output: SequenceOutput) -> None:
        timings = self.timings
        if output.token_ids:
            timings.note_token(sequence, time.monotonic())
        timings.queue_s = max(timings.queue_s, output.queue_s)
        timings.inference_s = max(timings.inference_s, output.inference_s)
        if output.seed is not None:
            sequence.seed = output.seed
        if output.index == 0:  # the others share the first one's prompt, which is no hit
            prompt.num_cached_tokens = max(prompt.num_cached_tokens, output.num_cached_tokens)
        if output.prompt_logprobs is not None:
            prompt.logprobs = output.prompt_logprobs
            prompt.top_tokens = output.prompt_top_tokens
