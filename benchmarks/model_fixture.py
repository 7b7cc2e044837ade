"""Random-weight models of a stated shape with a tokenizer of their own, for measurements that need no meaning."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {
    "32m": {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1408, "vocab_size": 8192},
    "507m": {"hidden_size": 1280, "num_hidden_layers": 24, "intermediate_size": 3584, "vocab_size": 32768},
}
_HEADS = {"32m": (8, 4), "507m": (20, 4)}
_SYLLABLES = [first + vowel for first in "bcdfghjklmnprstvwz" for vowel in "aeiou"]


def words(count: int, seed: int) -> list[str]:
    """Pronounceable random words."""
    rng = random.Random(seed)
    return ["".join(rng.choices(_SYLLABLES, k=rng.randrange(1, 5))) for _ in range(count)]


def write_model(shape: str, folder: Path, *, seed: int = 0) -> Path:
    """Write the model once; later calls find it. float32, no end-of-sequence token, context 2,048."""
    if (folder / "complete").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    num_heads, num_kv_heads = _HEADS[shape]
    config = LlamaConfig(
        **SHAPES[shape],
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = model.generation_config.bos_token_id = None
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPES[shape]["vocab_size"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((" ".join(words(50, line)) for line in range(20_000)), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 2048}))
    (folder / "complete").touch()
    return folder
