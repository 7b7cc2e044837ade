"""Typed options of a deployment: the variable each becomes, its bounds, and whether the image of this version has it.

Everything is checked here, before anything is created. Knows no AWS SDK and no server code.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sagemaker_sdk_ext.errors import ConfigurationError

MAX_ENTRIES = 100
MAX_CHARS = 1024
MAX_TOTAL_BYTES = 32 * 1024

DEADLINE = "UNARY_DEADLINE_S"
MODEL_NAMES = ("MODEL_ID", "HF_MODEL_ID")


@dataclass(frozen=True, slots=True)
class Option:
    """`kind` is bool, int, float, str or a tuple of allowed texts. `variables`: the one that is set, then its aliases."""

    name: str
    variables: tuple[str, ...]
    kind: type | tuple[str, ...]
    least: float | None = None
    most: float | None = None
    not_built: str = ""
    """Why the image of this version refuses it."""
    secret: bool = False

    def shown(self, value: object) -> str:
        """For error messages, which end up in logs."""
        return "***" if self.secret else repr(value)

    def text(self, value: object) -> str:
        """The variable's text. Raises `ConfigurationError` naming value and bounds."""
        if self.not_built:
            raise ConfigurationError(f"{self.name} = {value!r}: {self.not_built}")
        if isinstance(self.kind, tuple):
            if value not in self.kind:
                raise ConfigurationError(f"{self.name} = {value!r} must be one of {', '.join(self.kind)}")
            return str(value)
        if self.kind is bool:
            if not isinstance(value, bool):
                raise ConfigurationError(f"{self.name} = {value!r} must be True or False")
            return "true" if value else "false"
        if self.kind is str:
            return self._joined(value)
        return self._number(value)

    def _joined(self, value: object) -> str:
        items: list[object] = list(value) if isinstance(value, list | tuple) else [value]
        texts = [item for item in items if isinstance(item, str) and item]
        if not items or len(texts) != len(items):
            raise ConfigurationError(f"{self.name} = {self.shown(value)} must be a text, or a list of texts")
        return ",".join(texts)

    def _number(self, value: object) -> str:
        numeric = isinstance(value, int) or (self.kind is float and isinstance(value, float))
        if isinstance(value, bool) or not numeric or not isinstance(value, int | float):
            noun = "a whole number" if self.kind is int else "a number"
            raise ConfigurationError(f"{self.name} = {value!r} must be {noun}")
        outside = (self.least is not None and value < self.least) or (
            self.most is not None and value > self.most
        )
        if outside or not math.isfinite(value):
            most = f" and at most {self.most:g}" if self.most is not None else ""
            raise ConfigurationError(f"{self.name} = {value!r} must be at least {self.least:g}{most}")
        return str(value)


_NO_QUANTIZATION = "the image of this version loads unquantized models only; leave it out"
_NO_ADAPTERS = (
    "the image of this version has no LoRA adapters; merge the adapter into the model, or leave it out"
)

