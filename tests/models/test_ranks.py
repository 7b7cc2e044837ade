"""Several ranks, as processes, against one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from serving.distributed import ParallelContext
from serving.errors import ConfigError
from tests.models.checkpoints import VOCAB_SIZE, write_checkpoint
from tests.models.harness import PagedHarness, load, random_tokens
from tests.models.rank import NUM_TOKENS, OUTPUT

ROOT = Path(__file__).parents[2]
NAMES = ["llama3", "llama_uneven", "llama_linear", "qwen3"]


def run_ranks(size: int, mode: str, store: Path, folders: list[Path]) -> list[dict[str, Tensor]]:
    command = [sys.executable, "-m", "tests.models.rank"]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(size), str(store), mode, *map(str, folders)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
        )
        for rank in range(size)
    ]
    errors = [process.communicate(timeout=200)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * size, errors
    return [load_file(folder / OUTPUT) for folder in folders]


def test_two_ranks_agree_with_one(tmp_path: Path) -> None:
    for name in NAMES:
        write_checkpoint(name, tmp_path / name)
    folders = [tmp_path / name for name in NAMES]
    tokens = random_tokens(NUM_TOKENS, VOCAB_SIZE, seed=3)
    for folder, results in zip(folders, run_ranks(2, "default", tmp_path / "store", folders), strict=True):
        alone = PagedHarness(load(folder)).step({0: tokens})
        assert alone is not None
        for logits in results.values():
            assert logits.shape == (NUM_TOKENS, VOCAB_SIZE), folder.name
            assert (logits - alone).abs().max() < 1e-5, folder.name
            assert torch.equal(logits.argmax(-1), alone.argmax(-1)), folder.name


def test_three_deterministic_ranks_give_equal_bits_in_chunks(tmp_path: Path) -> None:
    write_checkpoint("llama_uneven", tmp_path)
    results = run_ranks(3, "deterministic", tmp_path / "store", [tmp_path])[0]
    assert torch.equal(results["whole"], results["chunked"])


def test_query_heads_must_divide_the_ranks(tmp_path: Path) -> None:
    write_checkpoint("llama3", tmp_path)
    with pytest.raises(ConfigError, match="8 query heads cannot be divided over 3 ranks"):
        load(tmp_path, parallel=ParallelContext(rank=0, size=3))
