"""From what was declared, what the model is and what the machine has, to the engine's final configuration.

`resolve` is pure: it reads neither files nor the environment, and every choice it makes is a `Decision` to log.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from serving.config import EngineConfig, KVGroupConfig, ServerConfig
from serving.errors import ConfigError, DeviceError, ModelError
from serving.models.hf_config import DTypeName, read_decoder_config

_STEP_TOKENS = {"cuda": 2048, "cpu": 512}
_NOT_BUILT = "is not built yet"


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What `resolve` needs of a model's config."""

    architecture: str
    dtype: DTypeName
    vocab_size: int
    num_query_heads: int
    max_position_embeddings: int
    kv_groups: list[KVGroupConfig]
    eos_token_ids: list[int] = []
    quantization: str | None = None
    has_remote_code: bool = False


class DeviceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What `resolve` needs of the machine. `gpu_driver` is words for an error message."""

    num_gpus: int
    num_cores: int
    gpu_driver: str = ""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """A value that was chosen for the user, and why."""

    name: str
    value: str
    reason: str


def read_model_facts(model_dir: str | Path) -> ModelFacts:
    """Raises ModelError for a config that is missing, malformed or asks for what the layers do not compute."""
    config = read_decoder_config(model_dir)
    windows = sorted({window or 0 for window in config.layer_windows})
    return ModelFacts(
        architecture=config.architecture,
        dtype=config.dtype,
        vocab_size=config.vocab_size,
        num_query_heads=config.num_heads,
        max_position_embeddings=config.max_positions,
        kv_groups=[
            KVGroupConfig(name="window", window=window) if window else KVGroupConfig(name="full")
            for window in windows
        ],
        eos_token_ids=list(config.eos_token_ids),
        quantization=config.quantization,
        has_remote_code=config.remote_code,
    )


def read_device_facts() -> DeviceFacts:
    """Loads torch, in the engine process only."""
    from serving.platform import gpu_driver, num_cores, visible_gpus

    num_gpus = visible_gpus()
    return DeviceFacts(
        num_gpus=num_gpus,
        num_cores=num_cores(),
        gpu_driver="" if num_gpus else gpu_driver(),
    )


class _Journal:
    """Collects the decisions of one `resolve`."""

    def __init__(self) -> None:
        self.decisions: list[Decision] = []

    def note(self, name: str, value: object, reason: str) -> None:
        self.decisions.append(Decision(name=name, value=str(value), reason=reason))


def resolve(
    declared: ServerConfig, *, model_dir: str, facts: ModelFacts, devices: DeviceFacts
) -> tuple[EngineConfig, list[Decision]]:
    """Raises ConfigError, ModelError or DeviceError, in one line with both values, for what cannot be honoured."""
    journal = _Journal()
    _refuse_unbuilt(declared, facts)
    device = _device(declared, devices, journal)
    num_ranks = _num_ranks(declared, device, facts, devices, journal)
    max_total_tokens = _max_total_tokens(declared, facts, journal)
    max_input_tokens = declared.limits.max_input_tokens
    if max_input_tokens is not None and max_input_tokens >= max_total_tokens:
        raise ConfigError(
            f"max_input_tokens = {max_input_tokens} must be less than max_total_tokens = {max_total_tokens}"
        )
    if facts.has_remote_code:
        journal.note(
            "trust_remote_code", "not used", "the model folder names code; this engine runs its own only"
        )
    config = EngineConfig(
        model_dir=model_dir,
        model_id=declared.model.model_id,
        revision=declared.model.revision,
        device=device,
        dtype=_dtype(declared, device, facts, journal),
        num_ranks=num_ranks,
        num_threads=_num_threads(declared, num_ranks, devices, journal),
        block_size=declared.cache.block_size,
        max_batch_total_tokens=declared.cache.max_batch_total_tokens,
        memory_fraction=declared.cache.memory_fraction,
        prefix_caching=declared.cache.prefix_caching,
        max_step_tokens=_max_step_tokens(declared, device, journal),
        step_time_budget_s=declared.scheduler.step_time_budget_s,
        max_num_seqs=declared.scheduler.max_num_seqs,
        max_queue_tokens=declared.scheduler.max_queue_tokens,
        max_concurrent_requests=declared.limits.max_concurrent_requests,
        max_best_of=declared.limits.max_best_of,
        max_n=declared.limits.max_n,
        grammar_support=declared.limits.grammar_support,
        grammar_timeout_s=declared.limits.grammar_timeout_s,
        grammar_cache_bytes=declared.limits.grammar_cache_bytes,
        session_ttl_s=declared.sessions.ttl_s,
        max_sessions=declared.sessions.max_sessions,
        session_kv_fraction=declared.sessions.kv_fraction,
        max_input_tokens=max_input_tokens,
        max_total_tokens=max_total_tokens,
        deterministic=declared.runtime.deterministic,
        decode_graphs=declared.runtime.decode_graphs,
        one_shot_all_reduce=declared.parallel.one_shot_all_reduce,
        async_scheduling=_async_scheduling(declared, device, journal),
        kv_cache_dtype=_kv_cache_dtype(declared, device, journal),
        log_level=declared.runtime.log_level,
        json_logs=declared.runtime.json_logs,
    )
    return config, journal.decisions


def _refuse_unbuilt(declared: ServerConfig, facts: ModelFacts) -> None:
    if declared.model.quantize is not None:
        raise ConfigError(f"quantize = {declared.model.quantize!r} {_NOT_BUILT}; leave it unset")
    if facts.quantization is not None:
        raise ModelError(f"the model is quantized with {facts.quantization!r}, which {_NOT_BUILT}")


def _device(declared: ServerConfig, devices: DeviceFacts, journal: _Journal) -> Literal["cuda", "cpu"]:
    asked = declared.runtime.device
    if asked == "auto":
        if devices.num_gpus:
            journal.note("device", "cuda", f"{devices.num_gpus} GPUs are visible")
            return "cuda"
        journal.note("device", "cpu", f"no usable GPU: {devices.gpu_driver}")
        return "cpu"
    if asked == "cuda" and not devices.num_gpus:
        raise DeviceError(f"device = 'cuda' but no GPU is usable: {devices.gpu_driver}")
    return asked


def _dtype(
    declared: ServerConfig, device: Literal["cuda", "cpu"], facts: ModelFacts, journal: _Journal
) -> DTypeName:
    asked = declared.model.dtype
    if asked != "auto":
        return asked
    if device == "cpu":
        journal.note("dtype", "float32", "processors compute float32 fastest")
        return "float32"
    if facts.dtype == "float32":
        journal.note("dtype", "bfloat16", "the model is float32, which halves speed and room on a GPU")
        return "bfloat16"
    journal.note("dtype", facts.dtype, "the model's own")
    return facts.dtype


def _num_ranks(
    declared: ServerConfig, device: str, facts: ModelFacts, devices: DeviceFacts, journal: _Journal
) -> int:
    asked, heads = declared.parallel.num_ranks, facts.num_query_heads
    limit = devices.num_gpus if device == "cuda" else devices.num_cores
    if asked is not None:
        if asked > limit:
            raise ConfigError(
                f"num_ranks = {asked} exceeds the {limit} {'GPUs' if device == 'cuda' else 'cores'}; lower SM_NUM_GPUS"
            )
        if heads % asked:
            raise ConfigError(f"num_ranks = {asked} does not divide the model's {heads} query heads")
        return asked
    if device == "cpu":
        return 1
    ranks = max(count for count in range(1, limit + 1) if heads % count == 0)
    why = f"{limit} GPUs are visible"
    journal.note(
        "num_ranks", ranks, why if ranks == limit else f"{why}; lowered to divide {heads} query heads"
    )
    return ranks


def _max_total_tokens(declared: ServerConfig, facts: ModelFacts, journal: _Journal) -> int:
    asked, context = declared.limits.max_total_tokens, facts.max_position_embeddings
    capacity = declared.cache.max_batch_total_tokens
    if asked is not None:
        if asked > context:
            raise ConfigError(
                f"max_total_tokens = {asked} exceeds the model's context of {context} tokens; lower MAX_TOTAL_TOKENS"
            )
        if capacity is not None and asked > capacity:
            raise ConfigError(f"max_total_tokens = {asked} exceeds max_batch_total_tokens = {capacity}")
        return asked
    if capacity is not None and capacity < context:
        journal.note("max_total_tokens", capacity, "max_batch_total_tokens, less than the model's context")
        return capacity
    journal.note("max_total_tokens", context, "the model's context")
    return context


def _max_step_tokens(declared: ServerConfig, device: str, journal: _Journal) -> int:
    asked = declared.scheduler.max_batch_prefill_tokens
    if asked is not None:
        return asked
    journal.note("max_step_tokens", _STEP_TOKENS[device], f"default on {device}")
    return _STEP_TOKENS[device]


def _async_scheduling(declared: ServerConfig, device: str, journal: _Journal) -> bool:
    asked = declared.runtime.async_scheduling
    if asked != "auto":
        return asked == "on"
    chosen = device == "cuda"
    why = "the host plans while the GPU computes" if chosen else "model and host share the processor"
    journal.note("async_scheduling", "on" if chosen else "off", why)
    return chosen


def _kv_cache_dtype(declared: ServerConfig, device: str, journal: _Journal) -> Literal["auto", "fp8_e4m3"]:
    asked = declared.cache.dtype
    if asked == "auto":
        return asked
    if device != "cuda":
        raise ConfigError(
            f"kv_cache_dtype = {asked!r} needs a GPU, the device is {device!r}; leave KV_CACHE_DTYPE unset"
        )
    journal.note("kv_cache_scales", "1", "the model brings none: keys and values beyond +-448 are cut")
    return asked


def _num_threads(declared: ServerConfig, num_ranks: int, devices: DeviceFacts, journal: _Journal) -> int:
    asked = declared.runtime.num_threads
    if asked is not None:
        return asked
    threads = max(1, devices.num_cores // num_ranks)
    journal.note("num_threads", threads, f"{devices.num_cores} cores over {num_ranks} ranks")
    return threads
