"""One tensor-parallel rank as a process: per model folder, computes a prompt whole and in chunks; rank 0 writes logits.

Usage: python -m tests.models.rank RANK SIZE STORE deterministic|default MODEL_DIR...
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from serving.distributed import init_parallel
from serving.platform import get_device
from tests.models.harness import PagedHarness, load, random_tokens

NUM_TOKENS = 60
OUTPUT = "ranks.logits"


def main(arguments: list[str]) -> None:
    rank, size, store, mode, *folders = arguments
    torch.set_num_threads(1)
    parallel = init_parallel(int(rank), int(size), get_device("cpu"), store, timeout_s=120)
    for folder in folders:
        model = load(Path(folder), deterministic=mode == "deterministic", parallel=parallel)
        tokens = random_tokens(NUM_TOKENS, model.vocab_size, seed=3)
        harness = PagedHarness(model, num_rows=2)
        whole = harness.step({0: tokens})
        chunks = [harness.step({1: tokens[start : start + 20]}) for start in range(0, NUM_TOKENS, 20)]
        if whole is not None:
            chunked = torch.cat([part for part in chunks if part is not None])
            save_file({"whole": whole.contiguous(), "chunked": chunked}, Path(folder) / OUTPUT)
    parallel.close()


if __name__ == "__main__":
    main(sys.argv[1:])
