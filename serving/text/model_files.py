"""Reads the small JSON files next to a tokenizer: which tokens are special, which end a text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.errors import ModelError


def read_json_object(path: Path) -> dict[str, object]:
    """The object in `path`, {} without such a file. Raises `ModelError` when it holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}): download the model again") from error
    if not isinstance(value, dict):
        raise ModelError(
            f"{path} holds a {type(value).__name__}, must be a JSON object: download the model again"
        )
    return value


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """What the configuration files say about special tokens, as spelled there.

    `named` maps `bos_token`, `eos_token`, `pad_token`, … to their text; `others` are further special texts.
    `eos_token_ids` are those of generation_config.json or config.json; `eos_is_list`: they are the whole set.
    """

    named: dict[str, str]
    others: frozenset[str]
    eos_token_ids: tuple[int, ...]
    eos_is_list: bool


def read_special_tokens(model_dir: Path) -> SpecialTokens:
    """Read the tokenizer_config, special_tokens_map, generation_config and config files of a model folder."""
    config = read_json_object(model_dir / "tokenizer_config.json")
    legacy = read_json_object(model_dir / "special_tokens_map.json")
    named = {**_named_tokens(legacy), **_named_tokens(config)}
    eos_path = model_dir / "generation_config.json"
    eos = read_json_object(eos_path).get("eos_token_id")
    if eos is None:
        eos_path = model_dir / "config.json"
        eos = read_json_object(eos_path).get("eos_token_id")
    return SpecialTokens(
        named=named,
        others=frozenset(_declared_special(config) | _declared_special(legacy)),
        eos_token_ids=_token_ids(eos, eos_path),
        eos_is_list=isinstance(eos, list),
    )


def token_text(value: object) -> str | None:
    """A token as the files spell it: a string, or an object with `content`; None for anything else."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _named_tokens(config: Mapping[str, object]) -> dict[str, str]:
    texts = {key: token_text(value) for key, value in config.items() if key.endswith("_token")}
    return {key: text for key, text in texts.items() if text}


def _declared_special(config: Mapping[str, object]) -> set[str]:
    declared: list[object] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        values = config.get(key)
        if isinstance(values, Mapping):
            declared.extend(values.values())
        elif isinstance(values, list):
            declared.extend(values)
    added = config.get("added_tokens_decoder")
    if isinstance(added, Mapping):
        declared.extend(
            token for token in added.values() if isinstance(token, Mapping) and token.get("special")
        )
    return {text for text in map(token_text, declared) if text}


def _token_ids(value: object, path: Path) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token_id in ids:
        if type(token_id) is not int or token_id < 0:
            raise ModelError(
                f"`eos_token_id` in {path} is {value!r}, must be a token id or a list of token ids"
            )
    return tuple(ids)
