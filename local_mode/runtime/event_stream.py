"""Messages of `application/vnd.amazon.eventstream`: bytes out, nothing read. Knows no operation and no container.

    u32 total length | u32 header length | u32 CRC-32 of these 8 bytes | headers | payload | u32 CRC-32 of all before

All numbers are big-endian. A header is: u8 name length, name, u8 type, value; ours are strings (type 7, u16
length, UTF-8).
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping

CONTENT_TYPE = "application/vnd.amazon.eventstream"
MAX_HEADERS_BYTES = 128 * 1024
MAX_PAYLOAD_BYTES = 24 * 1024 * 1024
"""Both limits are botocore's: it refuses a message that exceeds one."""

_STRING = 7
_MAX_VALUE_BYTES = 2**15 - 1


def message(headers: Mapping[str, str], payload: bytes) -> bytes:
    """One message. Raises `ValueError` for what no reader would take: too long a name, value, block or payload."""
    return _framed(b"".join(_header(name, value) for name, value in headers.items()), payload)


def payload_part(content: bytes) -> bytes:
    return _framed(_PAYLOAD_PART, content)


def exception(kind: str, **members: str) -> bytes:
    """A failure that the service model knows: `kind` is the name of its shape, `members` are the shape's."""
    headers = {":message-type": "exception", ":exception-type": kind, ":content-type": "application/json"}
    return message(headers, json.dumps(members).encode())


def _framed(headers: bytes, payload: bytes) -> bytes:
    if len(headers) > MAX_HEADERS_BYTES or len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(
            f"headers of {len(headers)} and a payload of {len(payload)} bytes; "
            f"the limits are {MAX_HEADERS_BYTES} and {MAX_PAYLOAD_BYTES}"
        )
    lengths = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    content = b"".join((lengths, struct.pack("!I", zlib.crc32(lengths)), headers, payload))
    return content + struct.pack("!I", zlib.crc32(content))


def _header(name: str, value: str) -> bytes:
    raw_name, raw = name.encode(), value.encode()
    if not 0 < len(raw_name) < 256:
        raise ValueError(f"the header name {name!r} has {len(raw_name)} bytes, 1 to 255 are possible")
    if len(raw) > _MAX_VALUE_BYTES:
        raise ValueError(f"a header value has {len(raw)} bytes, {_MAX_VALUE_BYTES} are possible")
    return bytes((len(raw_name),)) + raw_name + struct.pack("!BH", _STRING, len(raw)) + raw


# The headers of every part are the same: they are encoded once.
_PAYLOAD_PART = b"".join(
    _header(name, value)
    for name, value in (
        (":message-type", "event"),
        (":event-type", "PayloadPart"),
        (":content-type", "application/octet-stream"),
    )
)
