"""One choice of a completion, from the echoed prompt to the end, in pieces that join to the whole. Knows nothing of
streams or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence

from serving.api.generation import PromptState, SequenceState
from serving.api.openai.token_logprobs import CompletionColumns, joined
from serving.api.roles import PromptTokenText, TextProcessor, TokenText
from serving.api.schema.openai_answers import CompletionChoice, CompletionFinish, CompletionLogprobs
from serving.api.schema.openai_completions import CompletionRequest, Prompt
from serving.errors import IncompleteGeneration
from serving.text.answer import AnswerText

_FINISH: dict[str, CompletionFinish] = {"stop": "stop", "length": "length"}


class CompletionAnswer:
    """Reads one sequence."""

    def __init__(
        self,
        fields: CompletionRequest,
        prompt: Prompt,
        state: PromptState,
        sequence: SequenceState,
        text: TextProcessor,
    ) -> None:
        self._prompt = prompt
        self._state = state
        self._text = text
        self._reader = AnswerText(sequence.text)
        self._hides_answer = fields.shows_only_prompt
        self._columns: CompletionColumns | None = None
        if fields.logprobs is not None:
            self._columns = CompletionColumns(text.vocabulary, fields.logprobs)
        self._echo_due = bool(fields.echo)

    def pieces(self, index: int, tokens: Sequence[TokenText], *, final: bool) -> list[CompletionChoice]:
        """What `tokens` add to the choice, the echo first; the last piece of all has the finish reason."""
        pieces: list[CompletionChoice] = []
        if self._echo_due:
            self._echo_due = False
            pieces.append(self._echo(index))
        delta = self._reader.take(tokens, final=final)
        hides = self._hides_answer
        shown = [] if hides else delta.tokens
        text = "" if hides else delta.content
        if text or final or (shown and self._columns is not None):
            pieces.append(
                CompletionChoice(
                    index=index,
                    text=text,
                    logprobs=None if self._columns is None else self._columns.of(shown),
                    finish_reason=self._finish_reason() if final else None,
                )
            )
        return pieces

    def expects(self) -> bool:
        """Whether `pass_on` may have the next token."""
        shows_more = self._echo_due or self._hides_answer or self._columns is not None
        return not shows_more and self._reader.passes

    def pass_on(self, text: str) -> None:
        """As `pieces` for the text of one token, all of which is shown."""
        self._reader.pass_on(text)

    def joined(self, pieces: Sequence[CompletionChoice]) -> CompletionChoice:
        """The whole choice. Raises `IncompleteGeneration` before the sequence ended."""
        if not pieces or pieces[-1].finish_reason is None:
            raise IncompleteGeneration("Incomplete generation")
        logprobs: CompletionLogprobs | None = None
        for piece in pieces:
            if piece.logprobs is not None:
                logprobs = piece.logprobs if logprobs is None else joined(logprobs, piece.logprobs)
        return CompletionChoice(
            index=pieces[-1].index,
            text="".join(piece.text for piece in pieces),
            logprobs=logprobs,
            finish_reason=pieces[-1].finish_reason,
        )

    def _finish_reason(self) -> CompletionFinish:
        reason = "length" if self._hides_answer else self._reader.finish_reason
        known = _FINISH.get(reason or "")
        if known is None:
            raise IncompleteGeneration("Incomplete generation")
        return known

    def _echo(self, index: int) -> CompletionChoice:
        logprobs = self._state.logprobs
        ids = self._prompt.token_ids
        spelled = self._text.prompt_tokens(ids, [None] * len(ids) if logprobs is None else logprobs)
        columns = self._columns
        return CompletionChoice(
            index=index,
            text=self._spoken(spelled) if self._prompt.text is None else self._prompt.text,
            logprobs=None if columns is None else columns.of_prompt(spelled, self._state.top_tokens),
            finish_reason=None,
        )

    def _spoken(self, spelled: Sequence[PromptTokenText]) -> str:
        special = self._text.vocabulary.special_text
        return "".join(token.text for token in spelled if token.id not in special)
