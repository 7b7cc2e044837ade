"""Text Generation Inference: its settings are our own names; here is what is left of its launcher and shards."""

from __future__ import annotations

from container.families.family import FALSE, NO_LORA, Family, no_effects, refusals

TGI = Family(
    title="Text Generation Inference (TGI)",
    refusals=(
        *refusals(NO_LORA, "LORA_ADAPTERS"),
        *refusals(
            "the model's own rotary scaling is used; change config.json", "ROPE_FACTOR", "ROPE_SCALING"
        ),
        *refusals("use CHAT_TEMPLATE for a chat template", "TOKENIZER_CONFIG_PATH"),
        *refusals("set MODEL_ID to the folder that holds the weights", "WEIGHTS_CACHE_OVERRIDE"),
        *refusals("tunnels are not offered", "NGROK", harmless=FALSE),
    ),
    no_effects=(
        *no_effects("the number of ranks comes from SM_NUM_GPUS alone", "SHARDED"),
        *no_effects("the tokenizer runs in each front worker; see API_WORKERS", "VALIDATION_WORKERS"),
        *no_effects(
            "the scheduler mixes prompts and running sequences in every step",
            "WAITING_SERVED_RATIO",
            "MAX_WAITING_TOKENS",
            "PREFILL_CHUNKING",
        ),
        *no_effects("the engine chooses how it runs the model", "CUDA_GRAPHS"),
        *no_effects(
            "there is one attention backend for each kind of device", "ATTENTION", "USE_FLASH_ATTENTION"
        ),
        *no_effects("speculation changes speed, not answers, and is not built yet", "SPECULATE"),
        *no_effects(
            "logprobs of the prompt are always available", "ENABLE_PREFILL_LOGPROBS", "REQUEST_LOGPROBS"
        ),
        *no_effects("metrics are on the serving port", "PROMETHEUS_PORT"),
        *no_effects("processes meet in a private folder of each container", "SHARD_UDS_PATH"),
        *no_effects("ranks meet through a file, not over TCP", "MASTER_ADDR", "MASTER_PORT"),
        *no_effects(
            "the kernels it steers do not exist here",
            "DISABLE_CUSTOM_KERNELS",
            "DISABLE_EXLLAMA",
            "EXLLAMA_VERSION",
            "USE_CUTLASS_W8A8",
            "XPU_MEMORY_FRACTION",
        ),
        *no_effects("nothing is reported to anyone", "USAGE_STATS"),
        *no_effects("tunnels are not offered", "NGROK_AUTHTOKEN", "NGROK_EDGE"),
        *no_effects("chats are always on", "MESSAGES_API_ENABLED"),
        *no_effects("memory is measured, not estimated; see CUDA_MEMORY_FRACTION", "TGI_WIGGLE_ROOM"),
        *no_effects("models take text only, no images are fetched", "MAX_IMAGE_FETCH_SIZE"),
        *no_effects("the log has no colours", "LOG_COLORIZE"),
        *no_effects("no reply names the compute type", "COMPUTE_TYPE"),
    ),
)
