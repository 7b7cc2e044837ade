"""The one table of environment variables: names, the `ServerConfig` field of each, and how its text is read.

Defaults and descriptions are the config's. Command line and `docs/configuration.md` are made from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import inspect

from serving.config import ServerConfig

Parser = Callable[[str], object]

_TRUE = frozenset({"1", "true", "t", "yes", "y", "on"})
_FALSE = frozenset({"0", "false", "f", "no", "n", "off"})
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")

# MaxPayloadInMB=0 is SageMaker's "no limit" for batch transform; a body is held in memory, so it gets one.
UNLIMITED_PAYLOAD_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Variable:
    """One setting. Two names with different values are an error; with `ranked` the earlier name wins."""

    names: tuple[str, ...]
    field: str
    flag: str
    ranked: bool = False
    parsers: tuple[tuple[str, Parser, str], ...] = ()
    """(name, parser, allowed text) for names whose text is not simply the field's type."""

    def parse(self, name: str, text: str) -> object:
        """The field's value. Raises ValueError whose text says what is allowed."""
        for special, parser, allowed in self.parsers:
            if special == name:
                try:
                    return parser(text)
                except ValueError as error:
                    raise ValueError(allowed) from error
        return parse_as(field_type(self.field), text)

    def allowed(self, name: str) -> str:
        return next(
            (text for special, _, text in self.parsers if special == name),
            allowed_text(field_type(self.field)),
        )


def _megabytes(text: str) -> int:
    if not _INTEGER.fullmatch(text) or int(text) < 0:
        raise ValueError(text)
    return int(text) * 1024 * 1024 or UNLIMITED_PAYLOAD_BYTES


def _negated(text: str) -> object:
    return not parse_as(field_type("limits.grammar_support"), text)


def _choice(**aliases: str) -> Callable[[str], str]:
    return lambda text: aliases.get(text.lower(), text.lower())


def _dtype(text: str) -> object:
    name = _choice(fp16="float16", half="float16", bf16="bfloat16", fp32="float32", float="float32")(text)
    return parse_as(field_type("model.dtype"), name)


def _log_level(text: str) -> object:
    return parse_as(
        field_type("runtime.log_level"), _choice(warn="warning", trace="debug", critical="error")(text)
    )


MODEL_ID = "MODEL_ID"
HF_MODEL_ID = "HF_MODEL_ID"
BASE_DIR = "SAGEMAKER_BASE_DIR"
HF_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN")

