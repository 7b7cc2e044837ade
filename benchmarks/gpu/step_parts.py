"""What the small parts of a decode step cost on this GPU: `python -m benchmarks.gpu.step_parts RECORD`.

Rotation and KV write in one kernel beside two, norms, gate, and the choice of tokens: microseconds of the device, from
captured graphs, and of the host. The first launches, which compile, are recorded in seconds.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.measures import Record
from serving.kernels.triton import kv_write, pointwise
from serving.kernels.triton.sampler_launch import TritonSampler
from serving.platform import get_device
from serving.sampling.sampler import SamplingRow
from serving.sampling_params import SamplingParams
from serving.worker.device_sampling import DeviceSampling

ROWS = (1, 32, 256)
HEADS = {"llama-3.1-8b": (32, 8, 128, 4096, 14336), "qwen3-0.6b": (16, 8, 128, 1024, 3072)}
"""Query heads, KV heads, head size, hidden size, inner size."""
VOCABULARIES = (128_256, 151_936)
CHOICES = {
    "greedy": SamplingParams(temperature=0.0),
    "drawn": SamplingParams(temperature=0.8),
    "filtered": SamplingParams(temperature=0.8, top_k=50, top_p=0.95),
    "logprobs": SamplingParams(temperature=0.8, top_p=0.95, top_n_tokens=5, raw_logprobs=True),
}
BLOCK_SIZE, NUM_BLOCKS, REPEATS = 16, 4096, 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("record", type=Path, help="JSON file for the results")
    record = Record(parser.parse_args().record)
    device = get_device("cuda")
    for (model, heads), rows in itertools.product(HEADS.items(), ROWS):
        for name, run in _pointwise(heads, rows).items():
            record.add(f"{model}.{rows}.{name}.us", 1e6 * _device_s(run))
    for vocab_size in VOCABULARIES:
        sampling = DeviceSampling(TritonSampler(max(ROWS), vocab_size, device.torch_device), device)
        started_s = time.perf_counter()
        sampling.warm_up(torch.randn(max(ROWS), vocab_size, device="cuda"))
        record.add(f"choice.{vocab_size}.compiled_s", time.perf_counter() - started_s)
        for (name, params), rows in itertools.product(CHOICES.items(), ROWS):
            host_s, whole_s = _choice_s(sampling, torch.randn(rows, vocab_size, device="cuda"), params)
            record.add(f"choice.{vocab_size}.{rows}.{name}.host_us", 1e6 * host_s)
            record.add(f"choice.{vocab_size}.{rows}.{name}.us", 1e6 * whole_s)


def _pointwise(heads: tuple[int, ...], rows: int) -> dict[str, Callable[[], object]]:
    num_heads, num_kv_heads, head_dim, hidden_size, inner_size = heads

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    qkv = draw(rows, num_heads + 2 * num_kv_heads, head_dim)
    query_key, value = qkv[:, : num_heads + num_kv_heads], qkv[:, num_heads + num_kv_heads :]
    caches = [draw(NUM_BLOCKS, BLOCK_SIZE, num_kv_heads, head_dim) for _ in range(2)]
    table, positions = draw(8192, head_dim), torch.randint(8192, (rows,), device="cuda")
    slots = torch.randperm(NUM_BLOCKS * BLOCK_SIZE, device="cuda")[:rows]
    x, residual, weight = draw(rows, hidden_size), draw(rows, hidden_size), draw(hidden_size)
    gate_up = draw(rows, 2 * inner_size)

    def apart() -> None:
        rotated = pointwise.rotary(query_key, table, positions)
        kv_write.reshape_and_cache(rotated[:, num_heads:], value, caches[0], caches[1], slots)

    return {
        "rotary_and_write": lambda: kv_write.rotate_and_cache(
            query_key, value, table, positions, caches[0], caches[1], slots
        ),
        "rotary_then_write": apart,
        "add_norm": lambda: pointwise.add_rms_norm(x, residual, weight, 1e-5),
        "gate": lambda: pointwise.silu_mul(gate_up),
    }


def _device_s(run: Callable[[], Any]) -> float:
    """Per call, without the host."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            run()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    start.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / REPEATS


def _choice_s(sampling: DeviceSampling, logits: torch.Tensor, params: SamplingParams) -> tuple[float, float]:
    """Per step: until the host may go on, and until it has the tokens. The least of all."""
    rows = [
        SamplingRow(row, params, seed=row, token_ids=[0] * 9, num_prompt_tokens=3)
        for row in range(len(logits))
    ]
    hosts_s, wholes_s = [], []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        started_s = time.perf_counter()
        chosen = sampling.launch(logits, rows)
        hosts_s.append(time.perf_counter() - started_s)
        if chosen is None:
            raise RuntimeError(f"the device's sampler does not cover {params}")
        chosen.read()
        wholes_s.append(time.perf_counter() - started_s)
    return min(hosts_s), min(wholes_s)


if __name__ == "__main__":
    main()
