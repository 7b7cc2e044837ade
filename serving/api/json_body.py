"""The one door for request bodies: media type, size, time, strict JSON, schema. Every route that takes a
body comes through `read_object` and `convert`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import gevent
import msgspec
from gunicorn.http.errors import ParseException

from serving.api import strict_json
from serving.api.connection import ClientConnection, ClientDisconnected, cooperative
from serving.api.realtime.event_request import current_event
from serving.api.strict_json import JsonValue
from serving.errors import (
    BodyTimeout,
    InvalidRequest,
    MalformedBody,
    Overloaded,
    PayloadTooLarge,
    RequestError,
    UnsupportedMediaType,
)

_Schema = TypeVar("_Schema")

MAX_LINES = 100_000
"""Of one body of JSON lines."""

_READ_BYTES = 16 * 1024
_READ_BYTES_CHUNKED = 4 * 1024  # chunks may be one byte long: other greenlets get their turn after this many
_LEAST_BYTES_PER_S = 64 * 1024
"""Each second that a body takes beyond `timeout_s` has to be paid for with so many bytes."""
_JSON_TYPE = re.compile(r"application/([\w.-]+\+)?json", re.IGNORECASE)
_JSON_LINES_TYPES = frozenset(
    {"application/jsonlines", "application/x-jsonlines", "application/jsonl", "application/x-ndjson"}
)
_STEPS = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_MAX_GIVEN_CHARS = 40
_AT_PATH = re.compile(r"(.*?)(?: - at `\$\.?(.*)`)?", re.DOTALL)


@dataclass(slots=True)
class BodyReader:
    """Reads bodies for one worker. `buffered_bytes` counts what all unfinished bodies hold together.

    A body may be silent for `timeout_s`, and as a whole take that and the time that its bytes are worth: one that keeps
    coming is never cut, however large, and one that comes in drops has no more time than an empty one.
    """

    limit_bytes: int
    timeout_s: float
    buffer_limit_bytes: int
    buffered_bytes: int = 0

    def read_object(self, environ: dict[str, Any], connection: ClientConnection) -> dict[str, JsonValue]:
        """The body as a JSON object. Raises the `RequestError` that says what is wrong with it.

        After an error raised before the body was read to its end the connection is closed with the answer.
        """
        if (event := current_event()) is not None:
            return event.body
        value = strict_json.parse(self._settle(environ, connection, _check_media_type))
        if not isinstance(value, dict):
            raise InvalidRequest(f"the body must be a JSON object, not {_kind(value)}", field="body")
        return value

    def read_raw(self, environ: dict[str, Any], connection: ClientConnection) -> bytes:
        """The body as it came, whatever its media type. Errors as with `read_object`."""
        return self._settle(environ, connection, _check_compression)

    def read_lines(self, environ: dict[str, Any], connection: ClientConnection) -> list[bytes]:
        """The lines of the body as they came, without their ends; what follows the last end is no line if it is empty.
        Errors as with `read_object`.
        """
        body = self._settle(environ, connection, _check_encoding)
        if not body.strip():
            raise MalformedBody("the body is empty, lines of JSON are expected")
        lines = body.removesuffix(b"\n").split(b"\n", MAX_LINES)
        if len(lines) > MAX_LINES:
            raise PayloadTooLarge(f"the body has more than {MAX_LINES} lines")
        return lines

    def hold(self, num_bytes: int) -> None:
        """Count bytes of an unfinished body that is read elsewhere; a negative number gives them back.

        Raises `Overloaded`.
        """
        self.buffered_bytes += num_bytes
        if num_bytes > 0:
            self._check_buffer()

    def _settle(
        self,
        environ: dict[str, Any],
        connection: ClientConnection,
        check: Callable[[dict[str, Any]], None],
    ) -> bytes:
        try:
            check(environ)
            return self._read(environ)
        except RequestError as error:
            connection.close_after_response(unread_body=not isinstance(error, BodyTimeout))
            raise
        finally:
            connection.body_settled = True

    def _read(self, environ: dict[str, Any]) -> bytes:
        declared = environ.get("CONTENT_LENGTH") or None
        if declared is not None and not declared.isdecimal():
            raise MalformedBody("the Content-Length header is not a number")
        if declared is not None and int(declared) > self.limit_bytes:
            raise self._too_large(f"{int(declared)} bytes")
        if declared is None and not environ.get("wsgi.input_terminated"):
            return b""
        body = bytearray()
        started_s = time.monotonic()
        pieces = _pieces(environ, None if declared is None else int(declared))
        try:
            while data := self._next_piece(pieces, started_s + len(body) / _LEAST_BYTES_PER_S):
                body += data
                self.buffered_bytes += len(data)
                self._check_limits(len(body))
        finally:
            self.buffered_bytes -= len(body)
        return bytes(body)

    def _next_piece(self, pieces: Iterator[bytes], paid_until_s: float) -> bytes:
        """Nothing at the end of the body."""
        patience_s = min(self.timeout_s, paid_until_s + self.timeout_s - time.monotonic())
        late = BodyTimeout(
            f"the body came too slowly: nothing of it for {self.timeout_s:g} s, or less than {_LEAST_BYTES_PER_S} bytes "
            f"a second for longer than that"
        )
        if patience_s <= 0.0:
            raise late
        with _timeout(patience_s, late):
            return next(pieces, b"")

    def _check_limits(self, size_bytes: int) -> None:
        if size_bytes > self.limit_bytes:
            raise self._too_large(f"more than {self.limit_bytes} bytes")
        self._check_buffer()

    def _check_buffer(self) -> None:
        if self.buffered_bytes > self.buffer_limit_bytes:
            raise Overloaded("too many large request bodies are being received", retry_after_s=2.0)

    def _too_large(self, size: str) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body has {size}, at most {self.limit_bytes} bytes are accepted")


def convert(value: JsonValue, schema: type[_Schema]) -> _Schema:
    """Plain data to a schema struct, without any coercion. Raises `InvalidRequest` that names the field's
    path.
    """
    try:
        return msgspec.convert(value, schema, strict=True)
    except msgspec.ValidationError as error:
        match = _AT_PATH.fullmatch(str(error))
        reason, path = match.groups() if match else (str(error), None)
        missing = re.fullmatch(r"Object missing required field `(.*)`", reason)
        if missing:
            path = f"{path}.{missing[1]}" if path else missing[1]
            raise InvalidRequest(f"`{path}` is missing", field=path) from None
        field = path or "body"
        given = _given(value, path) if path else ""
        raise InvalidRequest(f"`{field}`: {reason[:1].lower()}{reason[1:]}{given}", field=field) from None


def _given(value: JsonValue, path: str) -> str:
    """The scalar at msgspec's `path` as an error shows it; nothing for containers, and where the path is not plain."""
    for name, index in _STEPS.findall(path):
        if index and isinstance(value, list):
            value = value[int(index)]
        elif isinstance(value, dict) and name in value:
            value = value[name]
        else:
            return ""
    if isinstance(value, dict | list):
        return ""
    shown = msgspec.json.encode(value).decode()
    return f". Given: {shown if len(shown) <= _MAX_GIVEN_CHARS else shown[: _MAX_GIVEN_CHARS - 1] + '…'}"


