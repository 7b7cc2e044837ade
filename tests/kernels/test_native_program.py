"""Recorded programs: a replay computes what a run computes, and what cannot be replayed is refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from serving.contracts import AttentionMetadata, ForwardContext, KVLayerCache
from serving.distributed import ParallelContext
from serving.kernels.cpu.native import library
from serving.kernels.cpu.native import program as program_module
from serving.kernels.cpu.native.operations import NativeKernels
from serving.kernels.cpu.native.program import NativeGraphs
from serving.models.registry import load_model
from serving.platform.cpu import CpuDevice
from tests.models.checkpoints import VOCAB_SIZE, write_checkpoint

BLOCK_SIZE, NUM_BLOCKS, MAX_POSITIONS = 4, 40, 256


@pytest.fixture
def kernels() -> NativeKernels:
    loaded = library.load()
    assert loaded is not None
    return NativeKernels(loaded)


@pytest.fixture
def graphs() -> NativeGraphs:
    loaded = library.load()
    assert loaded is not None
    return NativeGraphs(loaded)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@dataclass
class DecodeStep:
    """One step of a model over inputs that stay where they are."""

    run: Callable[[], Tensor]
    change: Callable[[], None]
    caches: list[KVLayerCache]
    slots: Tensor


def decode_step(folder: Path, rows: int, *, width: int = 12) -> DecodeStep:
    """`width`: blocks of the longest context."""
    model = load_model(
        folder, device=CpuDevice(), dtype=torch.float32, parallel=ParallelContext(rank=0, size=1),
        deterministic=False,
    )  # fmt: skip

    lengths = torch.zeros(rows, dtype=torch.int32)
    ids, positions, slots = (torch.zeros(rows, dtype=torch.int64) for _ in range(3))
    tables = torch.zeros(rows, width, dtype=torch.int32)
    groups = model.kv_groups
    shape = (NUM_BLOCKS, BLOCK_SIZE, groups[0].num_kv_heads, groups[0].head_dim)
    caches = [KVLayerCache(torch.randn(shape), torch.randn(shape)) for _ in model.layer_groups]

    def change() -> None:
        ids.random_(0, VOCAB_SIZE)
        lengths.random_(1, width * BLOCK_SIZE + 1)
        last = lengths.long() - 1
        positions.copy_(last % MAX_POSITIONS)
        tables.random_(1, NUM_BLOCKS - rows)
        for row in range(rows):  # a block of its own for what is written
            own = NUM_BLOCKS - rows + row
            tables[row, last[row] // BLOCK_SIZE] = own
            slots[row] = own * BLOCK_SIZE + last[row] % BLOCK_SIZE

    def run() -> Tensor:
        metadata = AttentionMetadata(
            query_start=starts, seq_lens=lengths, block_tables=tables, slot_mapping=slots,
            query_lens_list=[1] * rows, seq_lens_list=[1] * rows, block_size=BLOCK_SIZE,
        )  # fmt: skip
        context = ForwardContext(attention={group.name: metadata for group in groups}, caches=caches)
        logits = model.compute_logits(model.forward(ids, positions, context))
        assert logits is not None
        return logits

    starts = torch.arange(rows + 1, dtype=torch.int32)
    change()
    return DecodeStep(run, change, caches, slots)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("name", ["llama3", "llama_linear", "llama_uneven", "mistral", "qwen2", "qwen3"])
def test_a_decode_step_is_replayed_bit_by_bit(
    graphs: NativeGraphs, tmp_path: Path, name: str, rows: int
) -> None:
    write_checkpoint(name, tmp_path)
    step = decode_step(tmp_path, rows)
    made = graphs.capture(step.run)
    assert made is not None
    program, result = made
    for _ in range(3):
        step.change()
        with torch.inference_mode():
            expected = step.run()
        for cache in step.caches:
            for side in (cache.key, cache.value):
                side.flatten(0, 1)[step.slots] = float("nan")
        program.replay()
        assert bool(result.isfinite().all()) and torch.equal(result, expected)


@pytest.fixture
def _many_threads() -> Iterator[None]:
    """Four to a core: they lose it in the middle of pieces all the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(4 * len(os.sched_getaffinity(0)))
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_many_threads")
@pytest.mark.parametrize("ample_bytes", [0, program_module._AMPLE_BYTES])
@pytest.mark.parametrize("name", ["llama3", "mistral", "qwen3"])
def test_threads_that_are_late_change_nothing(
    graphs: NativeGraphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, ample_bytes: int
) -> None:
    """Contexts of several segments; with places used again at once, and with room for those who are late."""
    monkeypatch.setattr(program_module, "_AMPLE_BYTES", ample_bytes)
    write_checkpoint(name, tmp_path)
    step = decode_step(tmp_path, 3, width=150)
    made = graphs.capture(step.run)
    assert made is not None
    program, result = made
    for _ in range(4):
        step.change()
        with torch.inference_mode():
            expected = step.run()
            for _ in range(20):
                result.fill_(float("nan"))
                program.replay()
                assert torch.equal(result, expected)