OPTIONS: tuple[Option, ...] = (
    Option("revision", ("HF_MODEL_REVISION", "REVISION"), str),
    Option("quantize", ("HF_MODEL_QUANTIZE", "QUANTIZE"), str, not_built=_NO_QUANTIZATION),
    Option("dtype", ("DTYPE",), ("auto", "float32", "bfloat16", "float16")),
    Option("trust_remote_code", ("HF_MODEL_TRUST_REMOTE_CODE", "TRUST_REMOTE_CODE"), bool),
    Option("served_model_name", ("SERVED_MODEL_NAME",), str),
    Option("chat_template", ("CHAT_TEMPLATE",), str),
    Option("tool_format", ("TOOL_FORMAT",), str),
    Option("reasoning_format", ("REASONING_FORMAT",), str),
    Option("num_gpus", ("SM_NUM_GPUS", "NUM_SHARD"), int, least=1),
    Option("max_input_tokens", ("MAX_INPUT_TOKENS", "MAX_INPUT_LENGTH"), int, least=1),
    Option("max_total_tokens", ("MAX_TOTAL_TOKENS",), int, least=1),
    Option("max_batch_prefill_tokens", ("MAX_BATCH_PREFILL_TOKENS",), int, least=1),
    Option("max_batch_total_tokens", ("MAX_BATCH_TOTAL_TOKENS",), int, least=1),
    Option("max_concurrent_requests", ("MAX_CONCURRENT_REQUESTS",), int, least=1),
    Option("max_num_seqs", ("MAX_NUM_SEQS",), int, least=1),
    Option("max_queue_tokens", ("MAX_QUEUE_TOKENS",), int, least=1),
    Option("max_n", ("MAX_N",), int, least=1),
    Option("max_best_of", ("MAX_BEST_OF",), int, least=1),
    Option("max_stop_sequences", ("MAX_STOP_SEQUENCES",), int, least=0),
    Option("max_top_n_tokens", ("MAX_TOP_N_TOKENS",), int, least=0),
    Option("max_client_batch_size", ("MAX_CLIENT_BATCH_SIZE",), int, least=1),
    Option("grammar_support", ("GRAMMAR_SUPPORT", "DISABLE_GRAMMAR_SUPPORT"), bool),
    Option(
        "payload_limit_bytes",
        ("PAYLOAD_LIMIT", "SAGEMAKER_MAX_REQUEST_SIZE", "SAGEMAKER_MAX_PAYLOAD_IN_MB"),
        int,
        least=1,
    ),
    Option("memory_fraction", ("CUDA_MEMORY_FRACTION",), float, least=0.05, most=1.0),
    Option("prefix_caching", ("PREFIX_CACHING",), bool),
    Option("kv_block_size", ("KV_BLOCK_SIZE",), int, least=1),
    Option("deterministic", ("DETERMINISTIC",), bool),
    Option("api_workers", ("API_WORKERS",), int, least=1),
    Option("heartbeat_s", ("HEARTBEAT_S",), float, least=0.1),
    Option("unary_deadline_s", (DEADLINE,), float, least=0.0),
    Option("unknown_parameters", ("UNKNOWN_PARAMETERS",), ("report", "refuse")),
    Option("default_accept", ("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT",), str),
    Option(
        "stateful_sessions", ("SAGEMAKER_ENABLE_STATEFUL_SESSIONS", "OPTION_ENABLE_STATEFUL_SESSIONS"), bool
    ),
    Option(
        "session_ttl_s", ("SAGEMAKER_SESSIONS_EXPIRATION", "OPTION_SESSIONS_EXPIRATION"), float, least=1.0
    ),
    Option("max_sessions", ("MAX_SESSIONS",), int, least=1),
    Option("session_kv_fraction", ("SESSION_KV_FRACTION",), float, least=0.0, most=1.0),
    Option("log_level", ("LOG_LEVEL",), ("debug", "info", "warning", "error")),
    Option("json_logs", ("JSON_OUTPUT",), bool),
    Option("otlp_endpoint", ("OTLP_ENDPOINT",), str),
    Option("hf_token", ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN"), str, secret=True),
    Option("lora_adapters", ("LORA_ADAPTERS",), str, not_built=_NO_ADAPTERS),
    Option("kv_cache_dtype", ("KV_CACHE_DTYPE",), ("auto", "fp8_e4m3")),
)
_BY_NAME = {option.name: option for option in OPTIONS}
_BY_VARIABLE = {variable: option for option in OPTIONS for variable in option.variables}


def supported_options() -> dict[str, str]:
    """Option -> empty, or why the image of this version refuses it."""
    return {option.name: option.not_built for option in OPTIONS}


def build_environment(
    options: Mapping[str, Any], env: Mapping[str, Any] | None, *, model_id: str | None, asynchronous: bool
) -> dict[str, str]:
    """The container's environment. Options with the value None are not set.

    Raises `ConfigurationError` for unknown options, values out of bounds, options that the image refuses, a setting that
    comes twice, contradictions, and what is more than SageMaker takes.
    """
    environment = _own_variables(env or {})
    if model_id is not None:
        _refuse_twice("model_id", MODEL_NAMES, environment)
        environment["HF_MODEL_ID"] = model_id
    for name, value in options.items():
        option = _BY_NAME.get(name)
        if option is None:
            raise ConfigurationError(f"there is no option {name!r}{_suggestion(name)}")
        if value is None:
            continue
        text = option.text(value)
        _refuse_twice(name, option.variables, environment, shown=option.shown)
        environment[option.variables[0]] = text
    if asynchronous:
        environment.setdefault(DEADLINE, "0")
    _check_pairs(environment)
    _check_size(environment)
    return environment


def _own_variables(env: Mapping[str, Any]) -> dict[str, str]:
    """`env` as texts. An empty text is what SageMaker's SDKs write for an unset variable."""
    environment: dict[str, str] = {}
    for name, value in env.items():
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"env has the name {name!r}, which must be a text")
        if isinstance(value, bool):
            environment[name] = "true" if value else "false"
        elif isinstance(value, str | int | float):
            environment[name] = str(value)
        else:
            raise ConfigurationError(f"env[{name!r}] = {value!r} must be a text; for JSON use json.dumps")
        option = _BY_VARIABLE.get(name)
        if option is not None and option.not_built and environment[name].strip():
            raise ConfigurationError(f"env[{name!r}] = {value!r}: {option.not_built}")
    return environment


