"""Containers that several files look at: one under the platform's variables, one as `docker run` by hand starts it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_mode.server_process import ServerProcess
from tests.e2e.conftest import LIMIT_S

SAFE_PORTS = "23000-23999"

# Section 1.2 of the hosting contract: what the platform, its SDKs and toolkits may set, or leave empty.
_CONTRACT = """
SAGEMAKER_BIND_TO_PORT SAGEMAKER_SAFE_PORT_RANGE SAGEMAKER_MULTI_MODEL SAGEMAKER_BATCH SAGEMAKER_MAX_PAYLOAD_IN_MB
SAGEMAKER_BATCH_STRATEGY SAGEMAKER_MAX_CONCURRENT_TRANSFORMS AWS_REGION AWS_DEFAULT_REGION
AWS_CONTAINER_CREDENTIALS_RELATIVE_URI SAGEMAKER_PROGRAM SAGEMAKER_SUBMIT_DIRECTORY SAGEMAKER_CONTAINER_LOG_LEVEL
SAGEMAKER_REGION SAGEMAKER_MODEL_SERVER_WORKERS SAGEMAKER_SERVE_SECRET_KEY SAGEMAKER_ENABLE_LOAD_AWARE
SAGEMAKER_MAX_NUMBER_OF_ADAPTERS_IN_MEMORY SAGEMAKER_BASE_DIR SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT
SAGEMAKER_MODEL_SERVER_TIMEOUT SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS SAGEMAKER_NUM_MODEL_WORKERS
SAGEMAKER_STARTUP_TIMEOUT SAGEMAKER_MODEL_SERVER_VMARGS SAGEMAKER_MAX_REQUEST_SIZE SAGEMAKER_HEALTH_CHECK_OVERRIDE
SAGEMAKER_ENABLE_STATEFUL_SESSIONS SAGEMAKER_SESSIONS_EXPIRATION SAGEMAKER_SESSIONS_PATH SAGEMAKER_SECURE_MODE
SAGEMAKER_SECURITY_CONTROLS SAGEMAKER_UNTRUSTED_CHANNELS SAGEMAKER_MODEL_PATH CUSTOM_SCRIPT_FILENAME
CUSTOM_FASTAPI_PING_HANDLER CUSTOM_FASTAPI_INVOCATION_HANDLER CUSTOM_FASTAPI_MIDDLEWARE_THROTTLE
CUSTOM_FASTAPI_MIDDLEWARE_PRE_POST_PROCESS CUSTOM_PRE_PROCESS CUSTOM_POST_PROCESS PROCESS_AUTO_RECOVERY
PROCESS_MAX_START_RETRIES STANDARD_AUTO_INSTALL_REQ STANDARD_PIP_ARGS HF_MODEL_ID HF_MODEL_REVISION HF_REVISION
HF_TOKEN HUGGING_FACE_HUB_TOKEN HF_API_TOKEN HF_TASK HF_MODEL_QUANTIZE HF_MODEL_TRUST_REMOTE_CODE
HF_TRUST_REMOTE_CODE HF_HUB_OFFLINE HF_HOME SM_NUM_GPUS OPTION_MODEL_ID OPTION_TENSOR_PARALLEL_DEGREE OPTION_DTYPE
OPTION_ROLLING_BATCH SERVING_LOAD_MODELS TENSOR_PARALLEL_DEGREE MAX_BATCH_SIZE MAX_CONCURRENT_REQUESTS SM_VLLM_MODEL
SM_VLLM_MAX_MODEL_LEN SM_SGLANG_MODEL_PATH MMS_MAX_REQUEST_SIZE MMS_MAX_RESPONSE_SIZE MMS_DEFAULT_RESPONSE_TIMEOUT
MMS_DEFAULT_WORKERS_PER_MODEL MODEL_ID QUANTIZE DTYPE MAX_TOTAL_TOKENS LOG_LEVEL HOME TMPDIR
"""
CONTRACT_NAMES = _CONTRACT.split()


@pytest.fixture(scope="session")
def mounted(server_environment: dict[str, str], endless_model_dir: Path) -> tuple[dict[str, str], Path]:
    """The environment of a container whose model lies in its `/opt/ml`, and that folder."""
    base = endless_model_dir.parent
    environment = {name: text for name, text in server_environment.items() if name != "MODEL_ID"}
    return {**environment, "SAGEMAKER_BASE_DIR": str(base), "SAGEMAKER_SAFE_PORT_RANGE": SAFE_PORTS}, base


@pytest.fixture(scope="module")
def container(mounted: tuple[dict[str, str], Path]) -> Iterator[ServerProcess]:
    """Started as the platform does, with room for more streams than one batch holds."""
    settings = {"MAX_CONCURRENT_REQUESTS": "512", "SAGEMAKER_ENABLE_STATEFUL_SESSIONS": "true"}
    with ServerProcess({**mounted[0], **settings}) as server:
        server.wait_ready(LIMIT_S)
        yield server


@pytest.fixture(scope="module")
def by_hand(endless_model_dir: Path) -> Iterator[ServerProcess]:
    """Started without an argument, in an environment in which everything but the model is there and empty."""
    empty = dict.fromkeys(CONTRACT_NAMES, "")
    needed = {name: os.environ[name] for name in ("PATH", "PYTEST_LEAK_TAG")}
    ours = {
        "MODEL_ID": str(endless_model_dir),
        "PORT": "0",
        "HOSTNAME": "127.0.0.1",
        "NUM_THREADS": "1",
        "DEVICE": "cpu",
    }
    command = [sys.executable, "-m", "container.entrypoint"]
    with ServerProcess({**empty, **needed, **ours}, command=command) as server:
        server.wait_ready(LIMIT_S)
        yield server
