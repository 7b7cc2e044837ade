"""Torch-free table of the bytes of every token, for detokenizing and grammars. Knows nothing of files or requests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`token_bytes[id]` are the bytes token `id` adds to a running text (b"" for special tokens and for unused ids).

    `special_ids` are the tokens that never show in generated text; `special_text[id]` is how they are spelled.
    """

    token_bytes: tuple[bytes, ...]
    special_text: dict[int, str]
    eos_token_ids: frozenset[int]

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self.special_text)

    def __len__(self) -> int:
        return len(self.token_bytes)
