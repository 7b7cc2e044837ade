"""Finds a model's chat templates in all the places where models keep them. Reads text; renders nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from serving.errors import ConfigError, ModelError
from serving.text.model_files import read_json_object

DEFAULT = "default"
TOOL_USE = "tool_use"
"""The names that transformers looks for: the second is used when a request offers tools."""

_FOLDER = "additional_chat_templates"


def find_templates(model_dir: Path, override: str | None = None) -> dict[str, str]:
    """The templates by name, {} when there is none. The first place that has some gives all of them.

    `override`, a file or a template itself, comes before everything in the folder. Then: chat_template.jinja with the
    files of additional_chat_templates, chat_template.json, tokenizer_config.json (a text, or a list of named ones).
    Raises `ModelError` when a file is damaged, `ConfigError` when `override` is neither.
    """
    if override:
        return {DEFAULT: _read_override(override)}
    templates = _read_files(model_dir)
    for name in ("chat_template.json", "tokenizer_config.json"):
        if not templates:
            templates = _named(read_json_object(model_dir / name).get("chat_template"))
    return templates


def _read_override(override: str) -> str:
    if "{{" in override or "{%" in override or "\n" in override:
        return override
    try:
        return Path(override).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the chat template {override!r} cannot be read ({error}): give a UTF-8 file or the template itself"
        ) from error


def _read_files(model_dir: Path) -> dict[str, str]:
    named = [(path.stem, path) for path in sorted((model_dir / _FOLDER).glob("*.jinja"))]
    templates: dict[str, str] = {}
    for name, path in (*named, (DEFAULT, model_dir / "chat_template.jinja")):
        try:
            templates[name] = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read ({error}): download the model again") from error
    return templates


def _named(value: object) -> dict[str, str]:
    if isinstance(value, str):
        return {DEFAULT: value}
    entries = value if isinstance(value, list) else []
    pairs = [(entry.get("name"), entry.get("template")) for entry in entries if isinstance(entry, Mapping)]
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
