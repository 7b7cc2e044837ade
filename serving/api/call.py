"""One generation call of any API: its record, its body, the server's facts, and how its answer leaves, whole or streamed.
Knows no API's shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from flask import Response, request

from serving.api.connection import ClientConnection, connection_of
from serving.api.context import ApiContext, context
from serving.api.error_handlers import json_response, with_error_event
from serving.api.error_styles import Problem
from serving.api.generation import Generation
from serving.api.readiness import Serving
from serving.api.request_record import RequestRecord
from serving.api.schema.generate import GenerateRequest
from serving.api.start_gate import StartPass
from serving.api.streaming import SSE, Framing, paced
from serving.api.strict_json import JsonValue
from serving.errors import InvalidRequest

CUSTOM_ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
DEADLINE_REACHED = "deadline=reached"
"""Custom attribute of an answer that is not complete because the time for it was over."""


@dataclass(slots=True)
class Call:
    shared: ApiContext
    serving: Serving
    connection: ClientConnection
    record: RequestRecord
    body: dict[str, JsonValue]
    start_pass: StartPass
    framing: Framing = SSE
    deadline: float | None = None
    """Reading of `time.monotonic` at which an answer that is not streamed has to be complete."""
    may_stream: bool = True
    enter_session: Callable[[], str] | None = None
    """For a call that is a turn of a session: gives the session's id, or raises the `RequestError` that says why not."""

    def generation(self, *requests: GenerateRequest, keep_tokens: bool) -> Generation:
        """The generation of this call, noted in its record."""
        generation = Generation(
            *requests,
            engine=self.shared.engine,
            text=self.serving.text,
            connection=self.connection,
            timings=self.record.timings,
            keep_tokens=keep_tokens,
            on_submitted=self.start_pass.give_back,
            deadline=None if requests[0].stream else self.deadline,
            session_id="" if self.enter_session is None else self.enter_session(),
        )
        self.record.begins(generation)
        return generation

    def whole(self, generation: Generation, body: object) -> Response:
        """Answer with `body`; a header says where a deadline cut it."""
        response = json_response(body)
        if generation.deadline_reached:
            response.headers[CUSTOM_ATTRIBUTES] = DEADLINE_REACHED
        return response

    def stream(
        self,
        generation: Generation,
        events: Callable[[Generation, Framing], Iterator[bytes]],
        headers: Mapping[str, str],
        *,
        last_event: Callable[[Problem], bytes] | None = None,
    ) -> Response:
        """Answer with `events` once the engine admitted the call; a refusal before that is an ordinary error.

        `last_event` says what ends a stream that fails, where that is not an error's body.
        """
        if not self.may_stream:
            raise InvalidRequest("`stream`: a line of a JSON-lines body is answered whole", field="stream")
        with ExitStack() as stack:
            stack.callback(generation.close)
            generation.start()
            stack.pop_all()
        self.record.detach()
        chunks = paced(
            events(generation, self.framing),
            framing=self.framing,
            heartbeat_s=self.shared.config.http.heartbeat_s,
            more=generation.has_news,
            connection=self.connection,
        )
        response = Response(
            with_error_event(
                chunks,
                framing=self.framing,
                on_error=self.record.failed,
                on_end=self.record.succeeded,
                last_event=last_event,
            )
        )
        response.headers.update({**self.framing.headers, **headers})
        # Also runs when the client left before the first byte; an iterator that never began would not notice.
        response.call_on_close(generation.close)
        response.call_on_close(self.record.closed)
        return response


ReadBody = Callable[[ApiContext, RequestRecord, ClientConnection], dict[str, JsonValue]]


@contextmanager
def open_call(read_body: ReadBody | None = None) -> Iterator[Call]:
    """Read the current request, with `read_body` where its body need not be a JSON object. Everything that goes wrong
    inside is counted and logged as this call's.
    """
    shared = context()
    inference_id = request.headers.get("X-Amzn-SageMaker-Inference-Id")
    with RequestRecord(shared.metrics, request.path, inference_id) as record:
        connection = connection_of(request.environ)
        serving = shared.readiness.require()
        shared.metrics.bind_limits(
            max_input_tokens=serving.limits.max_input_tokens,
            max_total_tokens=serving.limits.max_total_tokens,
        )
        body = (read_body or _read_object)(shared, record, connection)
        record.body_read()
        start_pass = shared.start_gate.enter()
        try:
            yield Call(
                shared=shared,
                serving=serving,
                connection=connection,
                record=record,
                body=body,
                start_pass=start_pass,
            )
        finally:
            start_pass.give_back()


def _read_object(shared: ApiContext, _: RequestRecord, connection: ClientConnection) -> dict[str, JsonValue]:
    return shared.bodies.read_object(request.environ, connection)
