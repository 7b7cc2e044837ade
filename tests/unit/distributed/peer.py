"""One of two ranks: exchanges tensors and prints what it got, one JSON object.

Usage: python -m tests.unit.distributed.peer RANK STORE
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from serving.distributed import all_reduce_sum, broadcast_from_rank0, gather_to_rank0, init_parallel
from serving.platform import get_device


def listening_addresses() -> list[str]:
    """Local addresses (hexadecimal, as the kernel writes them) of this process's listening TCP sockets."""
    inodes = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(link)
        except FileNotFoundError:
            continue
        inodes.add(target.removeprefix("socket:[").removesuffix("]"))
    found = []
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.append(fields[1].split(":")[0])
    return found


def main(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    parallel = init_parallel(rank, 2, get_device("cpu"), store, timeout_s=60)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * (rank + 1)
    gathered = gather_to_rank0(x.t(), parallel)
    print(
        json.dumps(
            {
                "sum": all_reduce_sum(x.clone(), parallel).tolist(),
                "gathered": None if gathered is None else gathered.tolist(),
                "broadcast": broadcast_from_rank0(torch.tensor([rank + 5]), parallel).tolist(),
                "listening": listening_addresses(),
            }
        )
    )
    parallel.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
