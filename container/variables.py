"""The one table of settings: names of our own, TGI's and the platform's, and the `ServerConfig` field of each.

Defaults and descriptions are the config's. Command line and `docs/configuration.md` are made from it. The names that
other images use for the same settings are in `container.families`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from container.families import FAMILIES, Alias
from container.families.family import DTYPES, KV_CACHE_DTYPES, dtype, kv_cache_dtype, negated, one_of
from container.families.hugging_face import LIBRARY_NAMES
from container.fields import INTEGER, Parser, allowed_text, field_type, parse_as

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
    if not INTEGER.fullmatch(text) or int(text) < 0:
        raise ValueError(text)
    return int(text) * 1024 * 1024 or UNLIMITED_PAYLOAD_BYTES


def _namespace(text: str) -> str:
    """A namespace of CloudWatch's (its reference of PutMetricData)."""
    if not _NAMESPACE.fullmatch(text):
        raise ValueError(text)
    return text


_NAMESPACE = re.compile(r"(?!AWS/)[A-Za-z0-9._/#:-]{1,255}")
_NAMESPACE_TEXT = "1 to 255 letters, digits and ._/#:-, not beginning with AWS/"

_LEVELS = {"trace": "debug", "debug": "debug", "info": "info", "warn": "warning", "warning": "warning"}
_LEVELS |= {"error": "error", "critical": "error"}

MODEL_ID = "MODEL_ID"
HF_MODEL_ID = "HF_MODEL_ID"
HF_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN", "SM_VLLM_HF_TOKEN")

