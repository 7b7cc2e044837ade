"""Calls of the `sagemaker-runtime` service: a client that suits long generations, errors as our tree, bounded retries.

Knows nothing of request bodies.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sagemaker_sdk_ext.errors import (
    ConfigurationError,
    ContainerFailed,
    EndpointError,
    NoCapacity,
    Overloaded,
    RequestRefused,
)

READ_TIMEOUT_S = 70.0
"""Over the 60 s that the platform gives a container, so that its answer is the one that ends the call."""
_RETRYABLE_STATUSES = (429, 503)
_THROTTLES = frozenset(
    {"ThrottlingException", "TooManyRequestsException", "ServiceUnavailable", "ModelNotReadyException"}
)
_NO_CAPACITY = ("no capacity", "not have any capacity", "0 copies", "no copies", "scaled to zero")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a refused call is sent again. Only refusals are: nothing was generated yet."""

    max_attempts: int = 4
    max_elapsed_s: float = 60.0
    first_delay_s: float = 0.5
    max_delay_s: float = 8.0

    def delay_s(self, attempt: int, retry_after_s: float | None) -> float:
        """Before attempt `attempt` + 1. What the server asks for counts in full; else exponential, with jitter."""
        if retry_after_s is not None:
            return retry_after_s + random.uniform(0.0, 0.1 * retry_after_s)
        longest = min(self.max_delay_s, self.first_delay_s * 2.0 ** (attempt - 1))
        return random.uniform(longest / 2, longest)


def runtime_client(
    *, region: str | None = None, endpoint_url: str | None = None, boto_session: Any = None
) -> Any:
    """A boto3 client that never sends a generation twice by itself and keeps its connection alive."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise ConfigurationError("boto3 is needed to call an endpoint: pip install boto3") from error

    config = Config(
        read_timeout=READ_TIMEOUT_S,
        connect_timeout=5,
        retries={"max_attempts": 0, "mode": "standard"},
        tcp_keepalive=True,
        max_pool_connections=64,
    )
    session = boto_session or boto3.session.Session()
    return session.client("sagemaker-runtime", region_name=region, endpoint_url=endpoint_url, config=config)


def call(operation: Callable[..., Any], request: dict[str, Any], *, retry: RetryPolicy) -> dict[str, Any]:
    """Invoke with retries on 429 and 503. Raises `EndpointError`."""
    started = time.monotonic()
    attempt = 1
    while True:
        try:
            return _call_once(operation, request)
        except Overloaded as error:
            delay_s = retry.delay_s(attempt, error.retry_after_s)
            elapsed_s = time.monotonic() - started
            if attempt >= retry.max_attempts or elapsed_s + delay_s > retry.max_elapsed_s:
                error.add_note(f"sent {attempt} times within {elapsed_s:.1f} s")
                raise
        time.sleep(delay_s)
        attempt += 1


def suits_generations(client: Any) -> bool:
    """Whether a client waits long enough and does not repeat a call by itself."""
    config = client.meta.config
    retries = config.retries or {}
    attempts = retries.get("total_max_attempts", retries.get("max_attempts", 2) + 1)
    return bool(config.read_timeout and config.read_timeout >= READ_TIMEOUT_S and attempts <= 1)


def read(response: dict[str, Any]) -> bytes:
    """The body of an answer. Raises `ContainerFailed` when it does not arrive whole."""
    from botocore.exceptions import BotoCoreError
    from urllib3.exceptions import HTTPError

    try:
        data: bytes = response["Body"].read()
    except (BotoCoreError, HTTPError) as error:
        raise ContainerFailed(
            f"the answer did not arrive whole: {error}", code=type(error).__name__
        ) from error
    return data


def _call_once(operation: Callable[..., Any], request: dict[str, Any]) -> dict[str, Any]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        response: dict[str, Any] = operation(**request)
    except ClientError as error:
        raise endpoint_error(error.response) from error
    except BotoCoreError as error:
        raise EndpointError(
            f"endpoint {request.get('EndpointName')!r} could not be called: {error}",
            code=type(error).__name__,
        ) from error
    return response


def endpoint_error(response: dict[str, Any]) -> EndpointError:
    """`ClientError.response` as our error. The container's own words win over the platform's wrapping."""
    error = response.get("Error", {})
    code, message = str(error.get("Code", "Unknown")), str(error.get("Message", ""))
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    status = response.get("OriginalStatusCode")
    body = _container_error(response.get("OriginalMessage"))
    text = body.get("error") or message
    cls = _class_of(code, status, message)
    return cls(
        _message(code, status, str(text), response),
        code=code,
        status=status,
        error=body.get("error"),
        error_type=body.get("error_type"),
        container_request_id=body.get("request_id"),
        aws_request_id=response.get("ResponseMetadata", {}).get("RequestId"),
        log_stream_arn=response.get("LogStreamArn"),
        retry_after_s=_seconds(
            body.get("retry_after_s"), body.get("retry_after"), headers.get("retry-after")
        ),
    )


def _class_of(code: str, status: int | None, message: str) -> type[EndpointError]:
    if code == "ModelError":
        if status in _RETRYABLE_STATUSES:
            return Overloaded
        return RequestRefused if status is not None and 400 <= status < 500 else ContainerFailed
    lowered = message.lower()
    if any(words in lowered for words in _NO_CAPACITY):
        return NoCapacity
    if code in _THROTTLES:
        return Overloaded
    return RequestRefused if code == "ValidationError" else EndpointError


def _message(code: str, status: int | None, text: str, response: dict[str, Any]) -> str:
    lines = [f"{code}: {text}" if status is None else f"the container answered {status}: {text}"]
    if status == 0:
        lines = [
            f"the container did not answer: {text}; stream the answer, or deploy for asynchronous inference"
        ]
    if status in _RETRYABLE_STATUSES:
        lines.append("it has more requests than it can take; send fewer at once or add instances")
    if (
        code == "ValidationError"
        and "inference component" in text.lower()
        and "not found" not in text.lower()
    ):
        lines.append("give component_name= to the predictor")
    if response.get("LogStreamArn"):
        lines.append(f"log: {response['LogStreamArn']}")
    return "; ".join(lines)


def _container_error(original: object) -> dict[str, Any]:
    """`error`, `error_type`, `request_id` of the container's JSON body, whichever API's shape it has; {} for other texts."""
    try:
        value = json.loads(original) if isinstance(original, str) else None
    except ValueError:
        return {}
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict):
        found = {key: error.get(key) for key in ("request_id", "retry_after_s", "retry_after")}
        return {**found, "error": error.get("message"), "error_type": error.get("code") or error.get("type")}
    return dict(value) if isinstance(value, dict) and error is not None else {}


def _seconds(*values: object) -> float | None:
    """The first that is a number of seconds, at least 0; a Retry-After may also be a date, which is not used."""
    for value in values:
        try:
            seconds = float(value) if isinstance(value, int | float | str) else -1.0
        except ValueError:
            continue
        if 0.0 <= seconds < float("inf"):
            return seconds
    return None
