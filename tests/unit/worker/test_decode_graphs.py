"""Steps that were captured give what the same steps give without, whatever the rows, tables and windows did in between."""

from __future__ import annotations

import gc
import random
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from serving.engine.core import EngineCore
from serving.platform.cpu import CpuDevice
from serving.platform.cuda_graphs import padded_sizes
from serving.platform.pinned import fill, layout, views
from serving.sampling.sampler import SamplingRow
from serving.sampling_params import SamplingParams
from serving.worker.decode_inputs import DecodeInputs
from tests.models.checkpoints import VOCAB_SIZE, write_checkpoint
from tests.unit.worker.runner_engine import ApartDevice, Generated, RunAgainBackend, generate, make_core

MODELS = ("llama3", "mistral", "qwen2_mixed")


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    write_checkpoint(request.param, path)
    return path


@pytest.fixture(scope="module")
def expected(folder: Path) -> Generated:
    return generate(make_core(folder), _requests())


def _requests() -> dict[str, tuple[list[int], SamplingParams]]:
    """Prompts of one token and of several chunks, shared beginnings, groups, penalties, greedy and not."""
    rng = random.Random(3)
    shared = [rng.randrange(VOCAB_SIZE) for _ in range(20)]
    ways = [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 5},
        {"temperature": 0.0, "repetition_penalty": 1.3},
        {"temperature": 0.9, "seed": 6, "n": 2, "top_k": 20},
        {"temperature": 0.0, "top_n_tokens": 3, "prompt_logprobs": True},
    ]
    requests = {}
    for index, length in enumerate([1, 3, 40, 7, 30, 2, 18, 24, 1, 9]):
        prompt = (shared if index % 3 == 0 else []) + [rng.randrange(VOCAB_SIZE) for _ in range(length)]
        params = SamplingParams(max_new_tokens=8 + 7 * (index % 4), **ways[index % len(ways)])
        requests[str(index)] = (prompt, params)
    return requests


def _assert_same(got: Generated, wanted: Generated) -> None:
    assert got.keys() == wanted.keys()
    for key, (ids, logprobs) in wanted.items():
        assert got[key][0] == ids, key
        assert got[key][1] == pytest.approx(logprobs, abs=1e-5), key


def test_replays_equal_the_same_steps_bit_for_bit(folder: Path, expected: Generated) -> None:
    backend = RunAgainBackend()
    assert generate(make_core(folder, graphs=backend), _requests()) == expected
    assert sum(graph.num_replays for graph in backend.graphs) > 8
    assert len(set(backend.captured)) == len(backend.captured), "each size once"


@pytest.mark.parametrize("step", [4, 5, 16])
def test_padding_changes_nothing(folder: Path, expected: Generated, step: int) -> None:
    backend = RunAgainBackend(step=step)
    _assert_same(generate(make_core(folder, graphs=backend), _requests()), expected)
    assert set(backend.captured) <= {4, 5, 8} and backend.graphs[-1].num_replays


@pytest.mark.parametrize("ahead", [False, True])
def test_a_device_with_memory_of_its_own(folder: Path, expected: Generated, ahead: bool) -> None:
    backend = RunAgainBackend(step=4)
    core = make_core(folder, graphs=backend, device=ApartDevice(), ahead=ahead)
    if ahead:
        assert backend.captured == [8, 4], "the largest first"
    _assert_same(generate(core, _requests()), expected)
    assert backend.captured in ([8, 4], [4, 8])


@pytest.mark.parametrize("num_blocks", [400, 30])
@pytest.mark.parametrize("device", [CpuDevice(), ApartDevice()], ids=["host", "apart"])
def test_steps_that_overlap(folder: Path, expected: Generated, device: CpuDevice, num_blocks: int) -> None:
    """Apart from the host, ids are read a step later: the next step takes them from where they were sampled."""
    backend = RunAgainBackend(step=4)
    core = make_core(folder, graphs=backend, device=device, async_scheduling=True, num_blocks=num_blocks)
    _assert_same(generate(core, _requests()), expected)
    assert backend.graphs and (core.stats().num_preemptions > 0) == (num_blocks == 30)


def test_overlapped_steps_without_captures(folder: Path, expected: Generated) -> None:
    core = make_core(folder, device=ApartDevice(), async_scheduling=True)
    _assert_same(generate(core, _requests()), expected)


def test_preemption_and_blocks_that_change_hands(folder: Path, expected: Generated) -> None:
    for device in (CpuDevice(), ApartDevice()):
        core = make_core(folder, graphs=RunAgainBackend(step=4), device=device, num_blocks=30)
        _assert_same(generate(core, _requests()), expected)
        assert core.stats().num_preemptions > 0


def test_a_size_that_cannot_be_captured_runs_without(folder: Path, expected: Generated) -> None:
    backend = RunAgainBackend(step=4, refused=(8,))
    _assert_same(generate(make_core(folder, graphs=backend), _requests()), expected)
    assert set(backend.captured) == {4}


def test_more_rows_than_are_captured_run_without(folder: Path, expected: Generated) -> None:
    backend = RunAgainBackend(largest=4)
    _assert_same(generate(make_core(folder, graphs=backend), _requests()), expected)
    assert backend.captured and set(backend.captured) <= {1, 2, 3, 4}


