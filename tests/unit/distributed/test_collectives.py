from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from serving.distributed import (
    ParallelContext,
    all_reduce_sum,
    broadcast_from_rank0,
    gather_to_rank0,
    init_parallel,
)
from serving.platform import get_device

ROOT = Path(__file__).parents[3]
LOOPBACK = "0100007F"


def test_two_processes_exchange_tensors_over_loopback_only(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.unit.distributed.peer"]
    peers = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], cwd=ROOT, stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    results = [json.loads(peer.communicate(timeout=60)[0]) for peer in peers]
    assert [peer.returncode for peer in peers] == [0, 0]
    for result in results:
        assert result["sum"] == [[3.0, 6.0], [9.0, 12.0]]
        assert result["broadcast"] == [5]
        assert set(result["listening"]) <= {LOOPBACK}
    assert results[0]["listening"], "gloo listens somewhere; if it no longer does, this test sees nothing"
    assert results[0]["gathered"] == [[1.0, 3.0, 2.0, 6.0], [2.0, 4.0, 4.0, 8.0]]
    assert results[1]["gathered"] is None


def test_one_rank_exchanges_nothing(tmp_path: Path) -> None:
    parallel = init_parallel(0, 1, get_device("cpu"), tmp_path / "store")
    assert parallel == ParallelContext.single()
    x = torch.ones(2)
    assert all_reduce_sum(x, parallel) is x
    assert gather_to_rank0(x, parallel) is x
    assert broadcast_from_rank0(x, parallel) is x
    assert not (tmp_path / "store").exists()
    parallel.close()
