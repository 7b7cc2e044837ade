"""A container that asks for a GPU where there is none refuses to start. Runs anywhere: GPUs are hidden from it."""

from __future__ import annotations

import os
from pathlib import Path

from local_mode.server_process import ServerProcess
from tests.models.checkpoints import write_checkpoint


def test_device_cuda_without_a_gpu_is_refused_naming_the_driver(tmp_path: Path) -> None:
    write_checkpoint("llama2", tmp_path)
    settings = {"DEVICE": "cuda", "HF_MODEL_ID": str(tmp_path), "PORT": "0", "CUDA_VISIBLE_DEVICES": ""}
    with ServerProcess({**os.environ, **settings}) as server:
        assert server.wait(timeout_s=120) == 1
        server.stop()
        last_line = server.log.strip().splitlines()[-1]
    assert "no GPU is usable" in last_line
    assert "no NVIDIA driver found" in last_line or "NVRM version" in last_line
