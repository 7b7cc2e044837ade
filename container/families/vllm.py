"""The vLLM images: `SM_VLLM_X` is vLLM's flag `--x`."""

from __future__ import annotations

from container.families.engine_flags import flag_aliases, flag_no_effects, flag_refusals
from container.families.family import (
    NO_CONFIG_OVERRIDE,
    NONE,
    Alias,
    Family,
    Refusal,
    address,
    names,
    negated,
    no_effects,
    one_of,
    refusals,
)
from container.fields import INTEGER

PREFIX = "SM_VLLM_"

_UNITS = {"k": 10**3, "m": 10**6, "K": 2**10, "M": 2**20}
_TOKENS = "a whole number at least 1, also 8k (8000), 8K (8192), or auto"
_TOOL_FORMATS = {
    "deepseek_v3": "deepseek_v3",
    "deepseek_v31": "deepseek_v31",
    "granite": "granite",
    "hermes": "hermes",
    "llama3_json": "llama3_json",
    "llama4_json": "llama3_json",
    "llama4_pythonic": "pythonic",
    "mistral": "mistral",
    "pythonic": "pythonic",
}
_REASONING_FORMATS = {
    "deepseek_r1": "think",
    "granite": "granite",
    "mistral": "mistral",
    "qwen3": "think",
}


def _tokens(text: str) -> int | None:
    """vLLM's counts: 4096, 8k, 8K, and -1 or auto for what the model allows."""
    if text.lower() in ("auto", "-1"):
        return None
    digits, unit = (text[:-1], _UNITS[text[-1]]) if text[-1] in _UNITS else (text, 1)
    if not INTEGER.fullmatch(digits) or int(digits) < 1:
        raise ValueError(text)
    return int(digits) * unit


def _alternatives(choices: dict[str, str]) -> str:
    return f"{', '.join(choices)}; unset it to have the format found in the chat template"


VLLM = Family(
    title="vLLM images (`SM_VLLM_*`)",
    aliases=(
        Alias("SM_VLLM_MODEL", "model.model_id"),
        *flag_aliases(PREFIX),
        Alias("SM_VLLM_QUANTIZATION", "model.quantize"),
        Alias("SM_VLLM_TENSOR_PARALLEL_SIZE", "parallel.num_ranks"),
        Alias("SM_VLLM_MAX_MODEL_LEN", "limits.max_total_tokens", _tokens, _TOKENS),
        Alias("SM_VLLM_MAX_NUM_BATCHED_TOKENS", "scheduler.max_batch_prefill_tokens", _tokens, _TOKENS),
        Alias(
            "SM_VLLM_NO_ENABLE_PREFIX_CACHING",
            "cache.prefix_caching",
            negated("cache.prefix_caching"),
            note="the opposite",
        ),
        Alias(
            "SM_VLLM_DISABLE_CUSTOM_ALL_REDUCE",
            "parallel.one_shot_all_reduce",
            negated("parallel.one_shot_all_reduce"),
            note="the opposite",
        ),
        Alias(
            "SM_VLLM_SERVED_MODEL_NAME",
            "model.served_names",
            names,
            "a name, several with commas between them, or a JSON array of them",
        ),
        Alias(
            "SM_VLLM_TOOL_CALL_PARSER",
            "model.tool_format",
            one_of(_TOOL_FORMATS),
            _alternatives(_TOOL_FORMATS),
            note="vLLM's names: "
            + ", ".join(f"{key} = {value}" for key, value in _TOOL_FORMATS.items() if key != value),
        ),
        Alias(
            "SM_VLLM_REASONING_PARSER",
            "model.reasoning_format",
            one_of(_REASONING_FORMATS),
            _alternatives(_REASONING_FORMATS),
            note="vLLM's names: deepseek_r1 and qwen3 = think",
        ),
        Alias("SM_VLLM_API_KEY", "http.api_key"),
        Alias("SM_VLLM_PORT", "http.port", yields_to=("SAGEMAKER_BIND_TO_PORT",)),
        Alias("SM_VLLM_HOST", "http.host", address, "an IP address such as 0.0.0.0"),
        Alias(
            "SM_VLLM_ALLOWED_ORIGINS",
            "http.cors_allow_origin",
            names,
            "an origin, several with commas between them, or a JSON array of them",
        ),
        Alias("SM_VLLM_MAX_LOGPROBS", "limits.max_top_n_tokens"),
    ),
    refusals=(
        *flag_refusals(PREFIX),
        *refusals(NO_CONFIG_OVERRIDE, "SM_VLLM_OVERRIDE_GENERATION_CONFIG", "SM_VLLM_ROPE_THETA"),
        *refusals(NO_CONFIG_OVERRIDE, "SM_VLLM_GENERATION_CONFIG", harmless=frozenset({"auto"})),
        *refusals(
            "only safetensors are loaded", "SM_VLLM_LOAD_FORMAT", harmless=frozenset({"auto", "safetensors"})
        ),
        *refusals("the tokenizer is the model's", "SM_VLLM_TOKENIZER", "SM_VLLM_TOKENIZER_REVISION"),
        Refusal("SM_VLLM_TASK", "only text generation is served", frozenset({"auto", "generate"})),
        Refusal("SM_VLLM_RUNNER", "only text generation is served", frozenset({"auto", "generate"})),
        Refusal("SM_VLLM_KV_TRANSFER_CONFIG", "prompts and answers are computed by the same engine", NONE),
    ),
    no_effects=(
        *flag_no_effects(PREFIX),
        *no_effects("each request has a seed of its own; it may name one", "SM_VLLM_SEED"),
        *no_effects(
            "tool calls are always found when a request brings tools", "SM_VLLM_ENABLE_AUTO_TOOL_CHOICE"
        ),
        *no_effects(
            "the engine chooses how it runs the model",
            "SM_VLLM_COMPILATION_CONFIG",
            "SM_VLLM_MAX_SEQ_LEN_TO_CAPTURE",
            "SM_VLLM_DISTRIBUTED_EXECUTOR_BACKEND",
            "SM_VLLM_SCHEDULING_POLICY",
            "SM_VLLM_ASYNC_SCHEDULING",
        ),
        *no_effects("preempted sequences are computed again, not swapped", "SM_VLLM_SWAP_SPACE"),
        *no_effects(
            "LOG_LEVEL and LOG_PROMPTS say what is logged",
            "SM_VLLM_DISABLE_LOG_REQUESTS",
            "SM_VLLM_ENABLE_LOG_REQUESTS",
            "SM_VLLM_DISABLE_LOG_STATS",
            "SM_VLLM_UVICORN_LOG_LEVEL",
            "SM_VLLM_MAX_LOG_LEN",
        ),
        *no_effects("models take text only", "SM_VLLM_LIMIT_MM_PER_PROMPT", "SM_VLLM_MM_PROCESSOR_KWARGS"),
        *no_effects("templates say themselves how they take content", "SM_VLLM_CHAT_TEMPLATE_CONTENT_FORMAT"),
        *no_effects("the tokenizer's file says which it is", "SM_VLLM_TOKENIZER_MODE"),
        *no_effects("model files are kept under HF_HOME", "SM_VLLM_DOWNLOAD_DIR"),
    ),
)
