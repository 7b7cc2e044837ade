"""Tokens chosen on the device are those that the host chooses, and nobody waits for them before the next step runs."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from serving.contracts import DeviceSamples, SamplerSteps
from serving.sampling.sampler import Sampler, SamplingRow
from serving.sampling.token_mask import TokenMasks
from serving.sampling_params import Grammar, SamplingParams
from serving.worker.device_sampling import DeviceSampling, compiling_ahead
from tests.models.checkpoints import VOCAB_SIZE, write_checkpoint
from tests.unit.worker.runner_engine import ApartDevice, Generated, RunAgainBackend, generate, make_core
from tests.unit.worker.table_sampler import TableSampler, kernels_with

COVERED: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 0.9, "seed": 2**64 - 9, "n": 2, "top_k": 20},
    {"temperature": 0.8, "seed": 6, "top_p": 0.9, "raw_logprobs": True},
    {"temperature": 0.0, "top_n_tokens": 3, "prompt_logprobs": True},
    {"temperature": 1.0, "seed": 8, "min_new_tokens": 4, "stop_token_ids": (7, 8, 9)},
]
FOR_THE_HOST: list[dict[str, Any]] = [
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 1.0, "seed": 1, "typical_p": 0.8},
    {"temperature": 1.0, "seed": 2, "logit_bias": ((7, 2.0),)},
]


class LateDevice(ApartDevice):
    """Tells when somebody waits for what was computed."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def fetch(self, tensors: Sequence[Tensor]) -> Callable[[], list[npt.NDArray[Any]]]:
        self.events.append("launched")
        arrive = super().fetch(tensors)

        def wait() -> list[npt.NDArray[Any]]:
            self.events.append("read")
            return arrive()

        return wait


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama3")
    write_checkpoint("llama3", path)
    return path


def _requests(ways: list[dict[str, Any]]) -> dict[str, tuple[list[int], SamplingParams]]:
    rng = random.Random(11)
    requests = {}
    for index, length in enumerate([1, 20, 3, 33, 7, 2, 15]):
        params = SamplingParams(**{"max_new_tokens": 6 + 5 * (index % 3)} | ways[index % len(ways)])
        requests[str(index)] = ([rng.randrange(VOCAB_SIZE) for _ in range(length)], params)
    return requests


def _assert_same(got: Generated, wanted: Generated) -> None:
    assert got.keys() == wanted.keys()
    for key, (ids, logprobs) in wanted.items():
        assert got[key][0] == ids, key
        assert got[key][1] == pytest.approx(logprobs, abs=1e-5), key