VARIABLES: tuple[Variable, ...] = (
    Variable(("HF_MODEL_REVISION", "REVISION"), "model.revision", "revision"),
    Variable(("HF_MODEL_QUANTIZE", "QUANTIZE"), "model.quantize", "quantize"),
    Variable(
        ("DTYPE",),
        "model.dtype",
        "dtype",
        parsers=(("DTYPE", dtype, DTYPES),),
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
        parsers=(("DISABLE_GRAMMAR_SUPPORT", negated("limits.grammar_support"), "true or false"),),
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
    Variable(
        ("KV_CACHE_DTYPE",),
        "cache.dtype",
        "kv-cache-dtype",
        parsers=(("KV_CACHE_DTYPE", kv_cache_dtype, KV_CACHE_DTYPES),),
    ),
    Variable(("STEP_TIME_BUDGET_S",), "scheduler.step_time_budget_s", "step-time-budget-s"),
    Variable(("DETERMINISTIC",), "runtime.deterministic", "deterministic"),
    Variable(("DECODE_GRAPHS",), "runtime.decode_graphs", "decode-graphs"),
    Variable(("ONE_SHOT_ALL_REDUCE",), "parallel.one_shot_all_reduce", "one-shot-all-reduce"),
    Variable(("ASYNC_SCHEDULING",), "runtime.async_scheduling", "async-scheduling"),
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
    Variable(("HANDLER_TIMEOUT_S",), "http.handler_timeout_s", "handler-timeout-s"),
    Variable(
        ("SAGEMAKER_ENABLE_STATEFUL_SESSIONS",),
        "sessions.enabled",
        "stateful-sessions",
    ),
    Variable(("SAGEMAKER_SESSIONS_EXPIRATION",), "sessions.ttl_s", "session-ttl-s"),
    Variable(("MAX_SESSIONS",), "sessions.max_sessions", "max-sessions"),
    Variable(("SESSION_KV_FRACTION",), "sessions.kv_fraction", "session-kv-fraction"),
    Variable(
        ("LOG_LEVEL",),
        "runtime.log_level",
        "log-level",
        parsers=(("LOG_LEVEL", one_of(_LEVELS), "debug, info, warning or error"),),
    ),
    Variable(("JSON_OUTPUT",), "runtime.json_logs", "json-output"),
    Variable(("LOG_PROMPTS",), "runtime.log_prompts", "log-prompts"),
    Variable(("OTLP_ENDPOINT",), "runtime.otlp_endpoint", "otlp-endpoint"),
    Variable(("OTLP_SERVICE_NAME",), "runtime.otlp_service_name", "otlp-service-name"),
    Variable(("CLOUDWATCH_EMF",), "runtime.emf", "cloudwatch-emf"),
    Variable(("CLOUDWATCH_EMF_INTERVAL_S",), "runtime.emf_interval_s", "cloudwatch-emf-interval-s"),
    Variable(
        ("CLOUDWATCH_EMF_NAMESPACE",),
        "runtime.emf_namespace",
        "cloudwatch-emf-namespace",
        parsers=(("CLOUDWATCH_EMF_NAMESPACE", _namespace, _NAMESPACE_TEXT),),
    ),
    Variable(("CLOUDWATCH_EMF_ENDPOINT",), "runtime.emf_endpoint", "cloudwatch-emf-endpoint"),
)

OUR_PREFIXES = ("SM_", "HF_", "MAX_", "SAGEMAKER_", "OPTION_", "SERVING_", "MMS_")

# Set by the platform or an SDK, not by a user who expects an effect; or read by a library.
PLATFORM_NAMES = LIBRARY_NAMES | {
    "SAGEMAKER_BATCH_STRATEGY",
    "SAGEMAKER_CONTAINER_LOG_LEVEL",
    "SAGEMAKER_ENABLE_LOAD_AWARE",
    "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS",
    "SAGEMAKER_REGION",
    "SAGEMAKER_SERVE_SECRET_KEY",
}

BASE_DIR = "SAGEMAKER_BASE_DIR"
MULTI_MODEL = "SAGEMAKER_MULTI_MODEL"
SAFE_PORT_RANGE = "SAGEMAKER_SAFE_PORT_RANGE"
PROGRAM = "SAGEMAKER_PROGRAM"
SUBMIT_DIRECTORY = "SAGEMAKER_SUBMIT_DIRECTORY"
SECURE_MODE = "SAGEMAKER_SECURE_MODE"
SECURITY_CONTROLS = "SAGEMAKER_SECURITY_CONTROLS"
UNTRUSTED_CHANNELS = "SAGEMAKER_UNTRUSTED_CHANNELS"

# Names that say how the container is run; they set no field.
HOSTING_NAMES: dict[str, str] = {
    BASE_DIR: "takes the place of `/opt/ml`",
    MULTI_MODEL: "`true` is refused: serve each model as an inference component",
    SAFE_PORT_RANGE: "`lo-hi`: ports for anything but the serving port; one GPU needs none (see Ports)",
    PROGRAM: "script of a custom handler in `code/`, `inference.py` by default",
    SUBMIT_DIRECTORY: "folder of that script when it is not `code/`",
    SECURE_MODE: "`true` checks the model's files before they are used (see Secure mode)",
    SECURITY_CONTROLS: "what secure mode forbids, comma separated",
    UNTRUSTED_CHANNELS: "folders that secure mode checks, comma separated",
}

ALIASES: tuple[Alias, ...] = tuple(alias for family in FAMILIES for alias in family.aliases)
_MODEL_FIELD = "model.model_id"
MODEL_ID_NAMES = (MODEL_ID, *(alias.name for alias in ALIASES if alias.field == _MODEL_FIELD))
"""The first rung of the model ladder."""


def known_names() -> frozenset[str]:
    names = {name for variable in VARIABLES for name in variable.names}
    for family in FAMILIES:
        names.update(alias.name for alias in family.aliases)
        names.update(refusal.name for refusal in family.refusals)
        names.update(no_effect.name for no_effect in family.no_effects)
    return frozenset(names | {MODEL_ID, HF_MODEL_ID, *HOSTING_NAMES, *HF_TOKENS})


def names_of(field: str) -> tuple[str, ...]:
    """Every name that sets `field`, our own first."""
    own = next((variable.names for variable in VARIABLES if variable.field == field), ())
    if field == _MODEL_FIELD:
        own = (MODEL_ID,)
    return (*own, *(alias.name for alias in ALIASES if alias.field == field))
