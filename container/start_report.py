"""The table that is printed once at start: every setting in force, and where its value comes from."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from container.fields import all_fields, short
from container.readings import SECRET_FIELDS
from serving.config import ServerConfig
from serving.logs import event

_log = logging.getLogger("container")

DEFAULT = "default"


def settings_table(config: ServerConfig, sources: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(field, value, source) of every setting, secrets masked: those that something set first, then the defaults."""
    rows = []
    for path in all_fields():
        slice_name, field_name = path.split(".")
        value = getattr(getattr(config, slice_name), field_name)
        shown = "unset" if value is None else "***" if path in SECRET_FIELDS else short(_text(value))
        rows.append((path, shown, sources.get(path, DEFAULT)))
    return sorted(rows, key=lambda row: row[2] == DEFAULT)


def log_settings(config: ServerConfig, sources: Mapping[str, str]) -> None:
    """One object in JSON logs; else aligned lines for what was set, and one line of defaults for each part."""
    rows = settings_table(config, sources)
    chosen = [row for row in rows if row[2] != DEFAULT]
    defaults = [row for row in rows if row[2] == DEFAULT]
    if config.runtime.json_logs:
        settings = {path: {"value": value, "source": source} for path, value, source in chosen}
        event(
            _log,
            logging.INFO,
            "settings",
            settings=settings,
            defaults={path: value for path, value, _ in defaults},
        )
        return
    widths = [max((len(row[column]) for row in chosen), default=0) for column in (0, 1)]
    for path, value, source in chosen:
        event(_log, logging.INFO, f"setting  {path:<{widths[0]}}  {value:<{widths[1]}}  from {source}")
    for part in dict.fromkeys(path.split(".")[0] for path, _, _ in defaults):
        words = [
            f"{path.partition('.')[2]}={value}" for path, value, _ in defaults if path.startswith(f"{part}.")
        ]
        event(_log, logging.INFO, f"default  {part}: {' '.join(words)}")


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "()"
    return str(value).lower() if isinstance(value, bool) else str(value)
