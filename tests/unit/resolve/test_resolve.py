from __future__ import annotations

from typing import Any

import msgspec
import pytest

from serving.config import (
    CacheConfig,
    EngineConfig,
    KVGroupConfig,
    LimitsConfig,
    ModelConfig,
    ParallelConfig,
    RuntimeConfig,
    SchedulerConfig,
    ServerConfig,
)
from serving.errors import ConfigError, DeviceError, ModelError, StartupError
from serving.resolve import Decision, DeviceFacts, ModelFacts, read_device_facts, resolve

FACTS = ModelFacts(
    architecture="LlamaForCausalLM",
    dtype="bfloat16",
    vocab_size=1000,
    num_query_heads=12,
    max_position_embeddings=4096,
    kv_groups=[KVGroupConfig(name="full")],
)
CPU = DeviceFacts(num_gpus=0, num_cores=4, gpu_driver="no NVIDIA driver found")
GPUS = DeviceFacts(num_gpus=8, num_cores=32)


def resolved(
    declared: ServerConfig | None = None, devices: DeviceFacts = CPU, **facts: Any
) -> tuple[EngineConfig, dict[str, Decision]]:
    config, decisions = resolve(
        declared or ServerConfig(),
        model_dir="/model",
        facts=msgspec.structs.replace(FACTS, **facts),
        devices=devices,
    )
    assert len({decision.name for decision in decisions}) == len(decisions)
    return config, {decision.name: decision for decision in decisions}


def refusal(declared: ServerConfig, devices: DeviceFacts = CPU, **facts: Any) -> StartupError:
    with pytest.raises(StartupError) as caught:
        resolved(declared, devices, **facts)
    assert "\n" not in caught.value.message
    return caught.value


def test_defaults_on_a_cpu() -> None:
    config, decisions = resolved()
    assert (config.device, config.dtype, config.num_ranks, config.num_threads) == ("cpu", "float32", 1, 4)
    assert (config.max_step_tokens, config.max_total_tokens, config.max_input_tokens) == (512, 4096, None)
    assert config.model_dir == "/model"
    assert "no NVIDIA driver found" in decisions["device"].reason


def test_defaults_on_gpus() -> None:
    config, decisions = resolved(devices=GPUS)
    assert (config.device, config.dtype, config.max_step_tokens) == ("cuda", "bfloat16", 2048)
    assert config.num_ranks == 6
    assert decisions["num_ranks"].reason == "8 GPUs are visible; lowered to divide 12 query heads"
    assert config.num_threads == 32 // 6


@pytest.mark.parametrize(
    ("model", "declared", "devices", "expected"),
    [
        ("float32", "auto", GPUS, "bfloat16"),
        ("float16", "auto", GPUS, "float16"),
        ("float16", "auto", CPU, "float32"),
        ("float16", "bfloat16", CPU, "bfloat16"),
        ("bfloat16", "float32", GPUS, "float32"),
    ],
)
def test_dtype(model: str, declared: Any, devices: DeviceFacts, expected: str) -> None:
    config, _ = resolved(ServerConfig(model=ModelConfig(dtype=declared)), devices, dtype=model)
    assert config.dtype == expected


def test_device_cuda_without_a_gpu_names_the_driver() -> None:
    error = refusal(ServerConfig(runtime=RuntimeConfig(device="cuda")))
    assert isinstance(error, DeviceError)
    assert "no NVIDIA driver found" in error.message


def test_device_cpu_is_honoured_beside_gpus() -> None:
    config, _ = resolved(ServerConfig(runtime=RuntimeConfig(device="cpu")), GPUS)
    assert (config.device, config.num_ranks) == ("cpu", 1)


