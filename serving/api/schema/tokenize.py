"""Bodies and answers of `/tokenize` and `/chat_tokenize`. Knows nothing of HTTP."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from serving.errors import InvalidRequest

MAX_CHARS = 1024 * 1024
"""Longest text that is taken apart: each of its tokens becomes an object of the answer."""


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """Body of `POST /tokenize`: that of `/generate`, whose parameters change no token."""

    inputs: Annotated[str, Meta(description="the text", extra_json_schema={"maxLength": MAX_CHARS})]
    parameters: dict[str, Any] | UnsetType = UNSET


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
