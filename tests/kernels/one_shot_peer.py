"""One of several ranks that sum in one launch: `python -m tests.kernels.one_shot_peer RANK SIZE FOLDER DEVICE TURNS`.

Prints what it found as JSON. On a CPU Triton's interpreter runs the kernel and the ranks map files; on one GPU the ranks are
processes that share it.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import mmap
import random
import sys
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from serving.contracts import PeerMemory
from serving.distributed import ParallelContext, all_reduce_sum, init_parallel
from serving.errors import DeviceError
from serving.kernels.small_sums import HALF_BYTES, OneShotSums, choose_small_sums
from serving.platform import get_device

_SIZES = (16, 512, 2048, 2064, 4096, 12_800)
_KINDS = (torch.float32, torch.bfloat16, torch.float16)


class MappedFiles:
    """A role of `contracts.PeerMemory`: files that all processes map."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._file = folder / f"memory-{rank}"
        self._num_bytes = 0

    def allocate(self, num_bytes: int) -> int:
        self._num_bytes = num_bytes
        self._file.write_bytes(bytes(num_bytes))
        return self._map(self._file, num_bytes)

    def export(self, address: int) -> bytes:
        return f"{self._num_bytes} {self._file}".encode()

    def open(self, exported: bytes) -> int:
        num_bytes, file = exported.decode().split(" ", 1)
        return self._map(Path(file), int(num_bytes))

    def _map(self, file: Path, num_bytes: int) -> int:
        with file.open("r+b") as opened:
            mapped = mmap.mmap(opened.fileno(), num_bytes)
        # The view keeps the pages mapped; it stays as long as the process.
        view = (ctypes.c_char * num_bytes).from_buffer(mapped)
        _KEPT.append(view)
        return ctypes.addressof(view)


_KEPT: list[Any] = []


class ThroughHost:
    """A group of the host that exchanges tensors of a device."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor]) -> Any:
        parts = [part.cpu() for part in outputs[0]]
        work = self._group.allgather([parts], [inputs[0].cpu()])
        work.wait()
        for output, part in zip(outputs[0], parts, strict=True):
            output.copy_(part)
        return work


class Refusing(MappedFiles):
    def open(self, exported: bytes) -> int:
        raise DeviceError("no way to the others")


def part(turn: int, rank: int, kind: torch.dtype, size: int) -> torch.Tensor:
    """What a rank adds in a turn: every rank can compute it."""
    generator = torch.Generator().manual_seed(1000 * turn + rank)
    return torch.randn(size, generator=generator).to(kind)


def wrong_turns(parallel: ParallelContext, device: torch.device, num_turns: int) -> list[str]:
    """Sums whose bits are not those of the parts in float32 in the order of ranks. Ranks drift apart on purpose."""
    drawn, drift = random.Random(0), random.Random(parallel.rank)
    wrong = []
    for turn in range(num_turns):
        kind, size = drawn.choice(_KINDS), drawn.choice(_SIZES)
        parts = [part(turn, rank, kind, size).float() for rank in range(parallel.size)]
        wanted = reduce(torch.add, parts).to(kind)
        if drift.random() < 0.3:
            torch.randn(300, 300) @ torch.randn(300, 300)
        x = part(turn, parallel.rank, kind, size).to(device)
        got = all_reduce_sum(x, parallel)
        # The interpreter cuts bits off where a GPU rounds to bfloat16.
        unit = 2**-7 if device.type == "cpu" and kind == torch.bfloat16 else 0.0
        right = torch.allclose(got.cpu().float(), wanted.float(), rtol=unit, atol=0.0)
        if got.data_ptr() != x.data_ptr() or not right:
            wrong.append(f"turn {turn}: {kind} {size}")
    return wrong


def main(rank: int, size: int, folder: Path, device_name: str, num_turns: int) -> None:
    torch.set_num_threads(1)
    parallel = init_parallel(rank, size, get_device("cpu"), folder / "store", timeout_s=120)
    device = torch.device(device_name)

    def make() -> PeerMemory:
        return MappedFiles(folder, rank) if device.type == "cpu" else get_device("cuda").peer_memory()

    def refuse() -> PeerMemory:
        return Refusing(folder, rank) if rank == size - 1 else MappedFiles(folder, rank)

    meeting = dataclasses.replace(parallel, group=ThroughHost(parallel.group))
    refused = choose_small_sums(refuse, meeting, device)
    sums = OneShotSums(make, meeting, device)
    with_sums = dataclasses.replace(parallel, small_sums=sums)
    whole = torch.ones(HALF_BYTES // 4, dtype=torch.float32)
    result = {
        "refused": refused is None,
        "wrong": wrong_turns(with_sums, device, num_turns),
        "accepts": {
            "whole": sums.accepts(whole),
            "longer": sums.accepts(torch.ones(whole.numel() + 16)),
            "odd": sums.accepts(torch.ones(17)),
            "integers": sums.accepts(torch.ones(16, dtype=torch.int64)),
        },
        "longest": float(all_reduce_sum(whole.to(device), with_sums).sum()) / whole.numel(),
    }
    print(json.dumps(result))
    parallel.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
