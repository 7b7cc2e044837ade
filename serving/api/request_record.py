"""What is counted and logged about one generation call, once, when it ends. Never holds a prompt or an
output.
"""

from __future__ import annotations

import logging
import time
from types import TracebackType

from serving import logs
from serving.api.connection import ClientDisconnected
from serving.api.error_handlers import CLIENT_CLOSED_REQUEST, status_of
from serving.api.generation import Generation, Timings
from serving.errors import IncompleteGeneration, Overloaded, RequestError
from serving.metrics import ServerMetrics

logger = logging.getLogger(__name__)

_MAX_INFERENCE_ID_CHARS = 64
_MAX_LOGGED_NAMES = 20


class RequestRecord:
    """Use as a context manager around a call. One that goes on as a stream is detached from it."""

    def __init__(self, metrics: ServerMetrics, route: str, inference_id: str | None) -> None:
        self.timings = Timings(started=time.monotonic())
        self._metrics = metrics
        self._route = route
        self._inference_id = inference_id[:_MAX_INFERENCE_ID_CHARS] if inference_id else None
        self._generation: Generation | None = None
        self._ignored: list[str] = []
        self._detached = False
        self._done = False
        metrics.request_count.inc()

    def __enter__(self) -> RequestRecord:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self.failed(error)
        elif not self._detached:
            self.succeeded()

    def ignores(self, names: list[str]) -> None:
        """Note request fields that nobody reads."""
        self._ignored = names
        self._metrics.ignored_parameters.inc(len(names))

    def begins(self, generation: Generation) -> None:
        self._generation = generation
        request = generation.request
        if self._metrics.input_length is not None and self._metrics.max_new_tokens is not None:
            self._metrics.input_length.observe(generation.num_prompt_tokens)
            self._metrics.max_new_tokens.observe(request.params.max_new_tokens or 0)

    def detach(self) -> None:
        """The call goes on after this block; `succeeded`, `failed` or `closed` ends it."""
        self._detached = True

    def succeeded(self) -> None:
        if self._done:
            return
        self._finish_timings()
        metrics, timings = self._metrics, self.timings
        metrics.request_success.inc()
        metrics.request_duration.observe(timings.total_s)
        metrics.validation_duration.observe(timings.validation_s)
        metrics.queue_duration.observe(timings.queue_s)
        metrics.inference_duration.observe(timings.inference_s)
        if timings.first_token:
            metrics.first_token_duration.observe(timings.first_token - timings.started)
        generation = self._generation
        if generation is not None and metrics.generated_tokens is not None:
            num_tokens = generation.num_generated_tokens
            metrics.generated_tokens.observe(num_tokens)
            metrics.time_per_token.observe(timings.inference_s / max(1, num_tokens))
        self._log(200, None)

    def failed(self, error: BaseException) -> None:
        if self._done:
            return
        self._finish_timings()
        reason = _failure(error)
        self._metrics.request_failure.labels(err=reason).inc()
        self._log(status_of(error), reason)

    def closed(self) -> None:
        """The response was closed: a call that had not ended by then lost its client."""
        if not self._done:
            self.failed(ClientDisconnected())

    def _finish_timings(self) -> None:
        self._done = True
        if self._generation is not None:
            self._generation.finish()
        else:
            self.timings.ended = time.monotonic()

    def _log(self, status: int, failure: str | None) -> None:
        timings = self.timings
        fields: dict[str, object] = {"route": self._route, "status": status, "total_s": timings.total_s}
        if failure is not None:
            fields["failure"] = failure
        if self._inference_id is not None:
            fields["inference_id"] = self._inference_id
        if self._ignored:
            fields["ignored_parameters"] = ",".join(self._ignored[:_MAX_LOGGED_NAMES])
        generation = self._generation
        if generation is not None:
            request = generation.request
            fields |= {
                "request_id": generation.request_id,
                "input_tokens": generation.num_prompt_tokens,
                "generated_tokens": generation.num_generated_tokens,
                "validation_s": timings.validation_s,
                "queue_s": timings.queue_s,
                "inference_s": timings.inference_s,
                "finish_reason": ",".join(s.text.finish_reason or "none" for s in generation.sequences),
                "seed": request.reported_seed,
            }
        level = logging.WARNING if status in (500, 424) else logging.INFO
        logs.event(logger, level, "request", **fields)


def _failure(error: BaseException) -> str:
    """TGI's `err` label."""
    if isinstance(error, Overloaded):
        return "overloaded"
    if isinstance(error, IncompleteGeneration):
        return "incomplete"
    status = status_of(error)
    if status == CLIENT_CLOSED_REQUEST:
        return "dropped"
    if status < 500 and isinstance(error, RequestError) and status != 424:
        return "validation"
    return "generation"