def _refuse_twice(
    name: str,
    variables: tuple[str, ...],
    environment: Mapping[str, str],
    *,
    shown: Callable[[object], str] = repr,
) -> None:
    for variable in variables:
        if environment.get(variable, "").strip():
            raise ConfigurationError(
                f"{name} and env[{variable!r}] = {shown(environment[variable])} set the same thing; give one of them"
            )


def _suggestion(name: str) -> str:
    by_variable = _BY_VARIABLE.get(name.upper())
    if by_variable is not None:
        return f"; did you mean {by_variable.name}?"
    close = difflib.get_close_matches(name, _BY_NAME, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(sorted(_BY_NAME))}"


def whole_number(environment: Mapping[str, str], option: str) -> int | None:
    """The value of an option in an environment, by any of its variables; None where it is absent or no number."""
    for variable in _BY_NAME[option].variables:
        text = environment.get(variable, "").strip()
        if text.isdecimal():
            return int(text)
    return None


def _check_pairs(environment: Mapping[str, str]) -> None:
    longest, total = (whole_number(environment, name) for name in ("max_input_tokens", "max_total_tokens"))
    capacity = whole_number(environment, "max_batch_total_tokens")
    if longest is not None and total is not None and longest >= total:
        raise ConfigurationError(
            f"max_input_tokens = {longest} must be below max_total_tokens = {total}: the answer needs room too"
        )
    if total is not None and capacity is not None and total > capacity:
        raise ConfigurationError(
            f"max_total_tokens = {total} exceeds max_batch_total_tokens = {capacity}: no request could be that long"
        )


def _check_size(environment: Mapping[str, str]) -> None:
    """SageMaker's limits of ContainerDefinition.Environment."""
    if len(environment) > MAX_ENTRIES:
        raise ConfigurationError(
            f"the environment has {len(environment)} entries; SageMaker takes {MAX_ENTRIES}"
        )
    for name, text in environment.items():
        if max(len(name), len(text)) > MAX_CHARS:
            raise ConfigurationError(
                f"{name[:60]} is {max(len(name), len(text))} characters long; SageMaker takes {MAX_CHARS}. "
                "Put long values into a file of the model folder and give its path, /opt/ml/model/<file>"
            )
    total = sum(len(name.encode()) + len(text.encode()) for name, text in environment.items())
    if total > MAX_TOTAL_BYTES:
        raise ConfigurationError(f"the environment has {total} bytes; SageMaker takes {MAX_TOTAL_BYTES}")
