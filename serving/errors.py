"""Every error the product raises on purpose. Knows nothing of HTTP: `serving.api.error_handlers` maps classes to statuses.

    ServingError
    ├── StartupError                 the container cannot start: one line with the reason and the fix
    │   ├── ConfigError              a variable, flag or config key holds a value we refuse
    │   ├── ModelError               the model files are missing, unsupported or inconsistent
    │   └── DeviceError              no usable device, or too little memory
    ├── RequestError                 one request ends with it; the server goes on
    │   ├── InvalidRequest           a field is wrong; `field` names it
    │   │   └── ContextTooLong       prompt and answer do not fit the model's context
    │   ├── Unauthorized             no API key, or a wrong one
    │   ├── ToolError                the tools or the answer's format cannot be used as asked
    │   ├── TemplateError            the model has no chat template, or it refuses these messages
    │   ├── MalformedBody            not JSON, or JSON we refuse to read (400)
    │   ├── PayloadTooLarge          body over the limit
    │   ├── UnsupportedMediaType     content type that is not JSON
    │   ├── BodyTimeout              the client sent its body too slowly
    │   ├── NotFound                 no such route, model or adapter
    │   ├── SessionRefused           no such session any more, or sessions are switched off (400)
    │   │   └── SessionMissing       a session is to be closed and none was named (424)
    │   ├── MethodNotAllowed         the route exists, the method does not
    │   ├── Overloaded               queue or concurrency is full; `retry_after_s` says when to come back
    │   ├── Draining                 the server is stopping
    │   ├── NotReady                 the server is still starting
    │   ├── DeadlineExceeded         the time for an answer is over, and what there is of it is of no use
    │   ├── HandlerFailed            a hook of the custom handler failed, took too long, or gave what is no answer
    │   ├── HandlerRefused           a hook of the custom handler refused what the client sent
    │   ├── GenerationFailed         the engine failed while working on this request
    │   └── IncompleteGeneration     the generation ended without a final message
    └── TransportError               an internal channel broke or carried something that is not a frame

`error_type` is the wire name (TGI's where TGI has one). `to_wire`/`from_wire` carry an error from the engine to the front.
"""

from __future__ import annotations

import msgspec


class ServingError(Exception):
    """Base of all deliberate errors."""

    error_type = "internal"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class StartupError(ServingError):
    error_type = "startup"


class ConfigError(StartupError):
    error_type = "config"


class ModelError(StartupError):
    error_type = "model"


class DeviceError(StartupError):
    error_type = "device"


class TransportError(ServingError):
    error_type = "transport"


class RequestError(ServingError):
    """An error that ends one request. Its message is shown to the client: no paths, no addresses, no secrets."""

    error_type = "generation"


class InvalidRequest(RequestError):
    error_type = "validation"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ContextTooLong(InvalidRequest):
    """Its own class, because clients that shorten their prompts look for it."""


class Unauthorized(RequestError):
    error_type = "unauthorized"


class ToolError(RequestError):
    error_type = "tool_error"


class TemplateError(RequestError):
    error_type = "template_error"


class MalformedBody(RequestError):
    error_type = "malformed_json"


class PayloadTooLarge(RequestError):
    error_type = "payload_too_large"


class UnsupportedMediaType(RequestError):
    error_type = "unsupported_media_type"


class BodyTimeout(RequestError):
    error_type = "body_timeout"


class NotFound(RequestError):
    error_type = "not_found"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class SessionRefused(RequestError):
    error_type = "session"


class SessionMissing(SessionRefused):
    """Its own class, because hosting conventions give it a status of its own."""


class MethodNotAllowed(RequestError):
    error_type = "method_not_allowed"


class Overloaded(RequestError):
    error_type = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Draining(RequestError):
    error_type = "draining"


class NotReady(RequestError):
    error_type = "healthcheck"


class DeadlineExceeded(RequestError):
    error_type = "deadline"


class HandlerFailed(RequestError):
    error_type = "handler"


class HandlerRefused(RequestError):
    error_type = "handler_refused"


class GenerationFailed(RequestError):
    error_type = "generation"


class IncompleteGeneration(RequestError):
    error_type = "incomplete_generation"


class WireError(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A `RequestError` on its way through a socket."""

    error_type: str
    message: str
    field: str | None = None
    retry_after_s: float | None = None


_WIRE_CLASSES: dict[str, type[RequestError]] = {
    cls.error_type: cls
    for cls in (
        InvalidRequest,
        NotFound,
        SessionRefused,
        ToolError,
        Overloaded,
        Draining,
        GenerationFailed,
        NotReady,
    )
}


def to_wire(error: RequestError) -> WireError:
    return WireError(
        error_type=error.error_type,
        message=error.message,
        field=error.field if isinstance(error, InvalidRequest | NotFound) else None,
        retry_after_s=error.retry_after_s if isinstance(error, Overloaded) else None,
    )


def from_wire(error: WireError) -> RequestError:
    cls = _WIRE_CLASSES.get(error.error_type, GenerationFailed)
    if cls is InvalidRequest:
        return InvalidRequest(error.message, field=error.field)
    if cls is NotFound:
        return NotFound(error.message, field=error.field)
    if cls is Overloaded:
        return Overloaded(error.message, retry_after_s=error.retry_after_s or 1.0)
    return cls(error.message)
