"""Stateful sessions of an endpoint: opened, used like a predictor, closed. Knows the headers' two spellings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sagemaker_sdk_ext import invocation
from sagemaker_sdk_ext.bodies import Generated, Message
from sagemaker_sdk_ext.decoder import StreamEvent
from sagemaker_sdk_ext.errors import EndpointError, GenerationError, RequestRefused

if TYPE_CHECKING:
    from sagemaker_sdk_ext.predictor import TextGenPredictor

_HEADERS = ("x-amzn-sagemaker-new-session-id", "x-amzn-sagemaker-session-id")


class Session:
    """One session; leaving its `with` block closes it. `expires` is when the server forgets it, in UTC, if it said so."""

    def __init__(self, predictor: TextGenPredictor, session_id: str, expires: datetime | None) -> None:
        self.session_id = session_id
        self.expires = expires
        self.closed = False
        self._predictor = predictor
        predictor._session_id = session_id

    def generate(self, prompt: str, **parameters: Any) -> Generated:
        return self._predictor.generate(prompt, **parameters)

    def chat(self, messages: Sequence[Message], **parameters: Any) -> Generated:
        return self._predictor.chat(messages, **parameters)

    def stream(self, prompt_or_messages: str | Sequence[Message], **parameters: Any) -> Iterator[StreamEvent]:
        return self._predictor.stream(prompt_or_messages, **parameters)

    def stream_text(self, prompt_or_messages: str | Sequence[Message], **parameters: Any) -> Iterator[str]:
        return self._predictor.stream_text(prompt_or_messages, **parameters)

    def close(self) -> None:
        """End the session on the server, where it may have ended by itself; again: nothing. Raises `EndpointError`."""
        if self.closed:
            return
        try:
            _call(self._predictor, "CLOSE")
        except RequestRefused as error:
            if (
                error.status is None
            ):  # the platform's refusal, not a container that does not know the session any more
                raise
        self.closed = True

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What went wrong in the block is the news; the server ends a session that nobody closes.
        with suppress(EndpointError) if error is not None else nullcontext():
            self.close()


def open_session(predictor: TextGenPredictor) -> Session:
    """`predictor` is the session's own from now on."""
    predictor._session_id = "NEW_SESSION"
    response = _call(predictor, "NEW_SESSION")
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    texts = [response.get("NewSessionId"), *(headers.get(name) for name in _HEADERS)]
    text = next((value for value in texts if value), None)
    if text is None:
        raise GenerationError(
            "the answer to NEW_SESSION names no session; does the endpoint run this image, with sessions on?",
            error_type="bad_answer",
        )
    session_id, expires = parse_session_id(text)
    return Session(predictor, session_id, expires)


def parse_session_id(text: str) -> tuple[str, datetime | None]:
    """`<id>; Expires=2026-01-31T12:00:00Z` to the id and the time, None where there is none or none that can be read."""
    session_id, _, attributes = text.partition(";")
    for attribute in attributes.split(";"):
        name, _, value = attribute.partition("=")
        if name.strip().lower() == "expires":
            try:
                moment = datetime.fromisoformat(value.strip())
            except ValueError:
                continue
            return session_id.strip(), moment.replace(
                tzinfo=UTC
            ) if moment.tzinfo is None else moment.astimezone(UTC)
    return session_id.strip(), None


def _call(predictor: TextGenPredictor, request_type: str) -> dict[str, Any]:
    request = predictor._request({"requestType": request_type}, None)
    response = invocation.call(predictor.client.invoke_endpoint, request, retry=predictor.retry)
    invocation.read(response)
    return response
