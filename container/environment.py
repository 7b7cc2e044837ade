"""The only reader of the process environment: variables -> `ServerConfig`, secrets, warnings, sources."""

from __future__ import annotations

import difflib
import ipaddress
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from container import variables
from container.variables import VARIABLES, Variable
from serving.config import ServerConfig
from serving.errors import ConfigError

DEFAULT_BASE_DIR = "/opt/ml"
_AWS_SECRETS = frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"})
_SECRET_FIELDS = frozenset({"http.api_key"})


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A value that no log line, traceback or format string prints."""

    _value: str

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "***"


@dataclass(frozen=True, slots=True)
class Environment:
    """What the environment says. `sources`: field path -> the variable that set it; absent: the default."""

    config: ServerConfig
    sources: Mapping[str, str]
    warnings: tuple[str, ...]
    model_id: str | None
    """MODEL_ID, first rung of the model ladder."""
    hf_model_id: str | None
    """HF_MODEL_ID, last rung."""
    base_dir: str
    caches: tuple[str, ...]
    """Folders for model files, in the order of preference; none is known to be writable."""
    hf_home_chosen: bool
    """The user said where Hub files go."""
    hf_token: Secret | None


def process_environment() -> dict[str, str]:
    """A copy of this process's environment."""
    return dict(os.environ)


