"""The text of one sequence: what its tokens say, where it ends and why. Knows nothing of transport."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from serving.messages import SequenceOutput, TopToken
from serving.sampling_params import SamplingParams
from serving.text.detokenizer import IncrementalDetokenizer
from serving.text.stop import StopMatch, StopMatcher
from serving.vocabulary import Vocabulary

_FINISH_REASONS = {"stop_token": "stop_sequence"}


class TopText(msgspec.Struct, frozen=True):
    """One of the likeliest tokens at a position, spelled on its own."""

    id: int
    text: str
    logprob: float
    special: bool


class TokenText(msgspec.Struct, frozen=True):
    """One generated token. `text` is what it added to the text or, for a special token, its spelling."""

    id: int
    text: str
    logprob: float
    special: bool
    top: list[TopText] | None = None


class PromptTokenText(msgspec.Struct, frozen=True):
    """One prompt token; the first has no logprob."""

    id: int
    text: str
    logprob: float | None


class SequenceText:
    """Consumes the outputs of one sequence and is authoritative on where it ends.

    Always: the texts of the non-special tokens returned join to `text`, and they are `num_tokens` in number.
    A stop string stays in `text`, which ends directly behind it. A character that is incomplete at the end
    becomes U+FFFD in the last token, or nothing when that is a special token.
    """

    __slots__ = (
        "_detokenizer",
        "_matcher",
        "_min_tokens",
        "_num_chars",
        "_pieces",
        "_vocabulary",
        "finish_reason",
        "num_tokens",
        "stopped",
    )

    def __init__(
        self, vocabulary: Vocabulary, params: SamplingParams, *, prompt_token_ids: Sequence[int] = ()
    ) -> None:
        """Raises `InvalidRequest` when `params.stop` holds an empty string."""
        self._vocabulary = vocabulary
        self._detokenizer = IncrementalDetokenizer(vocabulary, prompt_token_ids=prompt_token_ids)
        self._matcher = StopMatcher(params.stop)
        # The text of so many tokens is not searched: no stop string may end it.
        self._min_tokens = params.min_new_tokens
        self._pieces: list[str] = []
        self._num_chars = 0
        # TGI's names: length, eos_token, stop_sequence; abort and error come from the engine as they are.
        self.finish_reason: str | None = None
        self.num_tokens = 0
        # True when a stop string ended the text and the engine still goes on: the caller sends AbortRequest.
        self.stopped = False

    @property
    def text(self) -> str:
        """Generated text so far, without special tokens."""
        return "".join(self._pieces)

    @property
    def num_chars(self) -> int:
        """Length of `text`."""
        return self._num_chars

    @property
    def stop_match(self) -> StopMatch | None:
        """Where in `text` the stop string lies, for callers that hide it. Set with any finish reason."""
        return self._matcher.match

    @property
    def hold_back(self) -> int:
        """Trailing characters of `text` to keep back by a caller that hides stop strings."""
        return 0 if self.finish_reason is not None else self._matcher.hold_back

    def push(self, output: SequenceOutput) -> list[TokenText]:
        """The tokens this output adds, up to the end of the text; [] for everything after it."""
        added: list[TokenText] = []
        if self.finish_reason is not None:
            return added
        last = len(output.token_ids) - 1
        for i, (token_id, logprob) in enumerate(zip(output.token_ids, output.logprobs, strict=True)):
            ending = output.finish_reason if i == last else None
            text = self._push_token(token_id, ending)
            top = None if output.top_tokens is None else self._spell(output.top_tokens[i])
            added.append(TokenText(token_id, text, logprob, token_id in self._vocabulary.special_text, top))
            if self._matcher.match is not None:
                self.stopped = output.finish_reason is None
                break
        if self.finish_reason is None and output.finish_reason is not None:
            self.finish_reason = _FINISH_REASONS.get(output.finish_reason, output.finish_reason)
        return added

    @property
    def searches(self) -> bool:
        """Whether a stop string may end the text."""
        return self._matcher.searches

    def push_one(self, token_id: int) -> str | None:
        """As `push` for one token that is not the last one, where nothing is searched for: its text. None, and nothing done,
        for a special token and after the end."""
        if token_id in self._vocabulary.special_text or self.finish_reason is not None:
            return None
        text = self._detokenizer.push(token_id)
        self.num_tokens += 1
        self._num_chars += len(text)
        self._pieces.append(text)
        return text

    def _push_token(self, token_id: int, ending: str | None) -> str:
        """Text of the next token. `ending` is the engine's finish reason when this is its last one."""
        self.num_tokens += 1
        if ending is not None:
            self.finish_reason = _FINISH_REASONS.get(ending, ending)
        spelling = self._vocabulary.special_text.get(token_id)
        if spelling is not None:
            return spelling
        text = self._detokenizer.push(token_id)
        if ending is not None:
            text += self._detokenizer.flush()
        if self.num_tokens <= self._min_tokens:
            self._matcher.skip(text)
        elif match := self._matcher.push(text):
            text = text[: match.end - self._num_chars]
            # The limit and EOS are looked at before the text is, as in TGI: on the same token they win.
            if self.finish_reason not in ("length", "eos_token"):
                self.finish_reason = "stop_sequence"
        self._num_chars += len(text)
        self._pieces.append(text)
        return text

    def _spell(self, tokens: Sequence[TopToken]) -> list[TopText]:
        special = self._vocabulary.special_text
        return [TopText(t.id, spell(self._vocabulary, t.id), t.logprob, t.id in special) for t in tokens]


def spell(vocabulary: Vocabulary, token_id: int) -> str:
    """One token on its own: a special token's spelling, else its bytes with U+FFFD for what is not UTF-8."""
    special = vocabulary.special_text.get(token_id)
    if special is not None:
        return special
    known = 0 <= token_id < len(vocabulary)
    return vocabulary.token_bytes[token_id].decode("utf-8", "replace") if known else ""


def prompt_tokens(
    vocabulary: Vocabulary, token_ids: Sequence[int], logprobs: Sequence[float | None]
) -> list[PromptTokenText]:
    """Spell a prompt token by token. `logprobs` has one entry per token, the first None."""
    detokenizer = IncrementalDetokenizer(vocabulary)
    last = len(token_ids) - 1
    spelled = []
    for i, (token_id, logprob) in enumerate(zip(token_ids, logprobs, strict=True)):
        text = vocabulary.special_text.get(token_id)
        if text is None:
            text = detokenizer.push(token_id) + (detokenizer.flush() if i == last else "")
        spelled.append(PromptTokenText(token_id, text, logprob))
    return spelled
