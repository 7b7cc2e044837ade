"""Command lines and environments of the processes PID 1 starts: all that a child is told."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from container.environment import without_secrets
from container.run_dir import METRICS_DIR
from serving.config import ServerConfig

API_APPLICATION = "serving.api.wsgi:build"
ENGINE_MODULE = ("-m", "serving.engine.process")
_CORES_PER_API_WORKER = 8
# NCCL keeps a few MiB per pair of GPUs and channel in /dev/shm and dies when it is full; NVIDIA advises 1 GiB.
_SHM_FOR_NCCL_BYTES = 1 << 30
_SPARE_CONNECTIONS = 4096  # for /ping, for answers of 429, and for bodies that are slow to arrive


@dataclass(frozen=True, slots=True)
class Programs:
    """What runs as the front and as the engine."""

    api: str = API_APPLICATION
    """`module:factory`; the factory is called with the run directory and returns a WSGI application."""
    engine: Sequence[str] = ENGINE_MODULE
    """Arguments of the Python interpreter, before `--run-dir …`."""


def available_cores() -> int:
    """Cores this process may use: its affinity, or a smaller cgroup quota."""
    cores = len(os.sched_getaffinity(0))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        limit, period = quota.read_text().split()
        if limit != "max":
            cores = min(cores, math.ceil(int(limit) / int(period)))
    return max(cores, 1)


def api_command(config: ServerConfig, run_dir: Path, *, listener_fd: int, application: str) -> list[str]:
    workers = config.http.api_workers or max(1, available_cores() // _CORES_PER_API_WORKER)
    connections = 2 * config.limits.max_concurrent_requests + _SPARE_CONNECTIONS
    return [
        sys.executable,
        "-m",
        "gunicorn",
        f"--config={Path(__file__).with_name('gunicorn.conf.py')}",
        f"--bind=fd://{listener_fd}",
        f"--workers={workers}",
        f"--worker-connections={connections}",
        f"--worker-tmp-dir={run_dir}",
        # PID 1 has the last word at drain_timeout_s; gunicorn cuts what is left one second earlier.
        f"--graceful-timeout={max(1, math.ceil(config.http.drain_timeout_s) - 1)}",
        f"{application}({str(run_dir)!r})",
    ]


def engine_command(
    config: ServerConfig, run_dir: Path, *, model_dir: Path, revision: str | None, program: Sequence[str]
) -> list[str]:
    command = [sys.executable, *program, "--run-dir", str(run_dir), "--model-dir", str(model_dir)]
    command += ["--model-id", config.model.model_id, "--stage-fd", "{stage_fd}"]
    return [*command, "--revision", revision] if revision else command


def handler_command(
    config: ServerConfig, *, script: Path, model_dir: Path, socket_fd: int, log_fd: int
) -> list[str]:
    command = [sys.executable, "-m", "serving.handler.process"]
    command += ["--script", str(script), "--model-dir", str(model_dir)]
    command += ["--socket-fd", str(socket_fd), "--stage-fd", "{stage_fd}", "--log-fd", str(log_fd)]
    command += ["--timeout-s", str(config.http.handler_timeout_s)]
    command += ["--max-bytes", str(config.limits.payload_limit_bytes)]
    command += ["--log-level", config.runtime.log_level]
    command += ["--json-logs"] if config.runtime.json_logs else []
    return [*command, "--exception-text"] if config.runtime.log_prompts else command


def handler_environment(environ: Mapping[str, str], *, home: str) -> dict[str, str]:
    """For the custom handler: what the deployer set, no secrets, a home of its own, and nothing written beside its code."""
    own = {"HOME": home, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return {"OMP_NUM_THREADS": "1", **without_secrets(environ), **own}


def fetch_command(run_dir: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "container.fetch_model",
        "--run-dir",
        str(run_dir),
        "--stage-fd",
        "{stage_fd}",
    ]


def shared_memory_bytes(folder: str = "/dev/shm") -> int:
    """Size of the file system for shared memory, which on SageMaker is 64 MiB and cannot be changed; 0 without one."""
    try:
        facts = os.statvfs(folder)
    except OSError:
        return 0
    return facts.f_frsize * facts.f_blocks


def _spins(config: ServerConfig, num_threads: int) -> int:
    """How often a compute thread looks for work before it sleeps, some 30 ns each. Threads that fill the machine are given
    cores of their own by the engine, and to wake one up takes longer than what Python does between two steps. Others may
    come to lie on one core, where long spinning made a step fifty times slower."""
    placed = num_threads == len(os.sched_getaffinity(0)) and not config.runtime.deterministic
    return 60_000 if placed else 5_000


def serving_environment(
    config: ServerConfig, environ: Mapping[str, str], run_dir: Path, *, shm_bytes: int | None = None
) -> dict[str, str]:
    """For the front and the engine: no secrets, and what libraries read before the first line of ours runs.

    A value the user set stays. `shm_bytes` is the size of /dev/shm, by default this machine's.
    """
    ranks = config.parallel.num_ranks or max(1, _num_gpus() if config.runtime.device != "cpu" else 1)
    threads = config.runtime.num_threads or max(1, available_cores() // ranks)
    child = {
        "OMP_NUM_THREADS": str(threads),
        "GOMP_SPINCOUNT": str(_spins(config, threads * ranks)),
        "THP_MEM_ALLOC_ENABLE": "1",  # torch: weights in huge pages, read end to end at every step
        "TOKENIZERS_PARALLELISM": "false",
        "GLOO_SOCKET_IFNAME": "lo",  # ranks are on one host
        "NCCL_SOCKET_IFNAME": "lo",
        "PYTHONUNBUFFERED": "1",
    }
    if ranks > 1 and (shared_memory_bytes() if shm_bytes is None else shm_bytes) < _SHM_FOR_NCCL_BYTES:
        child["NCCL_SHM_DISABLE"] = (
            "1"  # GPUs that reach each other directly do not need it; others use loopback
        )
    if "PYTORCH_CUDA_ALLOC_CONF" not in environ:
        child["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    child.update(without_secrets(environ))
    child["PROMETHEUS_MULTIPROC_DIR"] = str(run_dir / METRICS_DIR)
    child.pop(
        "GUNICORN_CMD_ARGS", None
    )  # gunicorn would put them above the arguments that it is started with
    return child


def _num_gpus() -> int:
    driver = Path("/proc/driver/nvidia/gpus")
    return len(list(driver.iterdir())) if driver.is_dir() else 0
