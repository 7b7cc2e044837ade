"""What comes back for requests that were submitted together. Knows messages, neither sockets nor text.

News wait in a queue for whoever reads the stream; while it waits for them, tokens may go to a sink at once.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from typing import Protocol

from serving.errors import RequestError, from_wire
from serving.messages import AddRequest, RequestAccepted, SequenceOutput


class TokenSink(Protocol):
    """Takes outputs in the client's reader: it must neither wait nor raise."""

    def take(self, output: SequenceOutput, now_s: float) -> bool:
        """`now_s` is a reading of `time.monotonic`. False, and nothing done, for what the stream's reader has to get: errors
        and ends at least."""
        ...

    def flush(self) -> bool:
        """Called after everything that arrived together. False: the stream's reader must go on."""
        ...


class OutputStream:
    """The answers to requests that were submitted together, in order of arrival. Use as a context manager: leaving it
    early aborts what still runs."""

    __slots__ = ("_accepted", "_error", "_forget", "_items", "_num_open", "request_ids", "sink")

    def __init__(self, requests: Sequence[AddRequest], forget: Callable[[OutputStream], None]) -> None:
        """`forget` is called when the stream is closed."""
        self.request_ids = tuple(request.request_id for request in requests)
        self.sink: TokenSink | None = None
        """Set only while `get` waits with one: then nothing is in the queue."""
        self._forget = forget
        self._items: queue.SimpleQueue[RequestAccepted | SequenceOutput | RequestError | None] = (
            queue.SimpleQueue()
        )
        self._num_open = {request.request_id: request.params.n for request in requests}
        self._accepted: set[str] = set()
        self._error: RequestError | None = None

    def get(
        self, timeout_s: float | None = None, sink: TokenSink | None = None
    ) -> RequestAccepted | SequenceOutput:
        """The next answer: per request first `RequestAccepted`, then outputs until every sequence has a `finish_reason`.

        `sink` may be given tokens instead, as long as this waits. The client's reader calls it, so it is for greenlets only:
        threads would meet in it.

        Raises `TimeoutError` when nothing came within `timeout_s` or `wake` was called (the stream stays usable), and the
        terminal `RequestError` when a request was refused, failed, or the engine died; further calls raise it again.
        """
        if self._error is not None:
            raise self._error
        try:
            # Without a wait there is no timer to set up.
            item = self._items.get_nowait() if self.has_news else self._wait(timeout_s, sink)
        except queue.Empty:
            raise TimeoutError(f"no output of {', '.join(self.request_ids)} within {timeout_s} s") from None
        if item is None:
            raise TimeoutError(f"the wait for {', '.join(self.request_ids)} was ended")
        if isinstance(item, SequenceOutput) and item.error is not None:
            item = from_wire(item.error)
        if isinstance(item, RequestError):
            self._error = item
            raise item
        return item

    def _wait(
        self, timeout_s: float | None, sink: TokenSink | None
    ) -> RequestAccepted | SequenceOutput | RequestError | None:
        self.sink = sink
        try:
            return self._items.get(timeout=timeout_s)
        finally:
            self.sink = None

    @property
    def has_news(self) -> bool:
        """True when `get` would not wait."""
        return not self._items.empty()

    def close(self) -> None:
        """Forget the requests; aborts those that still run. May be called twice."""
        self._forget(self)

    def __enter__(self) -> OutputStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wake(self) -> None:
        """End the wait of `get`, this one or the next. Called by the client's reader only."""
        self._put(None)

    def deliver(self, item: RequestAccepted | SequenceOutput | RequestError) -> bool:
        """Called by the client's reader only. Returns True when `item` ends its request."""
        ended = True
        if isinstance(item, RequestAccepted):
            self._accepted.add(item.request_id)
            ended = False
        elif isinstance(item, SequenceOutput):
            self._num_open[item.request_id] -= item.finish_reason is not None
            # A refusal ends all sequences of a request at once; of an accepted one each ends on its own.
            refused = item.error is not None and item.request_id not in self._accepted
            ended = refused or self._num_open[item.request_id] <= 0
        self._put(item)
        return ended

    def _put(self, item: RequestAccepted | SequenceOutput | RequestError | None) -> None:
        self.sink = None  # what follows must wait behind it
        self._items.put(item)
