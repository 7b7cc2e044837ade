"""The errors of invocations: AWS's texts for what a container did, and the HTTP answers that carry any error.

Message texts are those of the platform as users reported them; `Message` has at most 2048 characters.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from local_mode.contracts import ServiceError, Target

MAX_MESSAGE_CHARS = 2048
MAX_QUOTED_BYTES = 1024
"""A longer error body of a container is not quoted, and not read to its end."""

_RENAMED = {"ValidationException": "ValidationError"}
"""The stores of resources speak as the control plane does; the runtime has its own name for the same error."""


@dataclass(frozen=True, slots=True)
class _Log:
    """What `arn:aws:logs:<region>:<account>:log-group:<group>[:log-stream:<stream>]` says."""

    region: str
    account: str
    group: str

    @classmethod
    def of(cls, arn: str) -> _Log:
        words = [*arn.split(":"), *[""] * 7][:7]
        return cls(region=words[3], account=words[4], group=words[6])

    @property
    def reference(self) -> str:
        page = f"https://{self.region}.console.aws.amazon.com/cloudwatch/home?region={self.region}"
        return f"See {page}#logEventViewer:group={self.group} in account {self.account} for more information."


def container_answered(target: Target, status: int, body: bytes, *, complete: bool = True) -> ServiceError:
    """The container's answer has a status that is no success."""
    kind, code = _side(status)
    said = f"Received {kind} error ({status}) from {target.hostname}"
    text = _quotable(body) if complete else None
    if text is None:
        said += " and could not load the entire response body."
    else:
        said += f' with message "{text}".'
    return _model_error(target, said, status=status, original=text, code=code)


def container_silent(target: Target) -> ServiceError:
    """The clock ran out."""
    text = (
        f"Your invocation timed out while waiting for a response from container {target.hostname}. "
        "Review the latency metrics for each container in Amazon CloudWatch, resolve the issue, and try again."
    )
    return _failed(target, text, code="INVOCATION_TIMEOUT")


def container_failed(target: Target, what: str) -> ServiceError:
    """There is no answer, because of `what`: not accepted, closed, not HTTP."""
    return _failed(target, f"{what} (container {target.hostname})", code="SERVER_ERROR_FROM_MODEL")


def answer_too_large(target: Target, status: int, limit_bytes: int) -> ServiceError:
    said = (
        f"Received a response ({status}) from {target.hostname} with more than {limit_bytes} bytes"
        " and could not load the entire response body."
    )
    return _model_error(target, said, status=status, original=None, code="SERVER_ERROR_FROM_MODEL")


def oversized_request(limit_bytes: int) -> ServiceError:
    """AWS's error has no name: clients see the status as its code."""
    return ServiceError("413", f"HTTP content length exceeded {limit_bytes} bytes.", status=413)


def invalid(message: str) -> ServiceError:
    return ServiceError("ValidationError", message)


def _side(status: int) -> tuple[str, str]:
    if 400 <= status < 500:
        return "client", "CLIENT_ERROR_FROM_MODEL"
    return "server", "SERVER_ERROR_FROM_MODEL"


def _quotable(body: bytes) -> str | None:
    """The body as text; None when it is long or no text."""
    if len(body) > MAX_QUOTED_BYTES:
        return None
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    return text if all(character.isprintable() or character in "\r\n\t" for character in text) else None


def _failed(target: Target, text: str, *, code: str) -> ServiceError:
    said = f'Received server error (0) from {target.hostname} with message "{text}".'
    return _model_error(target, said, status=0, original=text, code=code)


def _model_error(target: Target, said: str, *, status: int, original: str | None, code: str) -> ServiceError:
    members: dict[str, object] = {"OriginalStatusCode": status, "LogStreamArn": target.log_stream_arn}
    if original is not None:
        members["OriginalMessage"] = original
    message = f"{said} {_Log.of(target.log_stream_arn).reference}"[:MAX_MESSAGE_CHARS]
    return ServiceError("ModelError", message, status=424, ErrorCode=code, **members)


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An error as an HTTP answer."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @classmethod
    def of(cls, error: ServiceError, request_id: str) -> ErrorAnswer:
        """In the form of AWS's JSON protocols."""
        return cls._with(error, request_id, {"Message": error.message, **error.members})

    @classmethod
    def for_openai(cls, error: ServiceError, request_id: str) -> ErrorAnswer:
        """In the form that OpenAI's clients read."""
        code = _code(error)
        return cls._with(error, request_id, {"error": {"message": error.message, "type": code, "code": code}})

    @classmethod
    def _with(cls, error: ServiceError, request_id: str, document: dict[str, object]) -> ErrorAnswer:
        body = json.dumps(document).encode()
        headers = [
            ("content-type", "application/json"),
            ("x-amzn-errortype", _code(error)),
            ("x-amzn-requestid", request_id),
        ]
        return cls(error.status, headers, body)


def _code(error: ServiceError) -> str:
    return _RENAMED.get(error.code, error.code)
