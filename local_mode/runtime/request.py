"""The headers of the runtime's operations: what each takes, its limits, and what of it the container sees."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from starlette.types import Receive

from local_mode.runtime.failures import invalid, oversized_request

PREFIX = "X-Amzn-SageMaker-"
NEW_SESSION = "NEW_SESSION"
PLATFORM_HEADERS = (("Host", "model.aws.local:8080"), ("User-Agent", "AHC/2.0"))
ASYNC_PLATFORM_HEADERS = (("Host", "container-0.local:8080"), ("User-Agent", "AHC/2.0"))
"""Containers on the platform see these, and must not depend on them."""

# A body over the limit is read and dropped up to this size: most clients look for an answer only after sending all.
_DROPPED_BYTES = 64 * 1024 * 1024
_NAME = r"[a-zA-Z0-9](-*[a-zA-Z0-9])*"
_PRINTABLE = r"[!-~][ -~]*"


@dataclass(frozen=True, slots=True)
class HeaderRule:
    """One member of an operation's input. Limits are those of the service model."""

    member: str
    header: str
    max_chars: int
    pattern: str = r"[\x00-\x7f]*"
    container_header: str | None = None
    """What the container sees it as; None: it does not."""

    def check(self, value: str) -> None:
        """Raises `ServiceError` (ValidationError)."""
        if len(value) > self.max_chars:
            _refuse(value, self.member, f"have length less than or equal to {self.max_chars}")
        if not re.fullmatch(self.pattern, value):
            _refuse(value, self.member, f"satisfy regular expression pattern: {self.pattern}")


def _passed(
    member: str, name: str, max_chars: int, pattern: str = r"[\x00-\x7f]*", *, prefix: str = PREFIX
) -> HeaderRule:
    return HeaderRule(member, prefix + name, max_chars, pattern, prefix + name)


_ENDPOINT_NAME = HeaderRule("endpointName", "", 63, _NAME)
_CONTENT_TYPE = _passed("contentType", "Content-Type", 1024, prefix="")
_ACCEPT = _passed("accept", "Accept", 1024, prefix="")
_RENAMED_CONTENT_TYPE = HeaderRule(
    "contentType", PREFIX + "Content-Type", 1024, container_header="Content-Type"
)
_RENAMED_ACCEPT = HeaderRule("accept", PREFIX + "Accept", 1024, container_header="Accept")
_COMMON = (
    _passed("customAttributes", "Custom-Attributes", 1024),
    _passed("inferenceId", "Inference-Id", 64, _PRINTABLE),
)
_TARGETS = (
    _passed("targetVariant", "Target-Variant", 63, _NAME),
    _passed("targetContainerHostname", "Target-Container-Hostname", 63, _NAME),
    _passed("inferenceComponentName", "Inference-Component", 63, r"[a-zA-Z0-9]([\-a-zA-Z0-9]*[a-zA-Z0-9])?"),
    _passed("prefixAwareId", "Prefix-Aware-Id", 64, _PRINTABLE),
    _passed("sessionId", "Session-Id", 256, rf"{NEW_SESSION}|{_NAME}"),
)
UNARY = (
    _CONTENT_TYPE,
    _ACCEPT,
    *_COMMON,
    *_TARGETS,
    _passed("targetModel", "Target-Model", 1024, _PRINTABLE),
    _passed("enableExplanations", "Enable-Explanations", 64, r".+"),
)
STREAM = (_CONTENT_TYPE, _RENAMED_ACCEPT, *_COMMON, *_TARGETS)
OPENAI = (_CONTENT_TYPE, _ACCEPT, *_COMMON)
ASYNC = (
    _RENAMED_CONTENT_TYPE,
    _RENAMED_ACCEPT,
    *_COMMON,
    HeaderRule("inputLocation", PREFIX + "InputLocation", 1024, r"(s3|file)://.+"),
    HeaderRule(
        "s3OutputPathExtension",
        PREFIX + "S3OutputPathExtension",
        512,
        r"(?!s3:|https:)(?!(.*/)?\.\.(/|$))[a-zA-Z0-9!_.*'()/-]+",
    ),
    HeaderRule("filename", PREFIX + "Filename", 32, r"(?!.*\..*\.)[a-zA-Z0-9][a-zA-Z0-9-_\.]*"),
    HeaderRule("requestTTLSeconds", PREFIX + "RequestTTLSeconds", 5, r"[0-9]+"),
    HeaderRule("invocationTimeoutSeconds", PREFIX + "InvocationTimeoutSeconds", 4, r"[0-9]+"),
)


@dataclass(frozen=True, slots=True)
class Members:
    """The members that a request carries in its path and headers."""

    endpoint: str
    values: Mapping[str, str]
    container_headers: tuple[tuple[str, str], ...]

    def get(self, member: str) -> str | None:
        return self.values.get(member)

    def seconds(self, member: str, *, default: int, low: int, high: int) -> int:
        """Raises `ServiceError` (ValidationError) outside low to high."""
        value = int(self.values.get(member, default))
        if not low <= value <= high:
            _refuse(str(value), member, f"have value between {low} and {high}")
        return value


def members(rules: Iterable[HeaderRule], endpoint: str, headers: Iterable[tuple[bytes, bytes]]) -> Members:
    """The known headers; all others are dropped, as the platform does. Raises `ServiceError` (ValidationError)."""
    _ENDPOINT_NAME.check(endpoint)
    given = {name.lower(): value.decode("latin-1") for name, value in headers}
    values: dict[str, str] = {}
    for_container: list[tuple[str, str]] = []
    for rule in rules:
        value = given.get(rule.header.lower().encode())
        if not value:
            continue
        rule.check(value)
        values[rule.member] = value
        if rule.container_header is not None:
            for_container.append((rule.container_header, value))
    return Members(endpoint, values, tuple(for_container))


async def read_body(receive: Receive, limit_bytes: int) -> bytes:
    """The whole body. Raises `ServiceError` (413) over the limit, `ConnectionError` when the client is gone."""
    chunks: list[bytes] = []
    size_bytes = 0
    more = True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ConnectionError("the client has gone")
        chunk: bytes = event.get("body", b"")
        more = event.get("more_body", False)
        size_bytes += len(chunk)
        if size_bytes <= limit_bytes:
            chunks.append(chunk)
        elif size_bytes > limit_bytes + _DROPPED_BYTES:
            break
    if size_bytes > limit_bytes:
        raise oversized_request(limit_bytes)
    return b"".join(chunks)


def _refuse(value: str, member: str, rule: str) -> None:
    shown = value if len(value) <= 80 else value[:80] + "…"
    raise invalid(
        f"1 validation error detected: Value '{shown}' at '{member}' failed to satisfy constraint: Member must {rule}"
    )