VARIABLES: tuple[Variable, ...] = (
    Variable(("HF_MODEL_REVISION", "REVISION"), "model.revision", "revision"),
    Variable(("HF_MODEL_QUANTIZE", "QUANTIZE"), "model.quantize", "quantize"),
    Variable(
        ("DTYPE",),
        "model.dtype",
        "dtype",
        parsers=(("DTYPE", _dtype, "auto, float32, bfloat16 or float16"),),
    ),
    Variable(
        ("HF_MODEL_TRUST_REMOTE_CODE", "TRUST_REMOTE_CODE"), "model.trust_remote_code", "trust-remote-code"
    ),
    Variable(("SERVED_MODEL_NAME",), "model.served_names", "served-model-name"),
    Variable(("CHAT_TEMPLATE",), "model.chat_template", "chat-template"),
    Variable(("TOOL_FORMAT",), "model.tool_format", "tool-format"),
    Variable(("REASONING_FORMAT",), "model.reasoning_format", "reasoning-format"),
    Variable(("SM_NUM_GPUS", "NUM_SHARD"), "parallel.num_ranks", "num-shard"),
    Variable(("DEVICE",), "runtime.device", "device"),
    Variable(("MAX_INPUT_TOKENS", "MAX_INPUT_LENGTH"), "limits.max_input_tokens", "max-input-tokens"),
    Variable(("MAX_TOTAL_TOKENS",), "limits.max_total_tokens", "max-total-tokens"),
    Variable(("MAX_BATCH_PREFILL_TOKENS",), "scheduler.max_batch_prefill_tokens", "max-batch-prefill-tokens"),
    Variable(("MAX_BATCH_TOTAL_TOKENS",), "cache.max_batch_total_tokens", "max-batch-total-tokens"),
    Variable(("MAX_CONCURRENT_REQUESTS",), "limits.max_concurrent_requests", "max-concurrent-requests"),
    Variable(("MAX_NUM_SEQS",), "scheduler.max_num_seqs", "max-num-seqs"),
    Variable(("MAX_QUEUE_TOKENS",), "scheduler.max_queue_tokens", "max-queue-tokens"),
    Variable(("MAX_BEST_OF",), "limits.max_best_of", "max-best-of"),
    Variable(("MAX_N",), "limits.max_n", "max-n"),
    Variable(("MAX_CLIENT_BATCH_SIZE",), "limits.max_client_batch_size", "max-client-batch-size"),
    Variable(("MAX_STOP_SEQUENCES",), "limits.max_stop_sequences", "max-stop-sequences"),
    Variable(("MAX_TOP_N_TOKENS",), "limits.max_top_n_tokens", "max-top-n-tokens"),
    Variable(
        ("GRAMMAR_SUPPORT", "DISABLE_GRAMMAR_SUPPORT"),
        "limits.grammar_support",
        "grammar-support",
        parsers=(("DISABLE_GRAMMAR_SUPPORT", _negated, "true or false"),),
    ),
    Variable(("GRAMMAR_TIMEOUT_S",), "limits.grammar_timeout_s", "grammar-timeout-s"),
    Variable(("GRAMMAR_CACHE_BYTES",), "limits.grammar_cache_bytes", "grammar-cache-bytes"),
    Variable(("WATERMARK_GAMMA",), "limits.watermark_gamma", "watermark-gamma"),
    Variable(("WATERMARK_DELTA",), "limits.watermark_delta", "watermark-delta"),
    Variable(
        ("PAYLOAD_LIMIT", "SAGEMAKER_MAX_REQUEST_SIZE", "SAGEMAKER_MAX_PAYLOAD_IN_MB"),
        "limits.payload_limit_bytes",
        "payload-limit",
        ranked=True,
        parsers=(
            ("SAGEMAKER_MAX_PAYLOAD_IN_MB", _megabytes, "a whole number of MiB, at least 0 (0 = 1 GiB)"),
        ),
    ),
    Variable(("CUDA_MEMORY_FRACTION",), "cache.memory_fraction", "cuda-memory-fraction"),
    Variable(("PREFIX_CACHING",), "cache.prefix_caching", "prefix-caching"),
    Variable(("KV_BLOCK_SIZE",), "cache.block_size", "kv-block-size"),
    Variable(("STEP_TIME_BUDGET_S",), "scheduler.step_time_budget_s", "step-time-budget-s"),
    Variable(("DETERMINISTIC",), "runtime.deterministic", "deterministic"),
    Variable(("NUM_THREADS",), "runtime.num_threads", "num-threads"),
    Variable(("SAGEMAKER_BIND_TO_PORT", "PORT"), "http.port", "port", ranked=True),
    Variable(("HOSTNAME",), "http.host", "hostname"),
    Variable(("API_WORKERS",), "http.api_workers", "api-workers"),
    Variable(("HEARTBEAT_S",), "http.heartbeat_s", "heartbeat-s"),
    Variable(("BODY_TIMEOUT_S",), "http.body_timeout_s", "body-timeout-s"),
    Variable(("API_KEY",), "http.api_key", "api-key"),
    Variable(("API_KEY_EXEMPT",), "http.api_key_exempt", "api-key-exempt"),
    Variable(("CORS_ALLOW_ORIGIN",), "http.cors_allow_origin", "cors-allow-origin"),
    Variable(("UNKNOWN_PARAMETERS",), "http.unknown_parameters", "unknown-parameters"),
    Variable(("GRACEFUL_TERMINATION_TIMEOUT",), "http.drain_timeout_s", "graceful-termination-timeout"),
    Variable(("UNARY_DEADLINE_S",), "http.unary_deadline_s", "unary-deadline-s"),
    Variable(("SAGEMAKER_BATCH",), "http.batch_transform", "batch-transform"),
    Variable(("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT",), "http.default_accept", "default-accept"),
    Variable(
        ("SAGEMAKER_ENABLE_STATEFUL_SESSIONS", "OPTION_ENABLE_STATEFUL_SESSIONS"),
        "sessions.enabled",
        "stateful-sessions",
    ),
    Variable(
        ("SAGEMAKER_SESSIONS_EXPIRATION", "OPTION_SESSIONS_EXPIRATION"), "sessions.ttl_s", "session-ttl-s"
    ),
    Variable(("MAX_SESSIONS",), "sessions.max_sessions", "max-sessions"),
    Variable(("SESSION_KV_FRACTION",), "sessions.kv_fraction", "session-kv-fraction"),
    Variable(
        ("LOG_LEVEL",),
        "runtime.log_level",
        "log-level",
        parsers=(("LOG_LEVEL", _log_level, "debug, info, warning or error"),),
    ),
    Variable(("JSON_OUTPUT",), "runtime.json_logs", "json-output"),
    Variable(("LOG_PROMPTS",), "runtime.log_prompts", "log-prompts"),
    Variable(("OTLP_ENDPOINT",), "runtime.otlp_endpoint", "otlp-endpoint"),
    Variable(("OTLP_SERVICE_NAME",), "runtime.otlp_service_name", "otlp-service-name"),
)

# Variables of Text Generation Inference that would change answers or access if they were ignored.
NOT_BUILT = (
    "KV_CACHE_DTYPE",
    "LORA_ADAPTERS",
    "ROPE_FACTOR",
    "ROPE_SCALING",
    "TOKENIZER_CONFIG_PATH",
)

