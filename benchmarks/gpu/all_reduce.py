"""Sums over the ranks, in one launch beside NCCL: `python -m benchmarks.gpu.all_reduce RECORD [--ranks N]`.

Needs as many GPUs as ranks. For messages of 2 KiB to 1 MiB the microseconds of one sum, of 64 in a captured graph (which is
how decode steps sum), the two ways in turns; medians of 20. Where the one launch stops being the faster, the limits in
`serving/kernels/small_sums.py` should be. `--device cpu` rehearses the path through gloo.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu.measures import Record
from serving.distributed import ParallelContext, all_reduce_sum, init_parallel
from serving.kernels.small_sums import choose_small_sums
from serving.platform import Device, get_device

_SIZES = tuple(2**power for power in range(11, 21))
_SUMS = 64
_REPEATS = 20


def main() -> None:
    options = _parse()
    if options.rank is not None:
        _measure(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "benchmarks.gpu.all_reduce",
            str(options.record),
            "--store",
            f"{folder}/store",
        ]
        command += ["--ranks", str(options.ranks), "--device", options.device]
        ranks = [subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(options.ranks)]
        statuses = [rank.wait() for rank in ranks]
    sys.exit(max(map(abs, statuses)))


def _measure(options: argparse.Namespace) -> None:
    device = get_device(options.device, options.rank if options.device == "cuda" else 0)
    group = init_parallel(options.rank, options.ranks, device, options.store, timeout_s=60)
    ways = {device.distributed_backend: group}
    if options.device == "cuda":
        chosen = choose_small_sums(device.peer_memory, group, device.torch_device)
        if chosen is not None:
            ways["one_launch"] = dataclasses.replace(group, small_sums=chosen)
    record = Record(options.record) if options.rank == 0 else None
    if record is not None:
        record.add("device", device.description)
        record.add("versions", {"torch": torch.__version__, "cuda": torch.version.cuda})
        record.add("ranks", options.ranks)
    for num_bytes in _SIZES:
        runs = {name: _run(way, device, num_bytes) for name, way in ways.items() if _takes(way, num_bytes)}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(_REPEATS):
            for name, run in runs.items():
                times[name].append(run())
        if record is not None:
            for name, seconds in times.items():
                record.add(f"{num_bytes}.{name}.us", 1e6 * statistics.median(seconds) / _SUMS)


def _takes(way: ParallelContext, num_bytes: int) -> bool:
    return way.small_sums is None or way.small_sums.accepts(torch.empty(num_bytes // 2, dtype=torch.bfloat16))


def _run(way: ParallelContext, device: Device, num_bytes: int) -> Callable[[], float]:
    """Seconds of `_SUMS` sums; all ranks call it together."""
    dtype = torch.float32 if device.is_host else torch.bfloat16
    x = torch.zeros(num_bytes // dtype.itemsize, dtype=dtype, device=device.torch_device)

    def sums() -> torch.Tensor:
        for _ in range(_SUMS):
            all_reduce_sum(x, way)
        return x

    replay: Callable[[], object] = sums
    if not device.is_host:
        from serving.platform.cuda_graphs import CudaGraphBackend

        captured = CudaGraphBackend(1).capture(sums)
        if captured is None:
            raise RuntimeError("the sums cannot be captured")
        replay = captured[0].replay

    def timed() -> float:
        device.synchronize()
        started_s = time.perf_counter()
        replay()
        device.synchronize()
        return time.perf_counter() - started_s

    return timed


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("record", type=Path, help="JSON file for the results")
    parser.add_argument("--ranks", type=int, default=2, help="processes, and GPUs (2)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
