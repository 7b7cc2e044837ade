"""Token ids to text, one token at a time, byte exact. Knows bytes and UTF-8, nothing of stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from serving.vocabulary import Vocabulary

_MAX_UTF8_BYTES = 4


class IncrementalDetokenizer:
    """The texts of all `push` and one `flush` join to `all_bytes.decode("utf-8", "replace")` of the whole.

    A character shows as soon as its last byte is there. Special and unknown ids add nothing.
    """

    __slots__ = ("_pending", "_token_bytes")

    def __init__(self, vocabulary: Vocabulary, *, prompt_token_ids: Sequence[int] = ()) -> None:
        """A character that begins in the last bytes of `prompt_token_ids` is completed by what is pushed."""
        self._token_bytes = vocabulary.token_bytes
        self._pending = b""
        for token_id in prompt_token_ids[-_MAX_UTF8_BYTES:]:
            self.push(token_id)

    def push(self, token_id: int) -> str:
        """The text that this token completes, "" while a character still lacks bytes."""
        table = self._token_bytes
        # A model may have more rows than its tokenizer has tokens.
        data = table[token_id] if 0 <= token_id < len(table) else b""
        if self._pending:
            data = self._pending + data
        text, consumed = codecs.utf_8_decode(data, "replace", False)
        self._pending = data[consumed:] if consumed < len(data) else b""
        return text

    def flush(self) -> str:
        """End the text: U+FFFD for a character that never got its last byte, else ""."""
        text = self._pending.decode("utf-8", "replace")
        self._pending = b""
        return text