OUR_PREFIXES = ("SM_", "HF_MODEL", "MAX_", "SAGEMAKER_", "OPTION_")

# Set by the platform or an SDK, not by a user who expects an effect.
PLATFORM_NAMES = frozenset(
    {
        "SAGEMAKER_BATCH_STRATEGY",
        "SAGEMAKER_CONTAINER_LOG_LEVEL",
        "SAGEMAKER_ENABLE_LOAD_AWARE",
        "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS",
        "SAGEMAKER_MODEL_SERVER_WORKERS",
        "SAGEMAKER_PROGRAM",
        "SAGEMAKER_REGION",
        "SAGEMAKER_SAFE_PORT_RANGE",
        "SAGEMAKER_SERVE_SECRET_KEY",
        "SAGEMAKER_SUBMIT_DIRECTORY",
    }
)


def known_names() -> frozenset[str]:
    names = {name for variable in VARIABLES for name in variable.names}
    return frozenset(names | {MODEL_ID, HF_MODEL_ID, BASE_DIR, *HF_TOKENS, *NOT_BUILT})


# ---------------------------------------------------------------- field types


def field_info(path: str) -> inspect.Field:
    """msgspec's description of `slice.field` in `ServerConfig`."""
    slice_name, field_name = path.split(".")
    for slice_field in _struct_fields(ServerConfig):
        if slice_field.name == slice_name and isinstance(slice_field.type, inspect.StructType):
            return next(field for field in slice_field.type.fields if field.name == field_name)
    raise KeyError(path)


def all_fields() -> dict[str, inspect.Field]:
    """Every declared field by its `slice.field` path, in order."""
    return {
        f"{part.name}.{field.name}": field
        for part in _struct_fields(ServerConfig)
        if isinstance(part.type, inspect.StructType)
        for field in part.type.fields
    }


def _struct_fields(struct: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    info = inspect.type_info(struct)
    return info.fields if isinstance(info, inspect.StructType) else ()


def field_type(path: str) -> inspect.Type:
    """The field's type without its description and without None."""
    found = _unwrap(field_info(path).type)
    if isinstance(found, inspect.UnionType):
        found = next(_unwrap(kind) for kind in found.types if not isinstance(kind, inspect.NoneType))
    return found


def field_description(path: str) -> str:
    found: Any = field_info(path).type
    while isinstance(found, inspect.Metadata):
        if found.extra_json_schema and "description" in found.extra_json_schema:
            return str(found.extra_json_schema["description"])
        found = found.type
    return ""


def _unwrap(kind: inspect.Type) -> inspect.Type:
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    return kind


def parse_as(kind: inspect.Type, text: str) -> object:
    """Read `text` as a value of `kind`. Raises ValueError whose text says what is allowed."""
    value: object = None
    if isinstance(kind, inspect.BoolType):
        value = True if text.lower() in _TRUE else False if text.lower() in _FALSE else None
    elif isinstance(kind, inspect.IntType):
        value = int(text) if _INTEGER.fullmatch(text) else None
    elif isinstance(kind, inspect.FloatType):
        value = _finite(text)
    elif isinstance(kind, inspect.LiteralType):
        value = text.lower() if text.lower() in kind.values else None
    elif isinstance(kind, inspect.StrType):
        value = text
    elif isinstance(kind, inspect.VarTupleType):
        items = [item.strip() for item in text.split(",")]
        value = tuple(parse_as(_unwrap(kind.item_type), item) for item in items if item)
    if value is None or not _in_bounds(kind, value):
        raise ValueError(allowed_text(kind))
    return value


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _in_bounds(kind: inspect.Type, value: object) -> bool:
    if not isinstance(kind, (inspect.IntType, inspect.FloatType)) or not isinstance(value, (int, float)):
        return True
    return (
        (kind.ge is None or value >= kind.ge)
        and (kind.gt is None or value > kind.gt)
        and (kind.le is None or value <= kind.le)
        and (kind.lt is None or value < kind.lt)
    )


def allowed_text(kind: inspect.Type) -> str:
    """What a person may write, in words."""
    if isinstance(kind, inspect.BoolType):
        return "true or false (also 1/0, yes/no, on/off)"
    if isinstance(kind, inspect.LiteralType):
        return ", ".join(str(value) for value in kind.values)
    if isinstance(kind, inspect.VarTupleType):
        return f"{allowed_text(_unwrap(kind.item_type))}, or several with commas between them"
    if isinstance(kind, (inspect.IntType, inspect.FloatType)):
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (
                ("at least", kind.ge),
                ("above", kind.gt),
                ("at most", kind.le),
                ("below", kind.lt),
            )
            if bound is not None
        ]
        noun = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
        return " ".join([noun, " and ".join(bounds)]) if bounds else noun
    return "text"
