"""Names of the Hugging Face toolkits and images that are not TGI's."""

from __future__ import annotations

from container.families.family import Alias, Family, Refusal, no_effects

HUGGING_FACE = Family(
    title="Hugging Face (`HF_*`)",
    aliases=(
        Alias("HF_REVISION", "model.revision"),
        Alias("HF_TRUST_REMOTE_CODE", "model.trust_remote_code"),
    ),
    refusals=(
        Refusal(
            "HF_TASK",
            "only the task text-generation is served",
            frozenset({"text-generation", "conversational"}),
        ),
    ),
    no_effects=(
        *no_effects(
            "models are looked for in /opt/ml/model; see MODEL_ID and SAGEMAKER_BASE_DIR", "HF_MODEL_DIR"
        ),
        *no_effects("the weights' format is found by itself", "HF_FRAMEWORK"),
        *no_effects(
            "KV blocks stay on the device, nothing is offloaded",
            "HF_ENABLE_LMCACHE",
            "HF_ENABLE_KV_OFFLOAD",
        ),
        *no_effects("safetensors are read in parallel without a streamer", "HF_ENABLE_RUNAI_STREAMER"),
        *no_effects("it steers Neuron devices, which are not supported", "HF_OPTIMUM_BATCH_SIZE"),
        *no_effects("it steers Neuron devices, which are not supported", "HF_OPTIMUM_SEQUENCE_LENGTH"),
    ),
)

# Read by huggingface_hub, datasets and transformers themselves.
LIBRARY_NAMES = frozenset(
    {"HF_HOME", "HF_ENDPOINT", "HF_TOKEN_PATH", "HF_ASSETS_CACHE", "HF_MODULES_CACHE", "HF_DEBUG"}
)
LIBRARY_PREFIXES = ("HF_HUB_", "HF_XET_", "HF_DATASETS_", "HF_INFERENCE_", "HF_EVALUATE_")
