"""LMI (DJL Serving): `OPTION_X` is `option.x` of serving.properties, `SERVING_X` is its server property `x`."""

from __future__ import annotations

from container.families.engine_flags import flag_aliases, flag_no_effects, flag_refusals
from container.families.family import (
    NO_LORA,
    NO_PIPELINE,
    NO_SPECULATION,
    NONE,
    SECONDS,
    Alias,
    Family,
    Refusal,
    no_effects,
    one_of,
    refusals,
    request_limit_s,
)
from container.fields import field_type, parse_as

PREFIX, SERVER_PREFIX = "OPTION_", "SERVING_"

_MAX_RANKS = "a whole number at least 1, or max (= all visible GPUs)"
_FORMATS = {"json": None, "jsonlines": "application/jsonlines", "sse": "text/event-stream"}


def _degree(text: str) -> object:
    return None if text.lower() == "max" else parse_as(field_type("parallel.num_ranks"), text)


LMI = Family(
    title="LMI / DJL Serving (`OPTION_*`, `SERVING_*`, serving.properties)",
    aliases=(
        Alias("OPTION_MODEL_ID", "model.model_id"),
        *flag_aliases(PREFIX),
        Alias("OPTION_QUANTIZE", "model.quantize"),
        Alias("OPTION_TENSOR_PARALLEL_DEGREE", "parallel.num_ranks", _degree, _MAX_RANKS),
        Alias("TENSOR_PARALLEL_DEGREE", "parallel.num_ranks", _degree, _MAX_RANKS),
        Alias("OPTION_MAX_MODEL_LEN", "limits.max_total_tokens"),
        Alias("OPTION_MAX_ROLLING_BATCH_SIZE", "scheduler.max_num_seqs"),
        Alias("MAX_BATCH_SIZE", "scheduler.max_num_seqs", note="also TGI's, with the same meaning"),
        Alias("OPTION_MAX_ROLLING_BATCH_PREFILL_TOKENS", "scheduler.max_batch_prefill_tokens"),
        Alias("OPTION_MAX_NUM_BATCHED_TOKENS", "scheduler.max_batch_prefill_tokens"),
        Alias("OPTION_SERVED_MODEL_NAME", "model.served_names"),
        Alias(
            "OPTION_OUTPUT_FORMATTER",
            "http.default_accept",
            one_of(_FORMATS),
            "json, jsonlines or sse (custom formatters are code, which is not run)",
            note="the format of a reply whose request names none; json = as without it",
        ),
        Alias("OPTION_PREDICT_TIMEOUT", "http.unary_deadline_s", request_limit_s, SECONDS),
        Alias("SERVING_PREDICT_TIMEOUT", "http.unary_deadline_s", request_limit_s, SECONDS),
        Alias(
            "SERVING_JOB_QUEUE_SIZE", "limits.max_concurrent_requests", note="waiting and running together"
        ),
        Alias(
            "SERVING_MAX_REQUEST_SIZE",
            "limits.payload_limit_bytes",
            note="bytes",
            yields_to=("SAGEMAKER_MAX_PAYLOAD_IN_MB",),
        ),
        Alias("SERVING_CORS_ALLOWED_ORIGIN", "http.cors_allow_origin"),
        Alias("OPTION_ENABLE_STATEFUL_SESSIONS", "sessions.enabled"),
        Alias("OPTION_SESSIONS_EXPIRATION", "sessions.ttl_s"),
    ),
    refusals=(
        *flag_refusals(PREFIX),
        *refusals(NO_PIPELINE, "OPTION_PIPELINE_PARALLEL_DEGREE", harmless=frozenset({"1"})),
        *refusals(NO_LORA, "OPTION_ADAPTERS"),
        *refusals(NO_SPECULATION, "OPTION_SPECULATIVE_DRAFT_MODEL", harmless=NONE),
        *refusals(
            "only safetensors are loaded, and the format of Fast Model Loader is not public",
            "OPTION_LOAD_FORMAT",
            harmless=frozenset({"auto", "safetensors"}),
        ),
        *refusals(
            "only the task text-generation is served", "OPTION_TASK", harmless=frozenset({"text-generation"})
        ),
        *refusals(
            "custom model code of LMI is not run",
            "OPTION_ENTRYPOINT",
            "OPTION_ENTRY_POINT",
            harmless=frozenset(
                {"djl_python.huggingface", "djl_python.lmi_vllm", "djl_python.lmi_vllm.vllm_async_service"}
            ),
        ),
        Refusal(
            "OPTION_INPUT_FORMATTER",
            "formatters are code, which is not run",
            frozenset({"json", "jsonlines"}),
        ),
    ),
    no_effects=(
        *no_effects(
            "requests join and leave the batch at every step, whatever it is called",
            "OPTION_ROLLING_BATCH",
            "OPTION_ASYNC_MODE",
            "OPTION_MPI_MODE",
            "SERVING_BATCH_SIZE",
            "SERVING_MAX_BATCH_DELAY",
        ),
        *no_effects("there is one engine", "OPTION_ENGINE", "SERVING_ENGINE"),
        *no_effects("a request says itself whether it streams", "OPTION_ENABLE_STREAMING"),
        *no_effects("replies on /invocations always have TGI's shape", "OPTION_TGI_COMPAT"),
        *no_effects(
            "loading has no time limit here; ContainerStartupHealthCheckTimeoutInSeconds is the platform's",
            "OPTION_MODEL_LOADING_TIMEOUT",
            "SERVING_MODEL_LOADING_TIMEOUT",
        ),
        *no_effects("sessions are held in the engine's memory", "OPTION_SESSIONS_PATH"),
        *flag_no_effects(PREFIX),
        *no_effects("the engine chooses how it runs the model", "OPTION_DEVICE_MAP"),
        *no_effects("weights are loaded one rank each, side by side", "OPTION_PARALLEL_LOADING"),
        *no_effects(
            "one engine serves every request; see API_WORKERS for the front",
            "SERVING_MIN_WORKERS",
            "SERVING_MAX_WORKERS",
            "SERVING_MINWORKERS",
            "SERVING_MAXWORKERS",
            "SERVING_NETTY_THREADS",
            "SERVING_NUMBER_OF_NETTY_THREADS",
        ),
        *no_effects("the port comes from SAGEMAKER_BIND_TO_PORT or PORT", "SERVING_INFERENCE_ADDRESS"),
        *no_effects("the port comes from SAGEMAKER_BIND_TO_PORT or PORT", "SERVING_MANAGEMENT_ADDRESS"),
        *no_effects(
            "one model is served, the one of the model ladder", "SERVING_LOAD_MODELS", "SERVING_MODEL_STORE"
        ),
        *no_effects(
            "a container whose engine dies ends, and the platform starts another", "SERVING_RETRY_THRESHOLD"
        ),
        *no_effects("there is no Java virtual machine", "SERVING_OPTS", "SERVING_FEATURES"),
    ),
)