def test_a_place_is_written_again_when_nobody_is_late_there(
    graphs: NativeGraphs, kernels: NativeKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last field of a record: threads may still be busy with that operation and later ones."""
    x, residual, weight = torch.randn(4, 64), torch.randn(4, 64), kernels.pack(torch.randn(64, 64))
    ones = torch.ones(64)

    def run() -> Tensor:
        held = kernels.linear(residual, weight, None)  # 0, which is still needed at the end
        second = kernels.linear(x, weight, None)  # 1
        third = kernels.linear(second, weight, None)  # 2
        fourth = kernels.linear(third, weight, None)  # 3: in the place of `second`, which 2 reads
        fifth = kernels.add_rms_norm(
            fourth, held, ones, 1e-5
        )  # 4: changes what 0 wrote; in the place of `third`
        return kernels.linear(fifth, weight, None)  # 5: in the place of `held`, as nobody is late in 4

    def waits(ample_bytes: int) -> list[int]:
        monkeypatch.setattr(program_module, "_AMPLE_BYTES", ample_bytes)
        made = graphs.capture(run)
        assert made is not None and isinstance(made[0], program_module._Program)
        return [record[-1] for record in program_module._RECORD.iter_unpack(made[0].records)]

    assert waits(0) == [0, 0, 0, 3, 4, 1]
    assert waits(1 << 20) == [0, 0, 0, 0, 1, 0]


def test_programs_share_one_arena(graphs: NativeGraphs, kernels: NativeKernels) -> None:
    x, weight = torch.randn(8, 64), kernels.pack(torch.randn(96, 64))
    made = [graphs.capture(partial(kernels.linear, x[:rows], weight, None)) for rows in (2, 8, 5)]
    for rows, captured in zip((2, 8, 5), made, strict=True):
        assert captured is not None
        x.normal_()
        captured[0].replay()
        assert torch.equal(captured[1], kernels.linear(x[:rows], weight, None))
    assert made[1] is not None and made[2] is not None
    assert made[1][1].untyped_storage().data_ptr() == made[2][1].untyped_storage().data_ptr()


def test_tensors_share_memory_when_their_lives_do_not_meet(
    graphs: NativeGraphs, kernels: NativeKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_module, "_AMPLE_BYTES", 0)
    x, weight = torch.randn(4, 64), kernels.pack(torch.randn(64, 64))

    def run() -> Tensor:
        first = kernels.linear(x, weight, None)
        current = first
        for _ in range(20):
            current = (
                kernels.linear(current, weight, None)
                if current is first
                else kernels.rms_norm(current, ones, 1e-5)
            )
        return kernels.add_rms_norm(current, first, ones, 1e-5)

    ones = torch.ones(64)
    made = graphs.capture(run)
    assert made is not None
    x.normal_()
    made[0].replay()
    assert torch.equal(made[1], run())
    assert made[1].untyped_storage().nbytes() <= 4 * x.nbytes


@pytest.mark.parametrize(
    ("stray", "named"),
    [
        (lambda x: x + 1, "add"),
        (lambda x: x.add_(1), "add_"),
        (lambda x: x[torch.tensor([1, 0])], "__getitem__"),
        (lambda x: x.t().contiguous(), "contiguous"),
        (lambda x: torch.mul(x, 2, out=x), "mul"),
        (lambda x: x * float(x[0, 0]), "__float__"),
        (lambda x: x[: int(x.sum() > 0) + 1], "sum"),
    ],
)
def test_what_torch_computes_is_not_captured(
    graphs: NativeGraphs, kernels: NativeKernels, stray: Callable[[Tensor], Tensor], named: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    x, weight = torch.randn(2, 16), kernels.pack(torch.randn(16, 16))
    with caplog.at_level("INFO"):
        for _ in range(2):
            assert (
                graphs.capture(lambda: kernels.linear(stray(kernels.linear(x, weight, None)), weight, None))
                is None
            )
    (record,) = [record for record in caplog.records if getattr(record, "captured", "") == "no"]
    assert named in vars(record)["reason"]


def test_a_result_that_no_kernel_made_is_not_captured(graphs: NativeGraphs) -> None:
    x = torch.randn(2, 16)
    assert graphs.capture(lambda: x) is None


def test_a_run_that_does_other_things_each_time_is_not_captured(
    graphs: NativeGraphs, kernels: NativeKernels, caplog: pytest.LogCaptureFixture
) -> None:
    """What changes behind torch's back is noticed by the result."""
    x, weight = torch.randn(2, 16), kernels.pack(torch.randn(16, 16))
    memory = x.numpy()

    def run() -> Tensor:
        result = kernels.linear(x, weight, None)
        memory.fill(memory[0, 0] + 1.0)
        return result

    with caplog.at_level("INFO"):
        assert graphs.capture(run) is None
    assert "something else" in vars(caplog.records[-1])["reason"]


def test_sizes(graphs: NativeGraphs) -> None:
    assert [graphs.padded_rows(rows) for rows in (1, 7, 64, 65)] == [1, 7, 64, None]
