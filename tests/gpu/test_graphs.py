"""Captured decode steps and overlapped steps on the GPU: the same tokens as without, and the device is kept busy."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import Tensor

from serving import LLM, RequestOutput, SamplingParams
from serving.kernels.triton.sampler_launch import TritonSampler
from serving.platform import get_device
from serving.platform.cuda_graphs import CudaGraphBackend, padded_sizes
from serving.sampling.sampler import SamplingRow
from serving.worker.device_sampling import DeviceSampling
from tests.promises.prompts import PROMPTS

pytestmark = pytest.mark.gpu

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=48, ignore_eos=True)
SEEDED = SamplingParams(temperature=0.9, top_k=40, seed=3, max_new_tokens=48)
CAPTURE_LIMIT_S = 5.0


def _generate(params: SamplingParams, **options: object) -> list[list[int]]:
    with LLM("demo", device="cuda", dtype="float32", max_batch_total_tokens=32_768, **options) as llm:  # type: ignore[arg-type]
        return [output.token_ids for output in _all(llm, params)]


def _all(llm: LLM, params: SamplingParams) -> list[RequestOutput]:
    return llm.generate(PROMPTS, params, progress=False)


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_captured_and_overlapped_steps_change_nothing(params: SamplingParams) -> None:
    plain = _generate(params, decode_graphs=False, async_scheduling="off")
    assert _generate(params, decode_graphs=True, async_scheduling="off") == plain
    assert _generate(params, decode_graphs=False, async_scheduling="on") == plain
    assert _generate(params, decode_graphs=True, async_scheduling="on") == plain


def test_a_graph_reads_its_inputs_anew() -> None:
    get_device("cuda")
    backend = CudaGraphBackend(8)
    x = torch.arange(6.0, device="cuda").reshape(2, 3)
    weight = torch.full((3, 3), 2.0, device="cuda")
    made = backend.capture(lambda: (x @ weight).relu())
    assert made is not None
    graph, output = made
    assert output.tolist() == (x @ weight).tolist(), "capturing also computes"
    for value in (1.0, 5.0):
        x.fill_(value)
        graph.replay()
        assert output.tolist() == [[6.0 * value] * 3] * 2


def test_what_waits_for_the_host_is_not_captured() -> None:
    get_device("cuda")
    x = torch.ones(4, device="cuda")

    def waits() -> Tensor:
        return x * float(x.sum().item())

    backend = CudaGraphBackend(8)
    assert backend.capture(waits) is None
    assert backend.capture(lambda: x + 1) is not None, "a failed capture leaves the device usable"


def test_graphs_share_the_memory_of_their_results() -> None:
    get_device("cuda")
    backend = CudaGraphBackend(8)
    x = torch.arange(8.0, device="cuda")[:, None].expand(8, 2**23)
    backend.capture(lambda: x * 2.0)
    before_bytes = torch.cuda.memory_reserved()
    made = {rows: backend.capture(lambda rows=rows: x[:rows] * 2.0) for rows in (7, 6, 5, 4)}  # type: ignore[misc]
    assert torch.cuda.memory_reserved() < before_bytes + 2**28, "each has its own"
    for rows, captured in made.items():
        assert captured is not None
        graph, output = captured
        graph.replay()
        assert output[:, -1].tolist() == [2.0 * row for row in range(rows)] and output.shape == (rows, 2**23)


def test_arrays_arrive_in_order() -> None:
    device = get_device("cuda")
    for size in (3, 70_000, 5, 8, 13):
        numbers = np.arange(size)
        narrow = np.full((2, size), size, dtype=np.int32)
        staged = device.stage([numbers, narrow])
        numbers[:], narrow[:] = -1, -1
        assert staged[0].tolist() == list(range(size)) and staged[1].unique().tolist() == [size]


def test_what_is_fetched_is_what_was_there() -> None:
    device = get_device("cuda")
    numbers, shares = torch.arange(5, device="cuda"), torch.rand(70_000, device="cuda")
    wanted = shares.cpu().numpy()
    arrivals = [device.fetch([numbers, shares, shares[:0]]) for _ in range(3)]
    numbers.fill_(-1)
    shares.fill_(-1.0)
    for arrive in arrivals[::-1]:
        got = arrive()
        assert got[0].tolist() == [0, 1, 2, 3, 4] and (got[1] == wanted).all() and got[2].size == 0


def test_the_host_goes_on_before_the_device_has_chosen() -> None:
    """A row for the device costs no wait; a penalised one does, and its tokens are the same in either loop."""
    for params in (GREEDY, SamplingParams(temperature=0.0, repetition_penalty=1.2, max_new_tokens=24)):
        tokens = [_generate(params, async_scheduling=mode) for mode in ("off", "on")]
        assert tokens[0] == tokens[1]
    device = get_device("cuda")
    sampler = TritonSampler(8, 1000, device.torch_device)
    sampling = DeviceSampling(sampler, device)
    logits = torch.randn(8, 1000, device="cuda")
    sampling.warm_up(logits)
    rows = [SamplingRow(row, GREEDY, seed=0, token_ids=[1], num_prompt_tokens=1) for row in range(8)]
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second
    started_s = time.perf_counter()
    chosen = sampling.launch(logits, rows)
    assert time.perf_counter() - started_s < 0.5
    assert chosen is not None
    assert [token.token_id for token in chosen.read()] == logits.argmax(-1).tolist()


def test_captures_are_made_in_time() -> None:
    started_s = time.perf_counter()
    with LLM("demo", device="cuda", dtype="bfloat16", max_num_seqs=512) as llm:
        runner = llm._core._executor._worker._runner  # type: ignore[attr-defined]
        assert runner._graphs.num_captured == len(padded_sizes(512))
    assert time.perf_counter() - started_s < CAPTURE_LIMIT_S + 60.0
