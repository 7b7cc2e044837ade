"""One call of a hook: what it is given, the call itself, and its result as bytes. Raises nothing that a hook did."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.handler.script import Hook, describe
from serving.handler.wire import HookCall, HookError, HookReply

JSON = "application/json"
_MAX_MESSAGE_CHARS = 300
_TEXT_TYPES = frozenset(
    {
        "application/json",
        "application/javascript",
        "application/jsonl",
        "application/jsonlines",
        "application/x-jsonlines",
        "application/x-ndjson",
        "application/x-www-form-urlencoded",
        "application/xml",
        "application/yaml",
        "application/x-yaml",
    }
)
# Of Python's many codecs those that a client may have written a body in.
_CHARSETS = {
    "utf-8": "utf-8",
    "utf8": "utf-8",
    "us-ascii": "ascii",
    "ascii": "ascii",
    "iso-8859-1": "latin-1",
    "latin-1": "latin-1",
    "latin1": "latin-1",
    "windows-1252": "cp1252",
    "cp1252": "cp1252",
    "utf-16": "utf-16",
}

logger = logging.getLogger(__name__)


@dataclass(slots=True, frozen=True)
class HookContext:
    """What a hook gets as `context`, with the names that the toolkits' contexts have."""

    request_id: str
    headers: dict[str, str]
    model_dir: str
    system_properties: dict[str, str] = field(default_factory=dict)

    def get_request_id(self, index: int = 0) -> str:
        return self.request_id

    def get_all_request_header(self, index: int = 0) -> dict[str, str]:
        return dict(self.headers)

    def get_request_header(self, index: int, key: str) -> str | None:
        """A header by its name, in any case; None when it did not come."""
        return next((text for name, text in self.headers.items() if name.lower() == key.lower()), None)


class _Unusable(Exception):
    """What a hook was to be given, or gave, is not what the contract says; `refused` where the client is at fault."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


def call_hook(hook: Hook, call: HookCall, *, model_dir: Path, max_bytes: int) -> HookReply:
    """The hook's result, or its error, as the front wants it; at most `max_bytes` of body."""
    try:
        reply = _reply(hook, _call(hook, call, model_dir))
    except _Unusable as error:
        return _failure(f"{hook.name} {error}", refused=error.refused)
    except (Exception, SystemExit) as error:
        if _refuses(error):
            return _failure(
                _short(describe(error).partition(": ")[2]) or f"{hook.name} refuses this request",
                refused=True,
            )
        logger.error("hook failed", exc_info=error, extra={"hook": hook.name, "request_id": call.request_id})
        return _failure(f"{hook.name} of the custom handler failed: {_short(describe(error))}")
    if len(reply.body) > max_bytes:
        return _failure(
            f"{hook.name} returned {len(reply.body)} bytes, at most {max_bytes} may be (PAYLOAD_LIMIT)"
        )
    return reply


def _call(hook: Hook, call: HookCall, model_dir: Path) -> Any:
    media_type = call.media_type or JSON
    if hook.name == "input_fn":
        data: Any = _decoded(call.data, media_type)
    else:
        data = json.loads(call.data)
        media_type = JSON if media_type.strip() == "*/*" else media_type
    arguments = (data, media_type)
    if not hook.takes_context:
        return hook.function(*arguments)
    folder = str(model_dir)
    return hook.function(
        *arguments, HookContext(call.request_id, call.headers, folder, {"model_dir": folder})
    )


def _decoded(data: bytes, content_type: str) -> str | bytes:
    """Text types as text: `text/*`, JSON, XML and the like; anything else as it came."""
    kind, _, options = content_type.partition(";")
    kind = kind.strip().lower()
    if not (kind.startswith("text/") or kind in _TEXT_TYPES or kind.endswith(("+json", "+xml"))):
        return data
    named = [
        part.partition("=")[2] for part in options.split(";") if part.strip().lower().startswith("charset")
    ]
    charset = named[0].strip(" \t\"'").lower() if named else "utf-8"
    codec = _CHARSETS.get(charset)
    if codec is None:
        raise _Unusable(f"cannot be given a body in the charset {_short(charset)}; send UTF-8", refused=True)
    try:
        return data.decode(codec)
    except UnicodeDecodeError as error:
        raise _Unusable(
            f"cannot be given the body: it is not valid {codec} at byte {error.start}", refused=True
        ) from None


def _reply(hook: Hook, result: Any) -> HookReply:
    if hook.name == "input_fn":
        return HookReply(body=_json_of(result) if isinstance(result, dict) else _bytes_of(result, "a dict, "))
    content_type = None
    if isinstance(result, tuple) and len(result) == 2:
        result, content_type = result
        if not isinstance(content_type, str):
            raise _Unusable(f"returned a content type that is no text but {type(content_type).__name__}")
    return HookReply(body=_bytes_of(result, ""), content_type=content_type)


def _bytes_of(result: Any, also: str) -> bytes:
    if isinstance(result, str):
        try:
            return result.encode()
        except UnicodeEncodeError as error:
            raise _Unusable(
                f"returned text that cannot be written as UTF-8 (position {error.start})"
            ) from None
    if isinstance(result, bytes | bytearray | memoryview):
        return bytes(result)
    raise _Unusable(f"must return {also}str or bytes, not {type(result).__name__}")


def _json_of(result: dict[Any, Any]) -> bytes:
    try:
        return json.dumps(result, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise _Unusable(f"returned a dict that is no JSON: {_short(describe(error))}") from None


def _refuses(error: BaseException) -> bool:
    """True for an exception that carries a 4xx status, which nobody does by accident."""
    status = getattr(error, "status_code", getattr(error, "error_code", None))
    return isinstance(status, int) and 400 <= status < 500


def _failure(message: str, *, refused: bool = False) -> HookReply:
    return HookReply(error=HookError(message=message, refused=refused))


def _short(text: str) -> str:
    return text if len(text) <= _MAX_MESSAGE_CHARS else text[: _MAX_MESSAGE_CHARS - 1] + "…"