@pytest.mark.parametrize(
    ("ranks", "devices", "message"),
    [
        (5, GPUS, "num_ranks = 5 does not divide the model's 12 query heads"),
        (12, GPUS, "num_ranks = 12 exceeds the 8 GPUs; lower SM_NUM_GPUS"),
        (6, CPU, "num_ranks = 6 exceeds the 4 cores; lower SM_NUM_GPUS"),
    ],
)
def test_rank_counts_that_cannot_be_honoured(ranks: int, devices: DeviceFacts, message: str) -> None:
    error = refusal(ServerConfig(parallel=ParallelConfig(num_ranks=ranks)), devices)
    assert isinstance(error, ConfigError)
    assert error.message == message


def test_threads_are_shared_by_the_ranks() -> None:
    config, _ = resolved(ServerConfig(parallel=ParallelConfig(num_ranks=3)))
    assert (config.num_ranks, config.num_threads) == (3, 1)
    config, _ = resolved(ServerConfig(runtime=RuntimeConfig(num_threads=7)))
    assert config.num_threads == 7


@pytest.mark.parametrize(
    ("limits", "cache", "message"),
    [
        (
            {"max_total_tokens": 5000},
            {},
            "max_total_tokens = 5000 exceeds the model's context of 4096 tokens; lower MAX_TOTAL_TOKENS",
        ),
        (
            {"max_total_tokens": 2000},
            {"max_batch_total_tokens": 1000},
            "max_total_tokens = 2000 exceeds max_batch_total_tokens = 1000",
        ),
        (
            {"max_input_tokens": 512, "max_total_tokens": 512},
            {},
            "max_input_tokens = 512 must be less than max_total_tokens = 512",
        ),
        ({"max_input_tokens": 4096}, {}, "max_input_tokens = 4096 must be less than max_total_tokens = 4096"),
    ],
)
def test_lengths_that_cannot_be_honoured(limits: dict[str, int], cache: dict[str, int], message: str) -> None:
    declared = ServerConfig(limits=LimitsConfig(**limits), cache=CacheConfig(**cache))
    assert refusal(declared).message == message


def test_declared_lengths_and_capacity() -> None:
    declared = ServerConfig(limits=LimitsConfig(max_input_tokens=100, max_total_tokens=200))
    config, decisions = resolved(declared)
    assert (config.max_input_tokens, config.max_total_tokens) == (100, 200)
    assert "max_total_tokens" not in decisions
    config, decisions = resolved(ServerConfig(cache=CacheConfig(max_batch_total_tokens=1000)))
    assert (config.max_total_tokens, config.max_batch_total_tokens) == (1000, 1000)
    assert "max_batch_total_tokens" in decisions["max_total_tokens"].reason


def test_step_tokens_are_taken_as_declared() -> None:
    config, decisions = resolved(ServerConfig(scheduler=SchedulerConfig(max_batch_prefill_tokens=64)))
    assert config.max_step_tokens == 64
    assert "max_step_tokens" not in decisions


def test_quantization_is_refused_by_name() -> None:
    error = refusal(ServerConfig(model=ModelConfig(quantize="awq")))
    assert isinstance(error, ConfigError)
    assert "'awq' is not built yet" in error.message
    error = refusal(ServerConfig(), quantization="gptq")
    assert isinstance(error, ModelError)
    assert "'gptq', which is not built yet" in error.message


def test_remote_code_is_noted() -> None:
    _, decisions = resolved(has_remote_code=True)
    assert "its own only" in decisions["trust_remote_code"].reason


def test_device_facts_of_this_machine() -> None:
    facts = read_device_facts()
    assert facts.num_cores >= 1
    assert bool(facts.num_gpus) != bool(facts.gpu_driver)


def test_a_float8_cache_is_for_gpus() -> None:
    declared = ServerConfig(cache=CacheConfig(dtype="fp8_e4m3"))
    config, decisions = resolved(declared, GPUS)
    assert config.kv_cache_dtype == "fp8_e4m3" and "448" in decisions["kv_cache_scales"].reason
    assert resolved(devices=GPUS)[0].kv_cache_dtype == "auto"
    assert "KV_CACHE_DTYPE" in refusal(declared).message
