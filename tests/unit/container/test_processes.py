"""Command lines and environments of the children."""

from __future__ import annotations

from pathlib import Path

from container.environment import read_environment
from container.processes import (
    ENGINE_MODULE,
    api_command,
    available_cores,
    engine_command,
    serving_environment,
)
from serving.config import ServerConfig

RUN_DIR = Path("/run/textgen")


def config(**environ: str) -> ServerConfig:
    return read_environment(environ).config


def test_threads_are_shared_by_the_ranks() -> None:
    cores = available_cores()
    assert serving_environment(config(DEVICE="cpu"), {}, RUN_DIR)["OMP_NUM_THREADS"] == str(cores)
    many = config(DEVICE="cpu", SM_NUM_GPUS=str(2 * cores))
    assert serving_environment(many, {}, RUN_DIR)["OMP_NUM_THREADS"] == "1"
    assert serving_environment(config(NUM_THREADS="3"), {}, RUN_DIR)["OMP_NUM_THREADS"] == "3"


def test_what_the_user_set_stays() -> None:
    environ = {
        "OMP_NUM_THREADS": "5",
        "PYTORCH_CUDA_ALLOC_CONF": "x",
        "NCCL_SOCKET_IFNAME": "eth0",
        "HF_TOKEN": "t",
    }
    child = serving_environment(config(), environ, RUN_DIR)
    assert (child["OMP_NUM_THREADS"], child["NCCL_SOCKET_IFNAME"]) == ("5", "eth0")
    assert "PYTORCH_ALLOC_CONF" not in child
    assert "HF_TOKEN" not in child
    assert serving_environment(config(), {}, RUN_DIR)["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert "GUNICORN_CMD_ARGS" not in serving_environment(config(), {"GUNICORN_CMD_ARGS": "-b :1"}, RUN_DIR)


def test_ranks_do_not_use_small_shared_memory() -> None:
    two = config(DEVICE="cpu", SM_NUM_GPUS="2")
    small, large = 64 << 20, 4 << 30
    assert serving_environment(two, {}, RUN_DIR, shm_bytes=small)["NCCL_SHM_DISABLE"] == "1"
    assert "NCCL_SHM_DISABLE" not in serving_environment(two, {}, RUN_DIR, shm_bytes=large)
    one = config(DEVICE="cpu", SM_NUM_GPUS="1")
    assert "NCCL_SHM_DISABLE" not in serving_environment(one, {}, RUN_DIR, shm_bytes=small)
    chosen = serving_environment(two, {"NCCL_SHM_DISABLE": "0"}, RUN_DIR, shm_bytes=small)
    assert chosen["NCCL_SHM_DISABLE"] == "0"


def test_gunicorn_is_told_what_varies() -> None:
    command = api_command(
        config(API_WORKERS="3", MAX_CONCURRENT_REQUESTS="1000"),
        RUN_DIR,
        listener_fd=7,
        application="a.b:build",
    )
    assert "--bind=fd://7" in command and "--workers=3" in command
    connections = next(int(word.split("=")[1]) for word in command if word.startswith("--worker-connections"))
    assert connections > 1000 + 100
    assert "--graceful-timeout=24" in command
    assert f"--worker-tmp-dir={RUN_DIR}" in command
    assert command[-1] == "a.b:build('/run/textgen')"


def test_the_engine_is_told_the_model() -> None:
    command = engine_command(
        config(MODEL_ID="demo"), RUN_DIR, model_dir=Path("/m"), revision="abc", program=ENGINE_MODULE
    )
    assert command[1:] == [
        *("-m", "serving.engine.process", "--run-dir", "/run/textgen", "--model-dir", "/m"),
        *("--model-id", "", "--stage-fd", "{stage_fd}", "--revision", "abc"),
    ]
    without = engine_command(config(), RUN_DIR, model_dir=Path("/m"), revision=None, program=ENGINE_MODULE)
    assert "--revision" not in without
