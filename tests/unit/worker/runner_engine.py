"""An engine core over one `ModelRunner`, on a device and with captures of the test's choosing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from serving.batch import ScheduledBatch, StepResult
from serving.config import EngineConfig, KVGroupConfig
from serving.contracts import GraphBackend, StepGraph
from serving.distributed import ParallelContext
from serving.engine.core import EngineCore
from serving.grammar.admission import GrammarAdmission
from serving.grammar.store import GrammarStore
from serving.kernels.dispatch import Kernels, select_kernels
from serving.messages import AddRequest
from serving.models.registry import load_model
from serving.platform.cpu import CpuDevice
from serving.sampling_params import SamplingParams
from serving.worker.launched_step import LaunchedStep
from serving.worker.model_runner import ModelRunner

BLOCK_SIZE = 4
MAX_TOKENS = 96


class ApartDevice(CpuDevice):
    """Computes on the CPU, but shares no memory with the host: what is not brought over is not there."""

    is_host = False

    def mirror(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array.copy())

    def stage(self, arrays: list[npt.NDArray[Any]]) -> list[Tensor]:  # type: ignore[override]
        return [torch.from_numpy(np.array(array, order="C")) for array in arrays]


@dataclass
class RunAgain:
    """A capture that computes everything anew, from the tensors that it was given when it was made."""

    run: Callable[[], Tensor]
    output: Tensor
    num_replays: int = 0

    def replay(self) -> None:
        self.num_replays += 1
        self.output.copy_(self.run())


@dataclass
class RunAgainBackend:
    """Captures sizes of `step` rows and its multiples up to `largest`; refuses those in `refused`."""

    step: int = 1
    largest: int = 64
    refused: tuple[int, ...] = ()
    captured: list[int] = field(default_factory=list)
    graphs: list[RunAgain] = field(default_factory=list)

    def padded_rows(self, num_rows: int) -> int | None:
        size = -(-num_rows // self.step) * self.step
        return size if size <= self.largest else None

    def capture(self, run: Callable[[], Tensor]) -> tuple[StepGraph, Tensor] | None:
        output = run().clone()
        if len(output) in self.refused:
            return None
        self.captured.append(len(output))
        self.graphs.append(RunAgain(run, output))
        return self.graphs[-1], output


class RunnerExecutor:
    """The verbs of an executor that a running core uses. Its steps take no time, so that plans, and with them the last bits
    of a result, do not depend on how fast this machine is."""

    eos_token_ids = ()

    def __init__(self, runner: ModelRunner, vocab_size: int) -> None:
        self.runner = runner
        self.vocab_size = vocab_size

    def launch(self, batch: ScheduledBatch) -> LaunchedStep:
        return self.runner.launch(batch)

    def collect(self, step: LaunchedStep) -> StepResult:
        result = self.runner.collect(step)
        assert result is not None
        result.forward_s = 0.0
        return result

    def close(self) -> None:
        self.runner.close()


def make_core(
    folder: Path,
    *,
    graphs: GraphBackend | None = None,
    device: CpuDevice | None = None,
    kernels: Kernels | None = None,
    num_blocks: int = 400,
    max_num_seqs: int = 8,
    ahead: bool = False,
    **changes: object,
) -> EngineCore:
    """`ahead`: capture before the first step."""
    device = device or CpuDevice()
    config = EngineConfig(
        model_dir=str(folder), model_id="m", revision=None, device="cpu", dtype="float32", num_ranks=1, num_threads=1,
        block_size=BLOCK_SIZE, max_batch_total_tokens=None, memory_fraction=0.9, max_num_seqs=max_num_seqs,
        max_queue_tokens=None, max_concurrent_requests=100, max_best_of=4, max_input_tokens=None,
        max_total_tokens=MAX_TOKENS, deterministic=False,
        **{"prefix_caching": True, "max_step_tokens": 16, "step_time_budget_s": 10.0} | changes,
    )  # fmt: skip
    torch.set_num_threads(1)
    model = load_model(
        folder, dtype=torch.float32, device=device, parallel=ParallelContext.single(), deterministic=False,
        kv_cache_dtype=torch.float8_e4m3fn if config.kv_cache_dtype == "fp8_e4m3" else None,
    )  # fmt: skip
    runner = ModelRunner(
        model,
        device=device,
        parallel=ParallelContext.single(),
        block_size=BLOCK_SIZE,
        max_num_seqs=max_num_seqs,
        max_blocks=MAX_TOKENS // BLOCK_SIZE,
        kernels=kernels or select_kernels(device.torch_device, deterministic=False),
        graphs=graphs,
        overlapped=config.async_scheduling,
    )
    runner.initialize_cache([num_blocks] * len(model.kv_groups))
    if not device.is_host:
        runner.warm_up_cache()
    if ahead:
        runner.capture_graphs(60.0)
    return EngineCore(
        config,
        RunnerExecutor(runner, model.vocab_size),  # type: ignore[arg-type]
        groups=[KVGroupConfig(name=group.name, window=group.window) for group in model.kv_groups],
        num_blocks=[num_blocks] * len(model.kv_groups),
        warm_up_s=0.1,
        grammars=GrammarAdmission(None, GrammarStore(10**6), timeout_s=1.0),
    )


Generated = dict[tuple[str, int], tuple[list[int], list[float]]]


def generate(core: EngineCore, requests: dict[str, tuple[list[int], SamplingParams]]) -> Generated:
    """Token ids and log-probabilities of every sequence. Half of the requests come while the others run."""
    waiting = [
        AddRequest(request_id=f"front-{name}", prompt_token_ids=prompt, params=params)
        for name, (prompt, params) in requests.items()
    ]
    generated: Generated = {}
    for message in waiting[::2]:
        core.add_request(message, wait=True)
    late = waiting[1::2]
    while core.has_work() or late:
        if late:
            core.add_request(late.pop(), wait=True)
        for output in core.step():
            ids, logprobs = generated.setdefault((output.request_id, output.index), ([], []))
            ids += output.token_ids
            logprobs += output.logprobs
    core.check()
    return generated
