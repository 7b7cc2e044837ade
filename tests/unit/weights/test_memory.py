"""Loading takes little more host memory than the parameters themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_LOAD = """
import re, sys
from pathlib import Path
import torch
from serving.weights.loader import load_weights
from serving.weights.target import whole

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

places = {f"t{number}": [whole(torch.zeros(1024, 4096))] for number in range(8)}
torch.zeros(16, 16).bfloat16().float()
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = peak()
load_weights(sys.argv[1], places, ignored=re.compile(r"(?!)"))
print(peak() - before)
"""


@pytest.mark.parametrize(("dtype", "size", "limit_mib"), [("F32", 4, 24), ("BF16", 2, 56)])
def test_peak_memory(tmp_path: Path, dtype: str, size: int, limit_mib: int) -> None:
    """Of 128 MiB of float32 parameters: threads and their stacks, and the buffers that a conversion goes through."""
    tensor_bytes = 1024 * 4096 * size
    header = ",".join(
        f'"t{number}":{{"dtype":"{dtype}","shape":[1024,4096],'
        f'"data_offsets":[{number * tensor_bytes},{(number + 1) * tensor_bytes}]}}'
        for number in range(8)
    )
    encoded = f"{{{header}}}".encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + 8 * tensor_bytes)
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < limit_mib * 1024