def unknown_fields(
    value: dict[str, JsonValue], schema: type[msgspec.Struct], *, prefix: str = ""
) -> list[str]:
    """Names in `value` that `schema` does not declare, as a client would write them (`parameters.foo`)."""
    known = schema.__struct_encode_fields__
    return [prefix + name for name in value if name not in known]


def _pieces(environ: dict[str, Any], length: int | None) -> Iterator[bytes]:
    stream = environ["wsgi.input"]
    yields = cooperative()
    left = length
    while left is None or left > 0:
        size = _READ_BYTES_CHUNKED if left is None else min(left, _READ_BYTES)
        try:
            data: bytes = stream.read(size)
        except ConnectionError:
            raise ClientDisconnected from None
        except (OSError, ParseException) as error:
            raise MalformedBody(f"the body is not well framed ({type(error).__name__})") from None
        if not data:
            break
        if left is not None:
            left -= len(data)
        yield data
        if yields:
            gevent.sleep(0)
    if left:
        raise MalformedBody(f"the body ended {left} bytes before its Content-Length")


@contextmanager
def _timeout(seconds: float, error: BodyTimeout) -> Iterator[None]:
    if not cooperative():
        yield
        return
    with gevent.Timeout(seconds, error):
        yield


def has_json_lines(environ: dict[str, Any]) -> bool:
    """True when the Content-Type says that the body is JSON lines."""
    return _media_type(environ) in _JSON_LINES_TYPES


def _media_type(environ: dict[str, Any]) -> str:
    return str(environ.get("CONTENT_TYPE") or "").partition(";")[0].strip().lower()


def _check_compression(environ: dict[str, Any]) -> None:
    encoding = str(environ.get("HTTP_CONTENT_ENCODING") or "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaType(
            "compressed bodies are not supported, send the body without Content-Encoding"
        )


def _check_encoding(environ: dict[str, Any]) -> None:
    _check_compression(environ)
    options = str(environ.get("CONTENT_TYPE") or "").partition(";")[2]
    charset = re.search(r"charset\s*=\s*\"?([^\s\";]+)", options, re.IGNORECASE)
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii", "ascii"):
        raise UnsupportedMediaType("only UTF-8 bodies are supported")


def _check_media_type(environ: dict[str, Any]) -> None:
    _check_encoding(environ)
    media_type = _media_type(environ)
    if media_type in ("", "application/octet-stream"):
        return
    if not _JSON_TYPE.fullmatch(media_type):
        raise UnsupportedMediaType("Expected request with `Content-Type: application/json`")


def _kind(value: JsonValue) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "a number"
