"""What is counted, logged and traced about one generation call, once, when it ends. Prompts and answers leave it only under
LOG_PROMPTS.
"""

from __future__ import annotations

import time
from types import TracebackType

from flask import has_request_context

from serving.api import access as accesses
from serving.api.connection import ClientDisconnected
from serving.api.context import context
from serving.api.error_handlers import CLIENT_CLOSED_REQUEST, current_style, status_of
from serving.api.error_styles import NATIVE, OPENAI
from serving.api.generation import Generation, Timings
from serving.api.request_facts import generation_attributes, generation_facts, prompt_facts, trace_parts
from serving.errors import (
    DeadlineExceeded,
    Draining,
    IncompleteGeneration,
    InvalidRequest,
    NotFound,
    NotReady,
    Overloaded,
    RequestError,
    ServingError,
    SessionRefused,
    TemplateError,
)
from serving.metrics import ServerMetrics
from serving.tracing import Attribute

_MAX_LOGGED_NAMES = 20
_APIS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
}


class RequestRecord:
    """Use as a context manager around a call. One that goes on as a stream is detached from it."""

    def __init__(
        self, metrics: ServerMetrics, route: str, inference_id: str | None, *, api: str | None = None
    ) -> None:
        """`api` names whose body it is (`native`, `chat`, `completions`, `responses`); absent: as the route says."""
        self._access = accesses.current_access()
        self._access.claimed = True
        if self._access.route == accesses.UNKNOWN_ROUTE:
            self._access.route = route
        self.timings = Timings(started=self._access.started_s)
        self.api = api or _APIS.get(self._access.route)
        self._metrics = metrics
        self.session: str | None = None
        """The name of the call's session in the log."""
        self._inference_id = accesses.plain_name(inference_id) if inference_id else None
        self._model: str | None = None
        self._log_prompts = False
        if has_request_context():
            self._model = accesses.model_id()
            self._log_prompts = context().config.runtime.log_prompts
        self._generation: Generation | None = None
        self._ignored: list[str] = []
        self._style = NATIVE
        self._detached = False
        self._done = False
        self._body_read_s = 0.0
        self._hooks: list[tuple[str, float, float]] = []
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

    def body_read(self) -> None:
        """The body has arrived; what follows until the engine is asked is its check and the tokenizer."""
        self._body_read_s = time.monotonic()

    def hook_ended(self, hook: str, started_s: float, *, failed: bool) -> None:
        """A hook of the custom handler was called at `started_s`, a reading of `time.monotonic`, and has ended now."""
        ended_s = time.monotonic()
        self._hooks.append((f"handler.{hook}", started_s, ended_s))
        self._metrics.hook_duration.labels(hook=hook).observe(ended_s - started_s)
        if failed:
            self._metrics.hook_failures.labels(hook=hook).inc()

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
        """The call goes on after this block, without the request's context; `succeeded`, `failed` or `closed` ends it."""
        self._detached = True
        self._style = current_style()

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
        generation = self._generation
        if generation is not None and metrics.generated_tokens is not None:
            num_tokens = generation.num_generated_tokens
            metrics.generated_tokens.observe(num_tokens)
            metrics.time_per_token.observe(timings.inference_s / max(1, num_tokens))
        self._end(200, "success", None)

    def failed(self, error: BaseException) -> None:
        if self._done:
            return
        self._finish_timings()
        self._metrics.request_failure.labels(err=_failure(error)).inc()
        status = status_of(error, self._style if self._detached else None)
        self._end(status, "aborted" if status == CLIENT_CLOSED_REQUEST else "error", error)

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

    def _end(self, status: int, outcome: str, error: BaseException | None) -> None:
        """The same for every end: latencies, the line, the span."""
        metrics, timings = self._metrics, self.timings
        metrics.call_duration.labels(outcome=outcome).observe(timings.total_s)
        if timings.first_token:
            metrics.first_token_duration.observe(timings.first_token - timings.started)
            metrics.observe_token_gaps(timings.token_gaps)
        api = self.api or ("openai" if self._current_style() is OPENAI else "native")
        facts: dict[str, object] = {
            "api": api,
            "model": self._model,
            "inference_id": self._inference_id,
            "session": self.session,
            "handler_s": sum(ended_s - started_s for _, started_s, ended_s in self._hooks) or None,
        }
        attributes: dict[str, Attribute] = {}
        if self._ignored:
            names = [accesses.plain_name(name) for name in self._ignored[:_MAX_LOGGED_NAMES]]
            facts["ignored_parameters"] = ",".join(names)
        if self._access.span is not None:
            for part in self._hooks:
                self._access.span.child(*part)
        generation = self._generation
        if generation is not None:
            if generation.deadline_reached:
                metrics.deadlines.labels(answer="none" if error is not None else "partial").inc()
            facts |= generation_facts(generation)
            if self._log_prompts:
                facts |= prompt_facts(generation)
            if self._access.span is not None:
                attributes = generation_attributes(generation, api=api, model=self._model)
                for name, start_s, end_s in trace_parts(generation, self._body_read_s):
                    self._access.span.child(name, start_s, end_s)
        self._access.finish(
            status,
            facts,
            attributes,
            error_type=None if error is None else _error_type(error),
            fault=error.field if isinstance(error, InvalidRequest | NotFound) else None,
            ended_s=timings.ended,
        )

    def _current_style(self) -> object:
        return self._style if self._detached else current_style()


def _error_type(error: BaseException) -> str:
    if isinstance(error, ClientDisconnected):
        return accesses.CLIENT_CLOSED
    return error.error_type if isinstance(error, ServingError) else "internal"


def _failure(error: BaseException) -> str:
    """TGI's `err` label. Requests that come before the start or after the end count as overload, come back
    later, and so do those that ran out of time."""
    if isinstance(error, ClientDisconnected):
        return "dropped"
    if isinstance(error, Overloaded | Draining | NotReady | DeadlineExceeded):
        return "overloaded"
    if isinstance(error, IncompleteGeneration):
        return "incomplete"
    if isinstance(error, TemplateError):
        return "template"
    if isinstance(error, SessionRefused):
        return "validation"
    status = status_of(error, NATIVE)
    if status < 500 and isinstance(error, RequestError) and status != 424:
        return "validation"
    return "generation"