@pytest.mark.parametrize("captured", [False, True], ids=["plain", "captured"])
@pytest.mark.parametrize("num_blocks", [400, 30])
def test_overlapped_steps_that_choose_on_the_device(folder: Path, captured: bool, num_blocks: int) -> None:
    requests = _requests(COVERED)
    wanted = generate(make_core(folder), requests)
    device, sampler = LateDevice(), TableSampler(8, VOCAB_SIZE, torch.device("cpu"))
    graphs = RunAgainBackend(step=4) if captured else None
    core = make_core(
        folder, graphs=graphs, device=device, kernels=kernels_with(sampler), async_scheduling=True, num_blocks=num_blocks
    )  # fmt: skip
    _assert_same(generate(core, requests), wanted)
    events = device.events
    num_steps = sampler.num_launches
    assert len(events) == 2 * num_steps
    early = [n for n in range(1, num_steps) if _place(events, "read", n - 1) < _place(events, "launched", n)]
    # Only where nothing could be planned before the last step was known, as when blocks run out.
    assert len(early) <= (1 if num_blocks == 400 else num_steps // 2)


def _place(events: list[str], kind: str, number: int) -> int:
    """Where the event `number` of its kind is."""
    return [index for index, event in enumerate(events) if event == kind][number]


def test_steps_one_by_one_choose_on_the_device_too(folder: Path) -> None:
    requests = _requests(COVERED)
    sampler = TableSampler(8, VOCAB_SIZE, torch.device("cpu"))
    core = make_core(folder, device=LateDevice(), kernels=kernels_with(sampler))
    _assert_same(generate(core, requests), generate(make_core(folder), requests))
    assert sampler.num_launches > 10


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_row_for_the_host_takes_its_step_there(folder: Path, asynchronous: bool) -> None:
    short = [way | {"max_new_tokens": 3 + index} for index, way in enumerate(FOR_THE_HOST)]
    requests = _requests(COVERED[:2] + short)
    sampler = TableSampler(8, VOCAB_SIZE, torch.device("cpu"))
    core = make_core(
        folder, device=LateDevice(), kernels=kernels_with(sampler), async_scheduling=asynchronous
    )
    _assert_same(generate(core, requests), generate(make_core(folder), requests))
    assert 0 < sampler.num_launches < core.stats().num_steps


def _rows(ways: list[dict[str, Any]]) -> list[SamplingRow]:
    return [
        SamplingRow(2 * index, SamplingParams(**{"seed": None} | way), seed=index, token_ids=[1] * 5, num_prompt_tokens=3)
        for index, way in enumerate(ways)
    ]  # fmt: skip


def test_rows_come_and_go_and_have_masks() -> None:
    sampling = DeviceSampling(TableSampler(16, VOCAB_SIZE, torch.device("cpu")), LateDevice())
    grammar = {"temperature": 0.7, "grammar": Grammar(kind="regex", source="a"), "top_n_tokens": 2}
    rows = _rows(
        [{"temperature": 1.0}, grammar, {"temperature": 0.0}, {"temperature": 0.5, "top_k": 3}, grammar]
    )
    bits = torch.randint(-(2**31), 2**31, (2, 7), dtype=torch.int32)
    for chosen_rows in (rows, rows[1:], [rows[4], rows[0]], [rows[3]], rows[::-1]):
        masked = [index for index, row in enumerate(chosen_rows) if row.params.grammar is not None]
        masks = TokenMasks(masked, bits[: len(masked)]) if masked else None
        logits = torch.randn(len(chosen_rows), VOCAB_SIZE) * 3
        launched = sampling.launch(logits, chosen_rows, masks)
        assert launched is not None
        wanted = Sampler().sample(logits.clone(), chosen_rows, masks)
        got = launched.read()
        for token, other in zip(got, wanted, strict=True):
            assert (token.row, token.token_id, token.top_ids) == (other.row, other.token_id, other.top_ids)
            assert token.logprob == pytest.approx(other.logprob, abs=1e-5)
        for row in chosen_rows:
            row.token_ids.append(1)


def test_what_may_not_come_yet_is_masked() -> None:
    """Alone, beside others, and where a grammar permits nothing but the end."""
    eos = (3, 40, VOCAB_SIZE - 1)
    sampler = TableSampler(16, VOCAB_SIZE, torch.device("cpu"))
    sampling = DeviceSampling(sampler, LateDevice(), eos)
    grammar = Grammar(kind="regex", source="a")
    rows = _rows([
        {"temperature": 0.0, "min_new_tokens": 4, "raw_logprobs": True},
        {"temperature": 1.0},
        {"temperature": 1.0, "min_new_tokens": 3, "stop_token_ids": (60, 61)},
        {"temperature": 1.0, "min_new_tokens": 4},
        {"temperature": 0.7, "grammar": grammar, "ignore_eos": True, "top_n_tokens": 3},
        {"temperature": 0.7, "grammar": grammar, "min_new_tokens": 9},
    ])  # fmt: skip
    bits = torch.full((2, 5), -1, dtype=torch.int32)
    bits[1] = 0
    bits[1, 0] = 1 << 3
    for _ in range(4):
        logits = torch.randn(len(rows), VOCAB_SIZE)
        logits[:, list(eos)] += 6.0
        masks = TokenMasks([4, 5], bits)
        launched = sampling.launch(logits, rows, masks)
        assert launched is not None
        wanted = Sampler(eos).sample(logits.clone(), rows, masks)
        for token, other in zip(launched.read(), wanted, strict=True):
            assert (token.token_id, token.top_ids) == (other.token_id, other.top_ids)
            assert token.logprob == pytest.approx(other.logprob, abs=1e-5)
        assert wanted[5].token_id == 3 and wanted[4].token_id not in eos
        for row in rows:
            row.token_ids.append(1)
    assert wanted[0].token_id in eos, "by now it may end"


def test_what_the_host_has_to_choose_is_left_to_it() -> None:
    class Unasked:
        max_rows, vocab_size = 8, VOCAB_SIZE

        def launch(
            self, logits: Tensor, params: Tensor, steps: SamplerSteps, *, bits: Tensor | None = None
        ) -> DeviceSamples:
            raise AssertionError("a row is not for the device")

    sampling = DeviceSampling(Unasked(), LateDevice())
    for way in [*FOR_THE_HOST, {"temperature": 0.0, "top_n_tokens": 65}]:
        rows = _rows([{"temperature": 0.0}, way])
        assert sampling.launch(torch.zeros(2, VOCAB_SIZE), rows) is None


class NotingSampler(TableSampler):
    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        super().__init__(max_rows, vocab_size, device)
        self.kinds: list[SamplerSteps] = []
        self.threads: set[int] = set()

    def launch(
        self, logits: Tensor, params: Tensor, steps: SamplerSteps, *, bits: Tensor | None = None
    ) -> DeviceSamples:
        self.kinds.append(steps)
        self.threads.add(threading.get_ident())
        return super().launch(logits, params, steps, bits=bits)


def _assert_every_kind(sampler: NotingSampler) -> None:
    kinds = {(steps.draws, steps.likeliest) for steps in sampler.kinds}
    assert kinds == {(False, False), (False, True), (True, False), (True, True)}
    assert all(steps.top_k and steps.top_p for steps in sampler.kinds if steps.draws)


def test_warm_up_runs_every_kind() -> None:
    sampler = NotingSampler(4, VOCAB_SIZE, torch.device("cpu"))
    DeviceSampling(sampler, LateDevice()).warm_up(torch.randn(4, VOCAB_SIZE))
    _assert_every_kind(sampler)


def test_every_kind_is_compiled_beside_the_loading() -> None:
    made: list[NotingSampler] = []

    def make(max_rows: int, vocab_size: int, device: torch.device) -> NotingSampler:
        made.append(NotingSampler(max_rows, vocab_size, device))
        return made[-1]

    with compiling_ahead(make, vocab_size=VOCAB_SIZE, device=LateDevice()):
        pass
    _assert_every_kind(made[0])
    assert threading.get_ident() not in made[0].threads
    with compiling_ahead(None, vocab_size=VOCAB_SIZE, device=LateDevice()):
        assert len(made) == 1
