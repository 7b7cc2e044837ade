"""Log-probabilities in OpenAI's two shapes, chat's list of tokens and the columns of completions. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from serving.api.roles import PromptTokenText, SpelledToken, TokenText
from serving.api.schema.openai_answers import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from serving.messages import TopToken
from serving.text.sequence_text import spell
from serving.vocabulary import Vocabulary

_LEAST = -9999.0
"""What OpenAI shows for a probability of 0, which has no logarithm that JSON knows."""


def chat_logprobs(
    tokens: Sequence[TokenText], vocabulary: Vocabulary, num_top: int | None
) -> ChatLogprobs | None:
    """With `num_top` None nothing was asked for."""
    if num_top is None:
        return None
    return ChatLogprobs(content=[_token(token, vocabulary, num_top) for token in tokens])


class CompletionColumns:
    """The columns of one choice of a completion; offsets go on from one portion to the next."""

    def __init__(self, vocabulary: Vocabulary, num_top: int) -> None:
        self._vocabulary = vocabulary
        self._num_top = num_top
        self._offset = 0

    def of_prompt(
        self, tokens: Sequence[PromptTokenText], top_tokens: Sequence[Sequence[TopToken]] | None
    ) -> CompletionLogprobs:
        """Columns of an echoed prompt. Special tokens have a row each and no place in the text."""
        offsets: list[int] = []
        special = self._vocabulary.special_text
        for token in tokens:
            offsets.append(self._offset)
            self._offset += 0 if token.id in special else len(token.text)
        tops: list[dict[str, float] | None] = []
        for i, token in enumerate(tokens):
            likeliest = top_tokens[i] if top_tokens is not None and i < len(top_tokens) else []
            tops.append(None if token.logprob is None else self._top_of_prompt(token, likeliest))
        return CompletionLogprobs(
            tokens=[token.text for token in tokens],
            token_logprobs=[None if t.logprob is None else _finite(t.logprob) for t in tokens],
            top_logprobs=tops if self._num_top else None,
            text_offset=offsets,
        )

    def of(self, tokens: Sequence[TokenText]) -> CompletionLogprobs:
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token.text)
        return CompletionLogprobs(
            tokens=[token.text for token in tokens],
            token_logprobs=[_finite(token.logprob) for token in tokens],
            top_logprobs=[self._top(token) for token in tokens] if self._num_top else None,
            text_offset=offsets,
        )

    def _top(self, token: TokenText) -> dict[str, float]:
        """The likeliest tokens and the chosen one, so up to one more than asked for."""
        likeliest = {self._name(top.id): _finite(top.logprob) for top in (token.top or ())[: self._num_top]}
        return {**likeliest, self._name(token.id): _finite(token.logprob)}

    def _top_of_prompt(self, token: PromptTokenText, likeliest: Sequence[TopToken]) -> dict[str, float]:
        top = {self._name(each.id): _finite(each.logprob) for each in likeliest[: self._num_top]}
        return {**top, self._name(token.id): _finite(token.logprob or 0.0)}

    def _name(self, token_id: int) -> str:
        """As OpenAI does: part of a character is named by its bytes, so that two such tokens stay two."""
        data = _bytes(token_id, self._vocabulary)
        if _is_text(data):
            return data.decode()
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    tops = first.top_logprobs
    return CompletionLogprobs(
        tokens=first.tokens + second.tokens,
        token_logprobs=first.token_logprobs + second.token_logprobs,
        top_logprobs=None if tops is None else tops + (second.top_logprobs or []),
        text_offset=first.text_offset + second.text_offset,
    )


def _token(token: TokenText, vocabulary: Vocabulary, num_top: int) -> TokenLogprob:
    return TokenLogprob(
        token=token.text or spell(vocabulary, token.id),
        logprob=_finite(token.logprob),
        bytes=_shown_bytes(token, vocabulary),
        top_logprobs=[_top_logprob(top, vocabulary) for top in (token.top or ())[:num_top]],
    )


def _top_logprob(top: SpelledToken, vocabulary: Vocabulary) -> TopLogprob:
    return TopLogprob(token=top.text, logprob=_finite(top.logprob), bytes=list(_bytes(top.id, vocabulary)))


def _shown_bytes(token: TokenText, vocabulary: Vocabulary) -> list[int]:
    """The token's bytes, less what a stop string cut off: all tokens' bytes together are those of the text."""
    whole = _bytes(token.id, vocabulary)
    shown = token.text.encode()
    rest = whole.removeprefix(shown)
    if shown and len(rest) < len(whole) and rest and _is_text(rest):
        return list(shown)
    return list(whole)


def _bytes(token_id: int, vocabulary: Vocabulary) -> bytes:
    special = vocabulary.special_text.get(token_id)
    if special is not None:
        return special.encode()
    return vocabulary.token_bytes[token_id] if 0 <= token_id < len(vocabulary) else b""


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
