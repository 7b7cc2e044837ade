"""Vocabularies and model folders for the text tests, made on the spot: nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from serving.vocabulary import Vocabulary

CORPUS = [
    "Once upon a time there was a small town by the sea, and in the town a girl who counted the boats.",
    "def count(boats):\n    return sum(1 for boat in boats)\n\n\tUser: how many?\r\n",
    "家族が海辺の町に住んでいた。 猫は魚が好きです。 小镇在海边。",
    "كان يا ما كان في قديم الزمان 12345 שלום עולם",
    "👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽 ñandú façade Ελλάδα žluťoučký",
]
TEXTS = [
    *CORPUS,
    "a",
    " leading and trailing ",
    "\ufffd stays \ufffd",
    "  two  spaces  \n\n",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff",
]


def byte_level(specials: Iterable[str] = ("<s>", "</s>", "<pad>")) -> tokenizers.Tokenizer:
    """Byte-level BPE as GPT-2, Llama 3 and Qwen have it."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


def sentencepiece() -> tokenizers.Tokenizer:
    """BPE over ▁ pieces with byte fallback and the decoder chain of Llama 2."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz", "家", "猫", "▁t", "he", "▁the", "▁a"]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: n for n, piece in enumerate(pieces)},
            merges=[("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "a")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def metaspace() -> tokenizers.Tokenizer:
    """Unigram pieces with the Metaspace decoder, as T5 and the first Llama conversions have it."""
    pieces = ["<unk>", "</s>", "▁", "▁the", "▁town", "s", *"abcdefghijklmnopqrstuvwxyz", "海", "é"]
    tokenizer = tokenizers.Tokenizer(
        models.Unigram([(piece, -float(n)) for n, piece in enumerate(dict.fromkeys(pieces))], unk_id=0)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer


def write_folder(folder: Path, tokenizer: tokenizers.Tokenizer, **files: object) -> Path:
    """Save `tokenizer` as tokenizer.json, and every keyword as `<keyword>.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def of_pieces(*pieces: bytes | str, special: Iterable[str] = (), eos: Iterable[int] = ()) -> Vocabulary:
    """Token n is `pieces[n]`; the special tokens follow."""
    token_bytes = tuple(piece.encode() if isinstance(piece, str) else piece for piece in pieces)
    special_text = {len(token_bytes) + n: text for n, text in enumerate(special)}
    return Vocabulary((*token_bytes, *(b"" for _ in special_text)), special_text, frozenset(eos))
