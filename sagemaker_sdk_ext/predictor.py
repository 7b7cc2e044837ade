"""Calls of a deployed endpoint: whole answers, streams, sessions, asynchronous calls, adapters.

Knows a `sagemaker-runtime` client, not who made it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sagemaker_sdk_ext import bodies, invocation
from sagemaker_sdk_ext.async_generation import AsyncGeneration, start_async
from sagemaker_sdk_ext.bodies import Generated, Message
from sagemaker_sdk_ext.decoder import SSE, StreamDecoder, StreamEvent
from sagemaker_sdk_ext.errors import BrokenStream, ConfigurationError
from sagemaker_sdk_ext.invocation import RetryPolicy
from sagemaker_sdk_ext.session import Session, open_session

_Item = TypeVar("_Item")


class TextGenPredictor:
    """An endpoint of the textgen image, or one inference component of it.

    `sagemaker_session` is an SDK's session or one of boto3. `client` is a `sagemaker-runtime` client; without it one is made
    from the session, or from `region` and `endpoint_url`, with timeouts and retries that suit generations. `adapter` names a
    LoRA adapter: its component (`component_name` is then the adapter's component) or, with `component_name` for the base,
    the adapter's S3 URI.
    """

    def __init__(
        self,
        endpoint_name: str,
        sagemaker_session: Any = None,
        *,
        component_name: str | None = None,
        adapter: str | None = None,
        client: Any = None,
        region: str | None = None,
        endpoint_url: str | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self.endpoint_name = endpoint_name
        self.component_name = component_name
        self.adapter = adapter
        self.sagemaker_session = sagemaker_session
        self.retry = retry or RetryPolicy()
        self._client = client
        self._region = region
        self._endpoint_url = endpoint_url
        self._session_id: str | None = None

    @classmethod
    def attach(cls, endpoint_name: str, **options: Any) -> TextGenPredictor:
        """A predictor for an endpoint that exists; `options` are the constructor's."""
        return cls(endpoint_name, **options)

    @property
    def client(self) -> Any:
        """The `sagemaker-runtime` client. A session's own one is replaced where it would retry generations."""
        if self._client is None:
            self._client = _client_of(self.sagemaker_session, self._region, self._endpoint_url)
        return self._client

    def with_adapter(self, adapter: str) -> TextGenPredictor:
        """The same endpoint with an adapter: the name of its component, or an s3:// URI with the base's component."""
        other = self._copy()
        other.adapter = adapter
        return other

    def generate(self, prompt: str, *, inference_id: str | None = None, **parameters: Any) -> Generated:
        """The native API: `parameters` such as max_new_tokens, temperature, stop. Raises `EndpointError`."""
        return self._whole(bodies.native_body(prompt, parameters, stream=False), inference_id)

    def chat(
        self, messages: Sequence[Message], *, inference_id: str | None = None, **parameters: Any
    ) -> Generated:
        """A chat completion: `parameters` such as max_tokens, temperature, tools. Raises `EndpointError`."""
        return self._whole(bodies.chat_body(messages, parameters, stream=False), inference_id)

    def stream(
        self,
        prompt_or_messages: str | Sequence[Message],
        *,
        inference_id: str | None = None,
        **parameters: Any,
    ) -> Stream[StreamEvent]:
        """Events of a generation (a text) or a chat (messages) as they come.

        The call is sent before this returns. Iterating raises `GenerationError` for an error within the stream,
        `TruncatedStream` when it ends early, `BrokenStream` when the platform breaks it off. Closing the iterator ends the
        connection, and with it the generation.
        """
        if isinstance(prompt_or_messages, str):
            body = bodies.native_body(prompt_or_messages, parameters, stream=True)
        else:
            body = bodies.chat_body(prompt_or_messages, parameters, stream=True)
        operation = getattr(self.client, "invoke_endpoint_with_response_stream", None)
        if operation is None:
            raise ConfigurationError(
                f"{type(self.client).__name__} cannot stream; use generate() or chat(), or a client of boto3"
            )
        request = self._request(body, inference_id) | {"Accept": SSE}
        response = invocation.call(operation, request, retry=self.retry)
        decoder = StreamDecoder(response.get("ContentType") or SSE, num_choices=int(parameters.get("n") or 1))
        events = _events(response["Body"], decoder)
        return Stream(events, getattr(response["Body"], "close", events.close))

    def stream_text(
        self,
        prompt_or_messages: str | Sequence[Message],
        *,
        inference_id: str | None = None,
        **parameters: Any,
    ) -> Stream[str]:
        """The texts of `stream`, without the empty ones. Raises as it does."""
        events = self.stream(prompt_or_messages, inference_id=inference_id, **parameters)
        return Stream((event.text for event in events if event.text and event.choice == 0), events.close)

    def session(self) -> Session:
        """A stateful session, for `with predictor.session() as chat:`; it has the methods of a predictor.

        The server keeps what it computed of the conversation. Raises `EndpointError` when it cannot open one.
        """
        return open_session(self._copy())

    def generate_async(
        self,
        prompt_or_messages: str | Sequence[Message],
        *,
        upload_to: str | None = None,
        s3_client: Any = None,
        timeout_s: int | None = None,
        **parameters: Any,
    ) -> AsyncGeneration:
        """Start an asynchronous generation on an endpoint that was deployed for them.

        The body goes inline when it is small and `upload_to` (an s3:// prefix) is not given. `timeout_s` is the longest time
        the container may take, 1 to 3600. Raises `EndpointError`, and `ConfigurationError` for a component or an adapter.
        """
        for what, name in {"component_name": self.component_name, "adapter": self.adapter}.items():
            if name is not None:
                raise ConfigurationError(
                    f"{what} = {name!r}: asynchronous calls reach an endpoint's own model only; use generate() or chat()"
                )
        if isinstance(prompt_or_messages, str):
            body = bodies.native_body(prompt_or_messages, parameters, stream=False)
        else:
            body = bodies.chat_body(prompt_or_messages, parameters, stream=False)
        request: dict[str, Any] = {"EndpointName": self.endpoint_name}
        if timeout_s is not None:
            request["InvocationTimeoutSeconds"] = timeout_s
        return start_async(
            self.client,
            request,
            bodies.encode(body),
            upload_to=upload_to,
            s3_client=s3_client,
            boto_session=_boto_session_of(self.sagemaker_session),
            retry=self.retry,
        )

    def predict(self, data: Any, initial_args: Mapping[str, Any] | None = None) -> Any:
        """Any JSON body to its JSON answer, as SDK 2's predictors have it. Raises `EndpointError`."""
        request = self._request({}, None) | {"Body": bodies.encode(data)} | dict(initial_args or {})
        response = invocation.call(self.client.invoke_endpoint, request, retry=self.retry)
        return json.loads(invocation.read(response))

    def _whole(self, body: dict[str, Any], inference_id: str | None) -> Generated:
        response = invocation.call(
            self.client.invoke_endpoint, self._request(body, inference_id), retry=self.retry
        )
        return bodies.read_answer(invocation.read(response), response.get("CustomAttributes"))

    def _request(self, body: Mapping[str, Any], inference_id: str | None) -> dict[str, Any]:
        optional = {
            "InferenceComponentName": self.component_name,
            "SessionId": self._session_id,
            "InferenceId": inference_id,
        }
        if self.adapter is not None and self.adapter.startswith("s3://"):
            optional["TargetModel"] = self.adapter
        elif self.adapter is not None:
            optional["InferenceComponentName"] = self.adapter
        request = {name: value for name, value in optional.items() if value is not None}
        return {
            "EndpointName": self.endpoint_name,
            "ContentType": bodies.JSON,
            "Accept": bodies.JSON,
            "Body": bodies.encode(body),
            **request,
        }

    def _copy(self) -> TextGenPredictor:
        other = TextGenPredictor(
            self.endpoint_name,
            self.sagemaker_session,
            component_name=self.component_name,
            adapter=self.adapter,
            client=self.client,
            retry=self.retry,
        )
        other._session_id = self._session_id
        return other


def _client_of(sagemaker_session: Any, region: str | None, endpoint_url: str | None) -> Any:
    """A client like the session's own, but for its timeouts and retries; a local session's is used as it is."""
    own = getattr(sagemaker_session, "sagemaker_runtime_client", None)
    meta = getattr(own, "meta", None)
    if own is not None and (meta is None or invocation.suits_generations(own)):
        return own
    if meta is not None:
        region, endpoint_url = meta.region_name, meta.endpoint_url
    boto_session = _boto_session_of(sagemaker_session)
    return invocation.runtime_client(region=region, endpoint_url=endpoint_url, boto_session=boto_session)


def _boto_session_of(sagemaker_session: Any) -> Any:
    """The boto3 session of an SDK's session, or that session itself; None: there is none."""
    found = getattr(sagemaker_session, "boto_session", None)
    return sagemaker_session if found is None and hasattr(sagemaker_session, "client") else found


class Stream(Iterator[_Item]):
    """`items`, and `close`, which ends the connection even when nothing has been read: a generator that has not begun would
    not do that."""

    def __init__(self, items: Generator[_Item, None, None], end: Callable[[], None]) -> None:
        self._items = items
        self._end = end

    def __next__(self) -> _Item:
        return next(self._items)

    def close(self) -> None:
        """Again: nothing."""
        self._items.close()
        self._end()


def _events(body: Any, decoder: StreamDecoder) -> Generator[StreamEvent, None, None]:
    from botocore.exceptions import BotoCoreError, EventStreamError
    from urllib3.exceptions import HTTPError

    try:
        for part in body:
            yield from decoder.push(part.get("PayloadPart", {}).get("Bytes", b""))
    except EventStreamError as error:
        details = error.response.get("Error", {})
        raise BrokenStream(
            f"the platform broke the stream off after {len(decoder.text)} characters: {error}",
            code=str(details.get("Code", "unknown")),
            text=decoder.text,
        ) from error
    except (BotoCoreError, HTTPError) as error:
        raise BrokenStream(
            f"the connection broke after {len(decoder.text)} characters: {error}",
            code=type(error).__name__,
            text=decoder.text,
        ) from error
    else:
        yield from decoder.close()
    finally:
        close = getattr(body, "close", None)
        if close is not None:
            close()
