"""Text to token ids and the table back, from tokenizer.json. Runs no code of a model, knows no requests."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import msgspec
import tokenizers

from serving.errors import InvalidRequest, ModelError
from serving.text.model_files import SpecialTokens, read_special_tokens
from serving.text.token_bytes import TokenBytes
from serving.vocabulary import Vocabulary

# From this length on `encode` goes through the batch call, which releases the GIL while it works.
LONG_TEXT_CHARS = 4096
NUM_VERIFIED_TOKENS = 4096


class _TokenizerFile(msgspec.Struct):
    """The one part of tokenizer.json that we read ourselves."""

    decoder: dict[str, object] | None = None


class TokenSpan(msgspec.Struct, frozen=True):
    """A token of a text and where it comes from: `start` and `stop` count UTF-8 bytes, `text` is what lies between.

    Tokens that share a character all have its span; a token that the text does not spell has an empty one at 0.
    """

    id: int
    text: str
    start: int
    stop: int


class Tokenizer:
    """A tokenizer and its `vocabulary`. Immutable after construction: any thread may encode.

    The spelling of a special token in a text becomes that token, as in TGI: prompts carry templates as text.
    What stands around a text is the post-processor's decision; `add_bos_token` and its like in tokenizer_config.json
    are from before tokenizer.json and ignored, as transformers 5 does.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, vocabulary: Vocabulary, named_tokens: dict[str, str]
    ) -> None:
        """Use `from_dir`. `named_tokens` maps `bos_token`, `eos_token`, … to their text."""
        self._backend = backend
        self.vocabulary = vocabulary
        self.named_tokens = named_tokens

    @classmethod
    def from_dir(cls, model_dir: str | Path) -> Tokenizer:
        """Read a model folder. Raises `ModelError` with the fix when it is damaged or not supported."""
        path = Path(model_dir) / "tokenizer.json"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ModelError(
                f"{path} cannot be read ({error.strerror}): save the model with a fast tokenizer "
                "(`AutoTokenizer.from_pretrained(model).save_pretrained(folder)` writes tokenizer.json)"
            ) from error
        try:
            decoder = msgspec.json.decode(content, type=_TokenizerFile).decoder
            # The library raises ValueError for a description it does not know.
            backend = tokenizers.Tokenizer.from_buffer(content)
        except (msgspec.DecodeError, ValueError) as error:
            raise ModelError(
                f"{path} is not a tokenizer we can load ({error}): download the model again"
            ) from error
        # Both can be saved inside tokenizer.json, and would cut or fill prompts silently.
        backend.no_truncation()
        backend.no_padding()
        special = read_special_tokens(Path(model_dir))
        vocabulary = _read_vocabulary(backend, TokenBytes(decoder), special)
        return cls(backend, vocabulary, special.named)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Raises `InvalidRequest` when it holds a lone surrogate."""
        if len(text) >= LONG_TEXT_CHARS:
            return self.encode_batch([text], add_special_tokens=add_special_tokens)[0]
        _require_unicode(text)
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of every text; other threads run meanwhile. Raises `InvalidRequest` as `encode` does."""
        for text in texts:
            _require_unicode(text)
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def spans(self, text: str, *, add_special_tokens: bool = True) -> list[TokenSpan]:
        """Every token of `text` with its place in it. Raises `InvalidRequest` as `encode` does."""
        _require_unicode(text)
        [encoding] = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)
        byte_at = range(len(text) + 1) if text.isascii() else _byte_positions(text)
        return [
            TokenSpan(token_id, text[start:stop], byte_at[start], byte_at[stop])
            for token_id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]


def _byte_positions(text: str) -> list[int]:
    """Where each character begins in the UTF-8 form of `text`, and its length at last."""
    return [0, *itertools.accumulate(len(char.encode("utf-8")) for char in text)]


def _require_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"U+{ord(text[error.start]):04X}"
        raise InvalidRequest(
            f"`inputs` holds the lone surrogate {code} at character {error.start}, must be valid Unicode",
            field="inputs",
        ) from error


def _read_vocabulary(
    backend: tokenizers.Tokenizer, bytes_of: TokenBytes, special: SpecialTokens
) -> Vocabulary:
    text_of = {token_id: text for text, token_id in backend.get_vocab(with_added_tokens=True).items()}
    if not text_of:
        raise ModelError("tokenizer.json has an empty vocabulary: download the model again")
    added = backend.get_added_tokens_decoder()
    eos_token_ids = set(special.eos_token_ids)
    eos = backend.token_to_id(special.named["eos_token"]) if "eos_token" in special.named else None
    if eos is not None and not special.eos_is_list:
        eos_token_ids.add(eos)
    hidden = {
        token_id for token_id, token in added.items() if token.special or token.content in special.others
    }
    for name, text in special.named.items():
        token_id = backend.token_to_id(text)
        # A pad or unk token that is an ordinary piece of text, as some folders have it, must stay visible.
        if token_id is not None and (token_id in added or name in ("bos_token", "eos_token")):
            hidden.add(token_id)
    hidden |= {token_id for token_id in eos_token_ids if token_id in added}
    token_bytes = [b""] * (max(text_of) + 1)
    special_text = {token_id: text_of.pop(token_id) for token_id in sorted(hidden)}
    for token_id, text in text_of.items():
        token_bytes[token_id] = bytes_of(text)
    _verify(backend, token_bytes, text_of)
    return Vocabulary(
        token_bytes=tuple(token_bytes),
        special_text=special_text,
        eos_token_ids=frozenset(eos_token_ids),
    )


def _verify(backend: tokenizers.Tokenizer, token_bytes: list[bytes], text_of: dict[int, str]) -> None:
    """Compare the bytes of a sample of tokens with the library's own decoding of them behind a letter."""
    ids = sorted(text_of)
    # Spelled with letters too: a byte token such as <0x41> would merge with the bytes that follow it.
    anchor = next((n for n in ids if token_bytes[n].isalpha() and text_of[n].isalpha()), None)
    if anchor is None:
        raise ModelError("tokenizer.json has no token made of letters: its texts cannot be verified")
    sample = ids[:: max(1, len(ids) // NUM_VERIFIED_TOKENS)]
    prefix = backend.decode([anchor], skip_special_tokens=False)
    decoded = backend.decode_batch([[anchor, token_id] for token_id in sample], skip_special_tokens=False)
    for token_id, text in zip(sample, decoded, strict=True):
        if text != prefix + token_bytes[token_id].decode("utf-8", "replace"):
            raise ModelError(
                f"token {token_id} decodes to {text.removeprefix(prefix)!r}, but its bytes are "
                f"{token_bytes[token_id]!r}: this tokenizer's decoder is not supported"
            )
