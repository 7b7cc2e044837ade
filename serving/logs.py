"""One log line per event: `time level process event key=value …`, or one JSON object. Plain lines leave out what is None,
objects say null. No colours, no progress bars (CloudWatch keeps lines). Knows no event.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from types import TracebackType

_RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

_CHATTY = (
    "boto3", "botocore", "filelock", "gevent", "httpcore", "httpx", "huggingface_hub", "s3transfer", "urllib3",
)  # fmt: skip
"""Libraries that at lower levels log addresses, headers and credentials of what they talk to."""

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def configure(
    process: str, *, level: str = "info", json_output: bool = False, exception_text: bool = True
) -> None:
    """Set up the root logger of this process once; `process` is its title (`api`, `engine`, `worker-tp1`, …).

    Without `exception_text` tracebacks show classes and places only: the text of an exception nobody foresaw may quote
    what a client sent.
    """
    formatter = _JsonFormatter if json_output else _KeyValueFormatter
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter(process, exception_text=exception_text))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))


def event(logger: logging.Logger, level: int, message: str, **fields: object) -> None:
    """Log `message` with structured `fields`; keys must not shadow logging's own attributes."""
    logger.log(level, message, extra=fields)


class _EventFormatter(logging.Formatter):
    def __init__(self, process: str, *, exception_text: bool) -> None:
        super().__init__()
        self._process = process
        self._exception_text = exception_text

    def formatException(self, ei: _ExcInfo) -> str:
        if self._exception_text:
            return super().formatException(ei)
        return _places(ei[1])


class _KeyValueFormatter(_EventFormatter):
    def format(self, record: logging.LogRecord) -> str:
        message = _one_line(record.getMessage())
        known = {key: value for key, value in _fields(record).items() if value is not None}
        fields = "".join(f" {key}={_quote(value)}" for key, value in known.items())
        line = f"{_stamp(record)} {record.levelname} {self._process} {message}{fields}"
        if record.exc_info:
            line += " traceback=" + json.dumps(self.formatException(record.exc_info))
        return line


class _JsonFormatter(_EventFormatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "timestamp": _stamp(record),
            "level": record.levelname,
            "process": self._process,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        line = json.dumps(entry, default=str, ensure_ascii=False)
        # Separators that some readers take for the end of a line, and lone surrogates, are escaped.
        return line if line.isprintable() else json.dumps(entry, default=str)


def _stamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _fields(record: logging.LogRecord) -> dict[str, object]:
    found = {key: value for key, value in vars(record).items() if key not in _RESERVED}
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in found.items()}


def _one_line(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)[1:-1]


def _quote(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    if not text.isprintable():
        return json.dumps(text)
    plain = text != "" and not any(c in text for c in ' "=')
    return text if plain else json.dumps(text, ensure_ascii=False)


def _places(error: BaseException | None) -> str:
    """The chain of an exception, innermost cause first, as frames and classes."""
    chain: list[str] = []
    while error is not None:
        frames = "".join(traceback.format_tb(error.__traceback__))
        chain.insert(0, f"Traceback (most recent call last):\n{frames}{type(error).__qualname__}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\n".join(chain)
