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
        tail = b"".join(self._bytes(token_id) for token_id in prompt_token_ids[-_MAX_UTF8_BYTES:])
        _, consumed = codecs.utf_8_decode(tail, "replace", False)
        self._pending = tail[consumed:]

    def push(self, token_id: int) -> str:
        """The text that this token completes, "" while a character still lacks bytes."""
        data = self._pending + self._bytes(token_id)
        text, consumed = codecs.utf_8_decode(data, "replace", False)
        self._pending = data[consumed:]
        return text

    def flush(self) -> str:
        """End the text: U+FFFD for a character that never got its last byte, else ""."""
        text = self._pending.decode("utf-8", "replace")
        self._pending = b""
        return text

    def _bytes(self, token_id: int) -> bytes:
        # A model may have more rows than its tokenizer has tokens.
        return self._token_bytes[token_id] if 0 <= token_id < len(self._token_bytes) else b""
