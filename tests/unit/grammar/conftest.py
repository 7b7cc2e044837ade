"""The demo model's vocabulary and a compiler for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.grammar.compiler import GrammarCompiler
from serving.text.tokenizer import Tokenizer

# Larger than the tokenizer's 2,048, as many models have it.
VOCAB_SIZE = 2100
EOS = [6, 1]


@pytest.fixture(scope="session")
def tokenizer(demo_model_dir: Path) -> Tokenizer:
    return Tokenizer.from_dir(demo_model_dir)


@pytest.fixture(scope="session")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(
        tokenizer.vocabulary,
        lambda text: tokenizer.encode(text, add_special_tokens=False),
        vocab_size=VOCAB_SIZE,
        eos_token_ids=EOS,
    )
