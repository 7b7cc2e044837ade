"""vLLM's flags under the prefix of an image: its own takes them as `SM_VLLM_X`, LMI passes them on from `OPTION_X`."""

from __future__ import annotations

from container.families.family import (
    DTYPES,
    FALSE,
    KV_CACHE_DTYPES,
    NO_CONFIG_OVERRIDE,
    NO_LORA,
    NO_PIPELINE,
    NO_SPECULATION,
    NONE,
    Alias,
    NoEffect,
    Refusal,
    dtype,
    kv_cache_dtype,
    no_effects,
    refusals,
)

_FIELDS = {
    "REVISION": "model.revision",
    "TRUST_REMOTE_CODE": "model.trust_remote_code",
    "MAX_NUM_SEQS": "scheduler.max_num_seqs",
    "GPU_MEMORY_UTILIZATION": "cache.memory_fraction",
    "ENABLE_PREFIX_CACHING": "cache.prefix_caching",
    "BLOCK_SIZE": "cache.block_size",
    "CHAT_TEMPLATE": "model.chat_template",
}


def flag_aliases(prefix: str) -> tuple[Alias, ...]:
    return (
        *(Alias(prefix + flag, field) for flag, field in _FIELDS.items()),
        Alias(f"{prefix}DTYPE", "model.dtype", dtype, DTYPES),
        Alias(f"{prefix}KV_CACHE_DTYPE", "cache.dtype", kv_cache_dtype, KV_CACHE_DTYPES),
    )


def flag_refusals(prefix: str) -> tuple[Refusal, ...]:
    ones = frozenset({"1"})
    return (
        *refusals(
            NO_PIPELINE, f"{prefix}PIPELINE_PARALLEL_SIZE", f"{prefix}DATA_PARALLEL_SIZE", harmless=ones
        ),
        *refusals(NO_LORA, f"{prefix}ENABLE_LORA", harmless=FALSE),
        *refusals(NO_LORA, f"{prefix}LORA_MODULES"),
        *refusals(NO_SPECULATION, f"{prefix}SPECULATIVE_CONFIG", f"{prefix}SPECULATIVE_MODEL", harmless=NONE),
        *refusals(NO_CONFIG_OVERRIDE, f"{prefix}HF_OVERRIDES", f"{prefix}ROPE_SCALING"),
        *refusals(
            "nothing is offloaded to the CPU", f"{prefix}CPU_OFFLOAD_GB", harmless=frozenset({"0", "0.0"})
        ),
    )


def flag_no_effects(prefix: str) -> tuple[NoEffect, ...]:
    return (
        *no_effects("prompts are always computed in pieces", f"{prefix}ENABLE_CHUNKED_PREFILL"),
        *no_effects("the engine chooses how it runs the model", f"{prefix}ENFORCE_EAGER"),
        *no_effects(
            "there are no adapters", f"{prefix}MAX_LORAS", f"{prefix}MAX_LORA_RANK", f"{prefix}MAX_CPU_LORAS"
        ),
    )
