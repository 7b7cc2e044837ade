"""Streams as the server writes them, and texts that are hard to cut."""

from __future__ import annotations

import random
from collections.abc import Sequence

from serving.api.native_reply import StreamDetails, StreamEvent, Token
from serving.api.schema.openai_answers import ChatChunkChoice, ChatCompletionChunk, ChatDelta
from serving.api.streaming import SSE, Framing

HARD_TEXTS = (
    "plain words, one after the other",
    "Grüße, naïve café – «quotes» …",
    "日本語の文章と한국어 문장, 中文也在这里。",
    "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 🇪🇺 👍🏽 e\u0301\u0323",
    "line\nbreaks\r\nand\ttabs \u2028 \u2029 \u0085 data: [DONE]\n\n: comment",
    '{"error": "only text"} \\u0041 "quoted" \\',
    "\U0001f600" * 40,
)
_ALPHABETS = ("abc XYZ 09 ,.\n", "äöüßéñ", "日本語한국中文", "😀👍🏽🏳️‍🌈\u200d", '\u0000\u2028\r\n\t"\\')


def random_text(rng: random.Random, longest: int = 60) -> str:
    return "".join(rng.choice(rng.choice(_ALPHABETS)) for _ in range(rng.randrange(1, longest)))


def pieces_of(text: str, rng: random.Random) -> list[str]:
    """`text` in tokens of one to five characters, with empty ones as an incomplete character makes them."""
    pieces, start = [], 0
    while start < len(text):
        size = rng.randrange(0, 6)
        pieces.append(text[start : start + size])
        start += size
    return pieces or [""]


def native_stream(
    pieces: Sequence[str], *, framing: Framing = SSE, heartbeat_every: int = 0, details: bool = True
) -> bytes:
    """The last token is the end-of-sequence token, whose spelling is no part of the text."""
    text, data = "".join(pieces), b""
    for index, piece in enumerate(pieces, start=1):
        if heartbeat_every and index % heartbeat_every == 0:
            data += framing.keep_alive
        data += framing.frame(StreamEvent(index=index, token=Token(index, piece, -0.5, False)))
    last = StreamEvent(
        index=len(pieces) + 1,
        token=Token(2, "</s>", -0.1, True),
        generated_text=text,
        details=StreamDetails(
            finish_reason="eos_token", generated_tokens=len(pieces) + 1, seed=None, input_length=3
        )
        if details
        else None,
    )
    return data + framing.frame(last)


def chat_stream(pieces: Sequence[str], *, framing: Framing = SSE, heartbeat_every: int = 0) -> bytes:
    data = framing.frame(_chunk(ChatChunkChoice(index=0, delta=ChatDelta(role="assistant", content=""))))
    for index, piece in enumerate(pieces, start=1):
        if heartbeat_every and index % heartbeat_every == 0:
            data += framing.keep_alive
        data += framing.frame(_chunk(ChatChunkChoice(index=0, delta=ChatDelta(content=piece))))
    data += framing.frame(_chunk(ChatChunkChoice(index=0, delta=ChatDelta(), finish_reason="stop")))
    return data + framing.end


def _chunk(choice: ChatChunkChoice) -> ChatCompletionChunk:
    return ChatCompletionChunk(
        id="chatcmpl-1", created=1, model="demo", system_fingerprint="fp", choices=[choice]
    )
