"""What is printed at start: one table of settings, and the GPUs; and too few GPUs."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from container.environment import read_environment
from container.gpus import GpuFacts, find_gpus, log_gpus, require_gpus
from container.start_report import log_settings
from serving.errors import ConfigError

VERSION = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 10:11:16 UTC 2025\n"


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    return vars(record)


def test_what_was_set_comes_first_and_aligned(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    environment = read_environment({"SM_VLLM_MAX_MODEL_LEN": "8k", "DTYPE": "bf16", "API_KEY": "canary"})
    log_settings(environment.config, environment.sources)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].split() == ["setting", "model.dtype", "bfloat16", "from", "DTYPE"]
    chosen = [line for line in lines if line.startswith("setting")]
    assert len(chosen) == 3 and lines[:3] == chosen
    assert len({line.index(" from ") for line in chosen}) == 1
    assert any("SM_VLLM_MAX_MODEL_LEN" in line and "8000" in line for line in chosen)
    assert not any("canary" in line for line in lines)
    defaults = [line for line in lines if line.startswith("default")]
    assert any("cache: block_size=16" in line for line in defaults)
    assert len(lines) == len(chosen) + len(defaults) <= 20


def test_json_logs_hold_the_table_in_one_object(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    environment = read_environment({"JSON_OUTPUT": "true", "MAX_N": "3"})
    log_settings(environment.config, environment.sources)
    (record,) = caplog.records
    assert fields_of(record)["settings"] == {
        "limits.max_n": {"value": "3", "source": "MAX_N"},
        "runtime.json_logs": {"value": "true", "source": "JSON_OUTPUT"},
    }
    defaults = fields_of(record)["defaults"]
    assert isinstance(defaults, dict) and defaults["http.port"] == "8080"


def driver(folder: Path, *models: str) -> tuple[Path, Path]:
    """/proc/driver/nvidia and /dev of a machine with these GPUs."""
    proc, dev = folder / "proc", folder / "dev"
    dev.mkdir(parents=True)
    for number, model in enumerate(models):
        information = proc / "gpus" / f"0000:00:{number:02x}.0" / "information"
        information.parent.mkdir(parents=True)
        information.write_text(f"Model: \t\t {model}\nIRQ:   \t\t 0\n")
        (dev / f"nvidia{number}").touch()
    proc.mkdir(exist_ok=True)
    (proc / "version").write_text(VERSION)
    for name in ("nvidiactl", "nvidia-uvm", "null"):
        (dev / name).touch()
    return proc, dev


def test_the_gpus_of_a_machine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    proc, dev = driver(tmp_path, "NVIDIA L4", "NVIDIA L4")
    facts = find_gpus({}, driver=proc, devices=dev)
    assert facts is not None
    assert (facts.driver, facts.models, facts.visible) == ("580.95.05", ("NVIDIA L4", "NVIDIA L4"), 2)
    log_gpus(facts)
    (record,) = caplog.records
    assert fields_of(record)["driver"] == "580.95.05"


def test_without_a_driver_nothing_is_printed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert find_gpus({}, driver=tmp_path / "none", devices=tmp_path) is None
    log_gpus(None)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("chosen", "visible"),
    [("0", 1), ("1,3", 2), ("", 0), ("-1", 0), ("0,-1,2", 1), ("GPU-8932f937,GPU-1", 2), ("0,9", 1)],
)
def test_what_cuda_may_use(tmp_path: Path, chosen: str, visible: int) -> None:
    proc, dev = driver(tmp_path, *["NVIDIA A10G"] * 4)
    facts = find_gpus({"CUDA_VISIBLE_DEVICES": chosen}, driver=proc, devices=dev)
    assert facts is not None and facts.visible == visible


FOUR = GpuFacts(driver="580.95.05", cuda="13.0", models=("NVIDIA L4",) * 4, visible=4)


def require(facts: GpuFacts | None, **environ: str) -> None:
    environment = read_environment(environ)
    require_gpus(environment.config, environment.sources, facts)


def test_more_gpus_than_there_are_is_one_line_with_both_numbers() -> None:
    with pytest.raises(ConfigError) as caught:
        require(FOUR, OPTION_TENSOR_PARALLEL_DEGREE="8")
    message = caught.value.message
    assert message.startswith("OPTION_TENSOR_PARALLEL_DEGREE=8 asks for 8 GPUs, 4 are visible")
    assert "\n" not in message
    with pytest.raises(ConfigError, match="SM_NUM_GPUS=2 asks for 2 GPUs, 0 are visible.*DEVICE=cpu"):
        require(None, SM_NUM_GPUS="2")


def test_gpus_that_are_there_or_not_needed() -> None:
    require(FOUR, SM_NUM_GPUS="4")
    require(FOUR)
    require(None)
    require(None, SM_NUM_GPUS="1")
    require(None, SM_NUM_GPUS="8", DEVICE="cpu")
