"""One log line per event: `time level process event key=value …`. No colours, no progress bars (CloudWatch keeps lines)."""

from __future__ import annotations

import json
import logging
import sys
import time

_RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def _quote(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(c in text for c in ' "=\n\r\t') else text


class _KeyValueFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        event = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        fields = (f" {key}={_quote(value)}" for key, value in vars(record).items() if key not in _RESERVED)
        line = f"{stamp}.{int(record.msecs):03d}Z {record.levelname} {self._process} {event}{''.join(fields)}"
        if record.exc_info:
            line += " traceback=" + json.dumps(self.formatException(record.exc_info))
        return line


class _JsonFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "process": self._process,
            "message": record.getMessage(),
        }
        entry.update({key: value for key, value in vars(record).items() if key not in _RESERVED})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


def configure(process: str, *, level: str = "info", json_output: bool = False) -> None:
    """Set up the root logger of this process once; `process` is its title (`api`, `engine`, `worker-tp1`, …)."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonFormatter(process) if json_output else _KeyValueFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def event(logger: logging.Logger, level: int, message: str, **fields: object) -> None:
    """Log `message` with structured `fields`; keys must not shadow logging's own attributes."""
    logger.log(level, message, extra=fields)
