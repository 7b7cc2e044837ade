"""One admitted generation: submit, wait, watch the client, turn outputs into text, stop early, clean up.
Shared by streams and single answers; knows nothing of their shapes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gevent import GreenletExit

from serving.api.connection import CHECK_INTERVAL_S, ClientConnection, ClientDisconnected
from serving.api.roles import EngineClient, OutputStream, SequenceText, TextProcessor, TokenText
from serving.api.schema.generate import GenerateRequest
from serving.errors import Draining, IncompleteGeneration
from serving.messages import RequestAccepted, SequenceOutput

_ENGINE_GAVE_UP = frozenset({"abort", "error"})


@dataclass(slots=True)
class Timings:
    """Clock readings (`time.monotonic`) and engine-measured seconds of one request."""

    started: float
    queued: float = 0.0
    accepted: float = 0.0
    first_token: float = 0.0
    ended: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.ended - self.started

    @property
    def validation_s(self) -> float:
        return self.queued - self.started


@dataclass(slots=True)
class SequenceState:
    """One of the n sequences: its text so far, and what an answer with details needs."""

    text: SequenceText
    tokens: list[TokenText] = field(default_factory=list)
    logprob_sum: float = 0.0
    seed: int | None = None
    ended: bool = False

    @property
    def mean_logprob(self) -> float:
        return self.logprob_sum / max(1, self.text.num_tokens)


@dataclass(slots=True, frozen=True)
class Progress:
    """New tokens of sequence `index`; `final` when they are its last ones."""

    index: int
    tokens: Sequence[TokenText]
    final: bool


class Generation:
    """Must be closed, or used as a context manager, so that nothing stays behind in the engine."""

    def __init__(
        self,
        request: GenerateRequest,
        *,
        engine: EngineClient,
        text: TextProcessor,
        connection: ClientConnection,
        timings: Timings,
        keep_tokens: bool,
    ) -> None:
        self.request = request
        self.request_id = engine.next_request_id()
        self.timings = timings
        self.prompt_logprobs: list[float | None] | None = None
        self.sequences = [
            SequenceState(text=text.new_sequence(request.params, prompt_token_ids=request.prompt_token_ids))
            for _ in range(request.params.n)
        ]
        self._engine = engine
        self._connection = connection
        self._keep_tokens = keep_tokens
        self._stream: OutputStream | None = None
        self._checked = timings.started

    @property
    def num_generated_tokens(self) -> int:
        return sum(sequence.text.num_tokens for sequence in self.sequences)

    def start(self) -> None:
        """Submit and wait until the engine admitted it. Raises the `RequestError` that refused it."""
        self.timings.queued = time.monotonic()
        self._stream = self._engine.submit(self.request.to_engine(self.request_id))
        while True:
            news = self._next(self._stream)
            if news is None:
                continue
            self.timings.accepted = time.monotonic()
            if isinstance(news, RequestAccepted):
                return
            raise IncompleteGeneration("Incomplete generation")

    def progress(self) -> Iterator[Progress | None]:
        """Yield what happens until all sequences ended; None every `CHECK_INTERVAL_S` in which nothing did.

        Raises `ClientDisconnected` when the client left, and the `RequestError` that ended the request.
        """
        if self._stream is None:
            raise IncompleteGeneration("Incomplete generation")
        while True:
            news = self._next(self._stream)
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

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self, stream: OutputStream) -> RequestAccepted | SequenceOutput | None:
        now = time.monotonic()
        if now - self._checked >= CHECK_INTERVAL_S:
            self._checked = now
            if self._connection.is_gone():
                raise ClientDisconnected
        try:
            return stream.get(CHECK_INTERVAL_S)
        except TimeoutError:
            return None
        except GreenletExit:
            # gunicorn ends what still runs when its graceful timeout is over
            raise Draining("the server stopped before the generation was complete") from None

    def _take(self, output: SequenceOutput) -> Progress | None:
        sequence = self.sequences[output.index]
        if sequence.ended:
            return None
        self._note(sequence, output)
        if output.finish_reason in _ENGINE_GAVE_UP:
            raise IncompleteGeneration("Incomplete generation")
        tokens = sequence.text.push(output)
        for token in tokens:
            sequence.logprob_sum += token.logprob
        if self._keep_tokens:
            sequence.tokens.extend(tokens)
        sequence.ended = sequence.text.finish_reason is not None
        if sequence.text.stopped and len(self.sequences) > 1:
            self._engine.abort(self.request_id, output.index)
        if not tokens and not sequence.ended:
            return None
        return Progress(index=output.index, tokens=tokens, final=sequence.ended)

    def _note(self, sequence: SequenceState, output: SequenceOutput) -> None:
        timings = self.timings
        if output.token_ids and not timings.first_token:
            timings.first_token = time.monotonic()
        timings.queue_s = max(timings.queue_s, output.queue_s)
        timings.inference_s = max(timings.inference_s, output.inference_s)
        if output.seed is not None:
            sequence.seed = output.seed
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
