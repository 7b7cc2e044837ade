"""Every error this package raises on purpose. Knows no AWS SDK.

TextGenError
├── ConfigurationError         an argument, option or variable holds a value we refuse; nothing was created
│   └── Misfit                 the model cannot run on the instance type
├── DeploymentFailed           SageMaker could not bring the endpoint or component into service
├── StreamError                a stream began and did not end well
│   ├── GenerationError        the server reported an error within the stream or the answer
│   ├── TruncatedStream        the stream ended before its last event
│   └── BrokenStream           the platform broke the stream off
├── AsyncGenerationFailed      an asynchronous invocation ended with an error object
└── EndpointError              an invocation was refused; `status` is the container's where one answered
    ├── RequestRefused         the container answered 4xx: repeating the same request does not help
    ├── Overloaded             the container answered 429 or 503, or the platform throttles
    ├── NoCapacity             no copy of the model is running
    └── ContainerFailed        the container answered 5xx, did not answer in time, or its connection broke
"""

from __future__ import annotations


class TextGenError(Exception):
    """Base of all deliberate errors."""


class ConfigurationError(TextGenError, ValueError):
    """Raised before anything is created."""


class Misfit(ConfigurationError):
    """The plan says that the model cannot run there."""


class DeploymentFailed(TextGenError):
    """`reason` is SageMaker's FailureReason."""

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class StreamError(TextGenError):
    """`text` is what had arrived when the stream failed."""

    def __init__(self, message: str, *, text: str = "") -> None:
        super().__init__(message)
        self.text = text


class GenerationError(StreamError):
    """The server's own report: `error` is its message, `error_type` its name, under `request_id` its log has more."""

    def __init__(
        self, error: str, *, error_type: str = "generation", request_id: str | None = None, text: str = ""
    ) -> None:
        super().__init__(f"{error} (error_type {error_type}, request {request_id or 'unknown'})", text=text)
        self.error = error
        self.error_type = error_type
        self.request_id = request_id


class TruncatedStream(StreamError):
    """boto3 reports no error when a connection ends early; the missing last event is the only sign."""


class BrokenStream(StreamError):
    """`code` is the event stream's exception type, such as ModelStreamError."""

    def __init__(self, message: str, *, code: str, text: str = "") -> None:
        super().__init__(message, text=text)
        self.code = code


class AsyncGenerationFailed(TextGenError):
    """`body` is the error object that was stored at `location`."""

    def __init__(self, message: str, *, location: str, body: str = "") -> None:
        super().__init__(message)
        self.location = location
        self.body = body


class EndpointError(TextGenError):
    """An invocation that got an error instead of an answer.

    `code` is the AWS error's name, `status` the container's own status (OriginalStatusCode; 0: it did not answer; None:
    the platform refused), `error` and `error_type` the parsed body of the container, `container_request_id` the id under
    which the container's log has more, `aws_request_id` the platform's, `log_stream_arn` where that log is.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int | None = None,
        error: str | None = None,
        error_type: str | None = None,
        container_request_id: str | None = None,
        aws_request_id: str | None = None,
        log_stream_arn: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.error = error
        self.error_type = error_type
        self.container_request_id = container_request_id
        self.aws_request_id = aws_request_id
        self.log_stream_arn = log_stream_arn
        self.retry_after_s = retry_after_s


class RequestRefused(EndpointError):
    pass


class Overloaded(EndpointError):
    pass


class NoCapacity(EndpointError):
    pass


class ContainerFailed(EndpointError):
    pass
