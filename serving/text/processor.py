"""Everything a front needs between a request's text and token ids, in one object per model. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from serving.errors import InvalidRequest, TemplateError
from serving.sampling_params import SamplingParams
from serving.text.chat_template import ChatTemplate
from serving.text.sequence_text import PromptTokenText, SequenceText, prompt_tokens
from serving.text.tokenizer import Tokenizer
from serving.vocabulary import Vocabulary


class TextProcessor:
    """A model's tokenizer and chat template. Immutable after construction; any thread may use it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        chat_template: ChatTemplate | None = None,
        vocab_size: int | None = None,
    ) -> None:
        """`vocab_size` is the model's (`EngineReady.vocab_size`): ids beyond it are refused, not sent."""
        self.tokenizer = tokenizer
        self._chat_template = chat_template
        self._vocab_size = vocab_size

    @classmethod
    def from_dir(cls, model_dir: str | Path, *, vocab_size: int | None = None) -> TextProcessor:
        """Read a model folder. Raises `ModelError` with the fix."""
        tokenizer = Tokenizer.from_dir(model_dir)
        template = ChatTemplate.from_dir(model_dir, tokenizer.named_tokens)
        return cls(tokenizer, chat_template=template, vocab_size=vocab_size)

    @property
    def vocabulary(self) -> Vocabulary:
        return self.tokenizer.vocabulary

    @property
    def has_chat_template(self) -> bool:
        return self._chat_template is not None

    def prepare(
        self, text: str, *, truncate: int | None = None, add_special_tokens: bool = True
    ) -> list[int]:
        """Prompt ids of `text`; with `truncate` (at least 1) the last so many of them.

        Long texts take time, without the GIL: call it from a thread pool. Raises `InvalidRequest`.
        """
        ids = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        if truncate is not None:
            if truncate < 1:
                raise InvalidRequest(f"`truncate` is {truncate}, must be at least 1", field="truncate")
            ids = ids[-truncate:]
        if not ids:
            raise InvalidRequest("`inputs` has no tokens, must have at least one", field="inputs")
        if self._vocab_size is not None and len(self.vocabulary) > self._vocab_size:
            self._require_known(ids, self._vocab_size)
        return ids

    def render_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        **variables: object,
    ) -> str:
        """The prompt text of a chat; tokenize it with `add_special_tokens=False`: the template writes them.

        Raises `TemplateError` when the model has no template or it refuses the messages.
        """
        if self._chat_template is None:
            raise TemplateError("Template error: template not found")
        return self._chat_template.render(
            messages, add_generation_prompt=add_generation_prompt, tools=tools, **variables
        )

    def new_sequence(self, params: SamplingParams, *, prompt_token_ids: Sequence[int] = ()) -> SequenceText:
        """A consumer for the outputs of one sequence."""
        return SequenceText(self.vocabulary, params, prompt_token_ids=prompt_token_ids)

    def prompt_tokens(
        self, token_ids: Sequence[int], logprobs: Sequence[float | None]
    ) -> list[PromptTokenText]:
        """The prompt, spelled token by token."""
        return prompt_tokens(self.vocabulary, token_ids, logprobs)

    def _require_known(self, ids: Sequence[int], vocab_size: int) -> None:
        unknown = max(ids)
        if unknown >= vocab_size:
            raise InvalidRequest(
                f"`inputs` holds token {unknown}, which this model does not know: it has {vocab_size} tokens",
                field="inputs",
            )
