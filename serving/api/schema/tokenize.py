"""Bodies and answers of `/tokenize` and `/chat_tokenize`. Knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from serving.api.schema.openai_chat import ChatCompletionRequest
from serving.errors import InvalidRequest
from serving.vocabulary import Vocabulary

MAX_CHARS = 1024 * 1024
"""Longest text that is taken apart: each of its tokens becomes an object of the answer."""


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """Body of `POST /tokenize`: that of `/generate`, whose parameters change no token."""

    inputs: Annotated[str, Meta(description="the text", extra_json_schema={"maxLength": MAX_CHARS})]
    parameters: dict[str, Any] | UnsetType = UNSET


class ChatTokenizeRequest(ChatCompletionRequest, kw_only=True):
    """Body of `POST /chat_tokenize`: that of `/v1/chat/completions`. Fields that nobody knows are named, not refused."""


class TokenizedText(msgspec.Struct, frozen=True):
    """One token of the text."""

    id: int
    text: Annotated[
        str,
        Meta(
            description="the part of the text it stands for; empty for a token that the text does not spell"
        ),
    ]
    start: Annotated[int, Meta(description="where the part begins, in bytes of the UTF-8 text", ge=0)]
    stop: Annotated[int, Meta(description="the byte behind the part", ge=0)]


class ChatTokenizeReply(msgspec.Struct, frozen=True):
    tokenize_response: list[TokenizedText]
    templated_text: Annotated[str, Meta(description="the prompt that the chat template makes")]


def check_length(text: str, field: str) -> None:
    """Raises `InvalidRequest` naming `field`."""
    if len(text) > MAX_CHARS:
        raise InvalidRequest(
            f"`{field}` must have at most {MAX_CHARS} characters here. Given: {len(text)}", field=field
        )


def placed(token_ids: Sequence[int], text: str, vocabulary: Vocabulary) -> list[TokenizedText]:
    """`token_ids` with the places of their bytes in `text`, one behind the other. A token whose bytes do not come next is
    given an empty place; only the space that some tokenizers put in front of a text may be missing there."""
    data, at = text.encode("utf-8"), 0
    tokens = []
    for token_id in token_ids:
        spelling = vocabulary.special_text.get(token_id)
        known = 0 <= token_id < len(vocabulary)
        piece = (
            spelling.encode() if spelling is not None else vocabulary.token_bytes[token_id] if known else b""
        )
        if not data.startswith(piece, at):
            piece = piece[1:] if piece[:1] == b" " and data.startswith(piece[1:], at) else b""
        tokens.append(TokenizedText(token_id, piece.decode("utf-8", "replace"), at, at + len(piece)))
        at += len(piece)
    return tokens
