"""What a decode step costs in Python: planning, packing the inputs and taking in the results, without model and sampler.

`python -m benchmarks.step_cost` runs the engine core over a worker that keeps its rows as the real one does and makes up the
tokens. Prints microseconds per step, the median of the steps, by number of running sequences.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import torch

from serving.batch import SampledToken, ScheduledBatch, StepResult
from serving.config import EngineConfig, KVGroupConfig
from serving.engine.core import EngineCore
from serving.grammar.admission import GrammarAdmission
from serving.grammar.store import GrammarStore
from serving.messages import AddRequest
from serving.platform import get_device
from serving.sampling_params import SamplingParams
from serving.worker.input_batch import InputBatch

PROMPT_TOKENS = 128
BLOCK_SIZE = 16
CONTEXT = 8192
WARM_UP_STEPS = 20


class StubExecutor:
    """The verbs of an executor that a running core uses; packs inputs, computes nothing."""

    vocab_size = 32_000
    eos_token_ids = (0,)

    def __init__(self, max_num_seqs: int) -> None:
        self._inputs = InputBatch(
            max_num_seqs,
            ["full"],
            block_size=BLOCK_SIZE,
            max_blocks=CONTEXT // BLOCK_SIZE,
            device=get_device("cpu"),
        )
        self.packing_s = 0.0

    def launch(self, batch: ScheduledBatch) -> ScheduledBatch:
        return batch

    def collect(self, batch: ScheduledBatch) -> StepResult:
        started_s = time.perf_counter()
        self._inputs.apply(batch)
        inputs = self._inputs.pack(batch)
        self._inputs.append(inputs.sampling, [7] * len(inputs.sampling))
        self.packing_s = time.perf_counter() - started_s
        sampled = [SampledToken(row=row, token_id=7, logprob=-1.0) for row in inputs.sampling]
        return StepResult(step=batch.step, sampled=sampled)

    def close(self) -> None:
        """It holds nothing."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="step_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for num_rows in options.rows:
        whole_us, packing_us = measure(num_rows, options.steps)
        print(f"{num_rows:4d} rows: {whole_us:7.1f} us a step, packing {packing_us:6.1f} us of it")
    return 0


def measure(num_rows: int, num_steps: int) -> tuple[float, float]:
    """Median microseconds of a step, and of its packing."""
    executor = StubExecutor(num_rows)
    core = _core(executor, num_rows)
    for index in range(num_rows):
        prompt = [10 + index] * PROMPT_TOKENS
        params = SamplingParams(temperature=0.0, max_new_tokens=num_steps + WARM_UP_STEPS + 50)
        core.add_request(
            AddRequest(request_id=f"front-{index}", prompt_token_ids=prompt, params=params), wait=True
        )
    whole_s: list[float] = []
    packing_s: list[float] = []
    for _ in range(WARM_UP_STEPS + num_steps):
        started_s = time.perf_counter()
        core.step()
        whole_s.append(time.perf_counter() - started_s)
        packing_s.append(executor.packing_s)
    return tuple(1e6 * statistics.median(times[WARM_UP_STEPS:]) for times in (whole_s, packing_s))  # type: ignore[return-value]


def _core(executor: StubExecutor, num_rows: int) -> EngineCore:
    config = EngineConfig(
        model_dir="", model_id="stub", revision=None, device="cpu", dtype="float32", num_ranks=1, num_threads=1,
        block_size=BLOCK_SIZE, max_batch_total_tokens=None, memory_fraction=0.9, prefix_caching=True,
        max_step_tokens=512, step_time_budget_s=0.25, max_num_seqs=num_rows, max_queue_tokens=None,
        max_concurrent_requests=2 * num_rows, max_best_of=1, max_input_tokens=None, max_total_tokens=CONTEXT,
        deterministic=False,
    )  # fmt: skip
    return EngineCore(
        config,
        executor,  # type: ignore[arg-type]
        groups=[KVGroupConfig(name="full")],
        num_blocks=[1 + num_rows * 100],
        warm_up_s=0.1,
        grammars=GrammarAdmission(None, GrammarStore(10**6), timeout_s=config.grammar_timeout_s),
    )


if __name__ == "__main__":
    sys.exit(main())
