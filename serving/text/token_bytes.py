"""Derives the bytes of a token from the tokenizer's decoder description, and refuses decoders it cannot.

Knows the decoders of the `tokenizers` library; knows nothing of files, requests or special tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from serving.errors import ModelError

TextStep = Callable[[str], str]
SUPPORTED = "ByteLevel, Metaspace, and sequences of Replace, ByteFallback, Fuse, Strip and these"


class TokenBytes:
    """Call it with a token as the vocabulary spells it: the bytes it adds in the middle of a text.

    What a decoder does only at the very start of a text (dropping the space that SentencePiece put there) is
    left out on purpose: generated text always follows a prompt.
    """

    def __init__(self, decoder: object) -> None:
        """`decoder` is that of tokenizer.json. Raises `ModelError` naming a decoder we cannot derive."""
        self._steps: list[TextStep] = []
        self._byte_fallback = False
        self._byte_level = False
        self._fused = False
        self._add(decoder)

    def __call__(self, token: str) -> bytes:
        for step in self._steps:
            token = step(token)
        if self._byte_level:
            return _byte_level_bytes(token)
        if self._byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes((int(token[3:5], 16),))
            except ValueError:
                pass
        return token.encode("utf-8")

    def _add(self, decoder: object) -> None:
        if not isinstance(decoder, Mapping):
            raise ModelError(
                f"tokenizer.json has no decoder, so token texts are unknown: supported are {SUPPORTED}"
            )
        kind = decoder.get("type")
        if kind == "Sequence":
            for part in decoder.get("decoders", []):
                self._add(part)
        elif kind == "ByteLevel":
            self._byte_level = True
        elif kind == "ByteFallback":
            self._byte_fallback = True
        elif kind == "Fuse":
            self._fused = True
        elif kind == "Metaspace":
            self._steps.append(_replace(str(decoder.get("replacement", "▁")), " "))
        elif kind == "Replace":
            self._steps.append(_replace_step(decoder))
        elif kind == "Strip":
            self._add_strip(decoder)
        else:
            raise ModelError(f"tokenizer.json has a decoder of type {kind!r}, supported are {SUPPORTED}")

    def _add_strip(self, decoder: Mapping[str, object]) -> None:
        content = str(decoder.get("content", " "))
        start, stop = decoder.get("start", 0), decoder.get("stop", 0)
        if not isinstance(start, int) or not isinstance(stop, int) or (stop and self._fused):
            raise ModelError(
                f"tokenizer.json has a decoder that cuts the end of texts, not supported: {dict(decoder)!r}"
            )
        if not self._fused:
            self._steps.append(lambda token: _strip(token, content, start, stop))


def byte_alphabet() -> dict[str, int]:
    """The characters that spell the 256 bytes in a byte-level vocabulary (the table published with GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = byte_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    # A token with one character outside the alphabet is an added token, spelled as plain text.
    try:
        return bytes([_BYTE_OF[char] for char in token])
    except KeyError:
        return token.encode("utf-8")


def _replace(old: str, new: str) -> TextStep:
    return lambda token: token.replace(old, new)


def _replace_step(decoder: Mapping[str, object]) -> TextStep:
    pattern, content = decoder.get("pattern"), decoder.get("content")
    old = pattern.get("String") if isinstance(pattern, Mapping) else None
    if not isinstance(old, str) or not old or not isinstance(content, str):
        raise ModelError(
            f"tokenizer.json has a decoder that replaces more than a string, not supported: {dict(decoder)!r}"
        )
    return _replace(old, content)


def _strip(token: str, content: str, start: int, stop: int) -> str:
    for _ in range(start):
        token = token.removeprefix(content)
    for _ in range(stop):
        token = token.removesuffix(content)
    return token
