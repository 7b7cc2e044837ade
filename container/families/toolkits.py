"""Names read by AWS's inference toolkits, MMS and the model hosting container standards."""

from __future__ import annotations

from container.families.family import (
    SECONDS,
    Alias,
    Family,
    IgnoredPrefix,
    no_effects,
    refusals,
    request_limit_s,
)

_NO_CODE = "custom model code of the model hosting container standards is not run; serve a model without it"
_PLATFORM_RESTARTS = "a container whose engine dies ends, and the platform starts another"
_ONE_ENGINE = "one engine serves every request; see API_WORKERS for the front"

TOOLKITS = Family(
    title="SageMaker toolkits, MMS, model hosting container standards",
    aliases=(
        Alias(
            "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS",
            "http.unary_deadline_s",
            request_limit_s,
            SECONDS,
            note="59 and 60 count as 58, because the platform gives up at 60 s",
        ),
        Alias(
            "SAGEMAKER_MODEL_SERVER_TIMEOUT",
            "http.unary_deadline_s",
            request_limit_s,
            SECONDS,
            note="read as seconds, as the toolkit's default of 60 means; `…_SECONDS` wins",
            yields_to=("SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS",),
        ),
        Alias("MMS_DEFAULT_RESPONSE_TIMEOUT", "http.unary_deadline_s", request_limit_s, SECONDS),
        Alias("SAGEMAKER_NUM_MODEL_WORKERS", "http.api_workers"),
        Alias("SAGEMAKER_MODEL_SERVER_WORKERS", "http.api_workers"),
        Alias(
            "MMS_MAX_REQUEST_SIZE",
            "limits.payload_limit_bytes",
            note="bytes",
            yields_to=("SAGEMAKER_MAX_PAYLOAD_IN_MB",),
        ),
    ),
    refusals=(
        *refusals(
            _NO_CODE,
            "CUSTOM_SCRIPT_FILENAME",
            "CUSTOM_FASTAPI_PING_HANDLER",
            "CUSTOM_FASTAPI_INVOCATION_HANDLER",
            "CUSTOM_FASTAPI_MIDDLEWARE_THROTTLE",
            "CUSTOM_FASTAPI_MIDDLEWARE_PRE_POST_PROCESS",
            "CUSTOM_PRE_PROCESS",
            "CUSTOM_POST_PROCESS",
        ),
        *refusals(
            "the location of Fast Model Loader's output is of no use here: its format is not public",
            "SM_FAST_MODEL_LOADER_S3_URI",
        ),
    ),
    no_effects=(
        *no_effects(
            "loading has no time limit here; ContainerStartupHealthCheckTimeoutInSeconds is the platform's",
            "SAGEMAKER_STARTUP_TIMEOUT",
        ),
        *no_effects("there is no Java virtual machine", "SAGEMAKER_MODEL_SERVER_VMARGS", "MMS_VMARGS"),
        *no_effects("/ping always fails until the engine can answer", "SAGEMAKER_HEALTH_CHECK_OVERRIDE"),
        *no_effects("sessions are held in the engine's memory", "SAGEMAKER_SESSIONS_PATH"),
        *no_effects(
            "adapters are not built yet; requests that name one are refused",
            "SAGEMAKER_MAX_NUMBER_OF_ADAPTERS_IN_MEMORY",
        ),
        *no_effects("model.py is not run", "SAGEMAKER_MODEL_PATH"),
        *no_effects("replies have no size limit", "MMS_MAX_RESPONSE_SIZE"),
        *no_effects(
            _ONE_ENGINE,
            "MMS_DEFAULT_WORKERS_PER_MODEL",
            "MMS_NUMBER_OF_NETTY_THREADS",
            "MMS_NETTY_CLIENT_THREADS",
        ),
        *no_effects(_PLATFORM_RESTARTS, "PROCESS_AUTO_RECOVERY", "PROCESS_MAX_START_RETRIES"),
        *no_effects(
            "nothing is installed at start: a start has to work without network, and the same way each time",
            "STANDARD_AUTO_INSTALL_REQ",
            "STANDARD_PIP_ARGS",
        ),
    ),
    ignored_prefixes=(
        IgnoredPrefix("SM_SGLANG_", "they are flags of the SGLang image; use the settings listed here"),
        IgnoredPrefix("SUPERVISOR_PROGRAM_", "no process of this container is started by supervisord"),
        IgnoredPrefix("SM_NEO_", "this image serves models and runs no optimisation jobs"),
    ),
)
