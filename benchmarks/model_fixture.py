"""Random-weight models of a stated shape with a tokenizer of their own, for measurements that need no meaning."""

from __future__ import annotations

import json
import random
import shutil
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {
    "32m": {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1408, "vocab_size": 8192},
    "507m": {"hidden_size": 1280, "num_hidden_layers": 24, "intermediate_size": 3584, "vocab_size": 32768},
}
DEFAULT_FOLDER = Path.home() / ".cache" / "textgen-endpoint" / "models"
_HEADS = {"32m": (8, 4), "507m": (20, 4)}
_SYLLABLES = [first + vowel for first in "bcdfghjklmnprstvwz" for vowel in "aeiou"]
# Names the class, so that no engine guesses Llama's SentencePiece tokenizer from the architecture.
_TOKENIZER_CLASS = "PreTrainedTokenizerFast"
_FORMAT = "2"


def words(count: int, seed: int) -> list[str]:
    """Pronounceable random words."""
    rng = random.Random(seed)
    return ["".join(rng.choices(_SYLLABLES, k=rng.randrange(1, 5))) for _ in range(count)]


def write_model(shape: str, folder: Path | None = None, *, seed: int = 0, context: int = 2048) -> Path:
    """Write the model once; later calls find it. float32, no end-of-sequence token.

    Without a folder it is kept in the user's cache, one folder for each shape, seed and context.
    """
    folder = folder or DEFAULT_FOLDER / f"{shape}-seed{seed}-context{context}"
    marker = folder / "complete"
    wanted = json.dumps({"format": _FORMAT, "shape": shape, "seed": seed, "context": context})
    if marker.exists() and marker.read_text() == wanted:
        return folder
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    _write_weights(shape, unfinished, seed=seed, context=context)
    _write_tokenizer(SHAPES[shape]["vocab_size"], unfinished, context=context)
    (unfinished / "complete").write_text(wanted)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return folder


def prompt_ids(model: Path, count: int, seed: int) -> list[int]:
    """`count` token ids whose text is tokenized to the same ids again, so that a route may take either."""
    return random.Random(seed).choices(_whole_words(model / "tokenizer.json"), k=count)


@cache
def _whole_words(tokenizer_file: Path) -> list[int]:
    """Tokens that are a space and a word: a text of these is split at the spaces, and each is one token."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    texts = {
        index: token[1:]
        for token, index in tokenizer.get_vocab().items()
        if len(token) > 1 and token[0] == "Ġ" and token[1:].isascii() and token[1:].isalpha()
    }
    return sorted(index for index, text in texts.items() if tokenizer.encode(f" {text}").ids == [index])


def _write_weights(shape: str, folder: Path, *, seed: int, context: int) -> None:
    torch.manual_seed(seed)
    num_heads, num_kv_heads = _HEADS[shape]
    config = LlamaConfig(
        **SHAPES[shape],
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = model.generation_config.bos_token_id = None
    model.save_pretrained(folder)


def _write_tokenizer(vocab_size: int, folder: Path, *, context: int) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((" ".join(words(50, line)) for line in range(20_000)), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": context, "tokenizer_class": _TOKENIZER_CLASS})
    )