def test_a_size_is_captured_when_it_comes_again(folder: Path) -> None:
    backend = RunAgainBackend()
    core = make_core(folder, graphs=backend)
    _run_alone(core, "a", 3)
    assert backend.captured == [1] and backend.graphs[0].num_replays == 0
    _run_alone(core, "b", 4)
    assert backend.captured == [1] and backend.graphs[0].num_replays == 3


def _run_alone(core: EngineCore, name: str, num_tokens: int) -> None:
    generate(core, {name: ([5, 6, 7], SamplingParams(temperature=0.0, max_new_tokens=num_tokens))})


def test_what_lies_behind_the_rows_is_padding() -> None:
    for device in (CpuDevice(), ApartDevice()):
        inputs = DecodeInputs(6, ["full", "window"], block_size=4, max_blocks=5, device=device)
        for num_rows in (5, 2, 4, 0, 6, 1):
            for group in range(2):
                inputs.replace_tables(group, np.full((num_rows, 3), 9, dtype=np.int32))
            places = inputs.places(num_rows)
            for array in (places.token_ids, places.positions, places.seq_lens, *places.slots):
                array[:] = 7
            if num_rows > 1:
                inputs.extend_table(1, 1, 3, [8])
            inputs.upload()
            packed = inputs.packed(6)
            assert (
                packed.token_ids.tolist()
                == packed.positions.tolist()
                == [7] * num_rows + [0] * (6 - num_rows)
            )
            for name, metadata in packed.attention.items():
                assert metadata.seq_lens.tolist() == [7] * num_rows + [1] * (6 - num_rows)
                assert metadata.slot_mapping.tolist() == packed.positions.tolist()
                assert metadata.block_tables[:, 0].tolist() == [9] * num_rows + [0] * (6 - num_rows)
                assert metadata.block_tables.shape == (6, 5)
                assert num_rows < 2 or metadata.block_tables[1, 3] == (8 if name == "window" else 0)


def test_inputs_begin_where_kernels_like_it() -> None:
    for max_rows in (1, 3, 8):
        packed = DecodeInputs(max_rows, ["full"], block_size=4, max_blocks=5, device=ApartDevice()).packed(
            max_rows
        )
        metadata = packed.attention["full"]
        assert packed.sources is not None
        inputs = (packed.positions, packed.sources, metadata.slot_mapping, metadata.seq_lens)
        assert [(t.data_ptr() - packed.token_ids.data_ptr()) % 16 for t in inputs] == [0, 0, 0, 0]
        assert [len(t) for t in inputs] == [max_rows] * 4


@pytest.mark.parametrize("max_rows", [1, 2, 3, 7, 8, 9, 100, 256, 512])
def test_padded_sizes_waste_little(max_rows: int) -> None:
    sizes = padded_sizes(max_rows)
    assert sizes == sorted(set(sizes)) and sizes[-1] == max_rows and sizes[0] == 1
    wasted = [next(size for size in sizes if size >= rows) / rows - 1 for rows in range(64, max_rows + 1)]
    assert all(share < 0.125 for share in wasted) and len(sizes) <= 32
    assert sum(wasted) <= 0.12 * len(wasted)


def test_arrays_share_one_piece_of_memory() -> None:
    arrays = [
        np.arange(3),
        np.arange(12, dtype=np.int32).reshape(3, 4)[:, :2],
        np.zeros((0, 2), dtype=np.int32),
        np.arange(5, dtype=np.int64),
    ]
    starts, num_bytes = layout(arrays)
    buffer = np.full(num_bytes, 255, dtype=np.uint8)
    fill(buffer, arrays, starts)
    for array, tensor in zip(arrays, views(CpuDevice().mirror(buffer), arrays, starts), strict=True):
        assert tensor.tolist() == array.tolist() and tensor.numpy().dtype == array.dtype


def test_a_closed_runner_frees_its_cache_at_once(tmp_path: Path) -> None:
    """Captures refer to the runner, and it to them: the next engine must not wait for Python to find that out."""
    write_checkpoint("llama3", tmp_path)
    backend = RunAgainBackend()
    core = make_core(tmp_path, device=ApartDevice(), graphs=backend, ahead=True)
    backend.graphs.clear()
    runner = core._executor.runner
    assert runner._graphs is not None and runner._graphs.num_captured > 0
    held = [weakref.ref(runner), weakref.ref(runner._caches[0].key), weakref.ref(runner._model)]
    gc.collect()
    gc.disable()
    try:
        core.close()
        del runner
        core._executor.runner = None
        assert [reference() for reference in held] == [None, None, None]
    finally:
        gc.enable()


class MeasuringDevice(ApartDevice):
    def peak_bytes(self) -> int:
        return 1


def test_choosing_in_every_way_is_no_part_of_a_steps_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What plans are made from is the time of a prompt, not that of rows with every filter."""
    write_checkpoint("llama3", tmp_path)
    runner = make_core(tmp_path, device=MeasuringDevice())._executor.runner
    chosen: list[int] = []

    def choose(logits: torch.Tensor, rows: list[SamplingRow]) -> None:
        chosen.append(len(rows))
        time.sleep(2.0)

    monkeypatch.setattr(runner._sampler, "sample", choose)
    assert runner.warm_up(16) < 2.0
    assert chosen == [8]