def read_environment(environ: Mapping[str, str]) -> Environment:
    """Read every variable of the table. Raises `ConfigError` for the first one whose value we refuse."""
    present = {name: text.strip() for name, text in environ.items() if text.strip()}
    _refuse_not_built(present)
    warnings: list[str] = []
    values: dict[str, object] = {}
    sources: dict[str, str] = {}
    for variable in VARIABLES:
        name = _winner(variable, present)
        if name is None:
            continue
        if variable.field == "http.host" and not _is_address(present[name]):
            continue  # Docker sets HOSTNAME to the container's name
        values[variable.field] = _parse(variable, name, present[name])
        sources[variable.field] = name
    config = _build(values)
    _check(config, sources)
    token, token_warning = _token(present)
    warnings.extend(line for line in (token_warning, _unknown_names(present)) if line)
    return Environment(
        config=config,
        sources=sources,
        warnings=tuple(warnings),
        model_id=present.get(variables.MODEL_ID),
        hf_model_id=present.get(variables.HF_MODEL_ID),
        base_dir=present.get(variables.BASE_DIR, DEFAULT_BASE_DIR),
        caches=_caches(present),
        hf_home_chosen=any(name in present for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")),
        hf_token=token,
    )


def settings_table(config: ServerConfig, sources: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(field, value, source) of every setting, for the log at start."""
    rows = []
    for path in variables.all_fields():
        slice_name, field_name = path.split(".")
        value = getattr(getattr(config, slice_name), field_name)
        shown = "unset" if value is None else "***" if path in _SECRET_FIELDS else str(value)
        rows.append((path, shown, sources.get(path, "default")))
    return rows


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment a child may see that needs neither the Hub nor AWS; the API key is in its configuration."""
    hidden = _AWS_SECRETS | set(variables.HF_TOKENS) | set(_names_of("http.api_key"))
    return {name: text for name, text in environ.items() if name not in hidden}


def overlay(environ: Mapping[str, str], flags: Mapping[str, str]) -> dict[str, str]:
    """`environ` with command-line flags on top: a flag replaces every variable that sets the same field.

    Raises `ConfigError` for a flag that would be ignored as a variable.
    """
    merged = dict(environ)
    for flag, text in flags.items():
        if flag == "hostname" and not _is_address(text):
            raise ConfigError(f"--hostname {text} is not valid; allowed: an IP address such as 127.0.0.1")
        names = _names_of_flag(flag)
        for name in names:
            merged.pop(name, None)
        same_name = flag.upper().replace("-", "_")
        merged[same_name if same_name in names else names[0]] = text
    return merged


def _names_of(field: str) -> tuple[str, ...]:
    return next(variable.names for variable in VARIABLES if variable.field == field)


def _names_of_flag(flag: str) -> tuple[str, ...]:
    if flag == "model-id":
        return (variables.MODEL_ID,)
    return next(variable.names for variable in VARIABLES if variable.flag == flag)


def _winner(variable: Variable, present: Mapping[str, str]) -> str | None:
    names = [name for name in variable.names if name in present]
    if not names:
        return None
    first = names[0]
    for other in () if variable.ranked else names[1:]:
        if _parse(variable, first, present[first]) != _parse(variable, other, present[other]):
            raise ConfigError(
                f"{first}={present[first]} and {other}={present[other]} are one setting: unset one"
            )
    return first


def _parse(variable: Variable, name: str, text: str) -> object:
    if variable.field == "model.quantize":
        raise ConfigError(
            f"{name}={text}: quantization scheme {text!r} is not built yet; unset {name} to serve in DTYPE"
        )
    try:
        return variable.parse(name, text)
    except ValueError as error:
        raise ConfigError(f"{name}={text} is not valid; allowed: {error}") from error


def _build(values: Mapping[str, object]) -> ServerConfig:
    slices: dict[str, dict[str, object]] = {}
    for path, value in values.items():
        slice_name, field_name = path.split(".")
        slices.setdefault(slice_name, {})[field_name] = value
    defaults = ServerConfig()
    changed: dict[str, Any] = {
        name: msgspec.structs.replace(getattr(defaults, name), **fields) for name, fields in slices.items()
    }
    return msgspec.structs.replace(defaults, **changed)


def _check(config: ServerConfig, sources: Mapping[str, str]) -> None:
    """Pairs that can never work together, found before anything is downloaded."""
    longest, total = config.limits.max_input_tokens, config.limits.max_total_tokens
    if longest is not None and total is not None and longest >= total:
        raise ConfigError(
            f"{sources['limits.max_input_tokens']}={longest} must be below MAX_TOTAL_TOKENS={total}: "
            "at least one token is generated"
        )
    key = config.http.api_key
    if key is not None and not all(char == " " or char.isprintable() for char in key):
        raise ConfigError(
            "API_KEY holds a character that no header can carry; use letters, digits and punctuation"
        )
    capacity = config.cache.max_batch_total_tokens
    if total is not None and capacity is not None and total > capacity:
        raise ConfigError(
            f"MAX_TOTAL_TOKENS={total} is above MAX_BATCH_TOTAL_TOKENS={capacity}: some could never fit; "
            "lower the first or raise the second"
        )


def _caches(present: Mapping[str, str]) -> tuple[str, ...]:
    chosen = [os.path.join(present["HF_HOME"], "textgen-endpoint")] if "HF_HOME" in present else []
    home = present.get("XDG_CACHE_HOME") or (
        os.path.join(present["HOME"], ".cache") if "HOME" in present else None
    )
    if home:
        chosen.append(os.path.join(home, "textgen-endpoint"))
    return (*chosen, os.path.join(tempfile.gettempdir(), f"textgen-endpoint-{os.geteuid()}"))


def _refuse_not_built(present: Mapping[str, str]) -> None:
    for name in variables.NOT_BUILT:
        if name in present:
            raise ConfigError(f"{name} is set, but what it asks for is not built yet; unset {name}")


def _token(present: Mapping[str, str]) -> tuple[Secret | None, str | None]:
    names = [name for name in variables.HF_TOKENS if name in present]
    if not names:
        return None, None
    token = Secret(present[names[0]])
    others = [name for name in names[1:] if present[name] != token.reveal()]
    warning = f"{', '.join(names)} hold different tokens; {names[0]} is used" if others else None
    return token, warning


def _unknown_names(present: Mapping[str, str]) -> str | None:
    known = variables.known_names()
    unknown = sorted(
        name
        for name in present
        if name.startswith(variables.OUR_PREFIXES)
        and name not in known
        and name not in variables.PLATFORM_NAMES
    )
    if not unknown:
        return None
    return "unknown variables have no effect: " + ", ".join(
        _with_suggestion(name, sorted(known)) for name in unknown
    )


def _with_suggestion(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"{name} (did you mean {close[0]}?)" if close else name


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
