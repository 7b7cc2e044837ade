"""Everything a front needs between a request's text and token ids, in one object per model. Knows no HTTP."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from serving.config import ModelConfig
from serving.errors import InvalidRequest
from serving.sampling_params import SamplingParams
from serving.text.chat import ChatPreparer, ChatRequest, PreparedChat
from serving.text.chat_template import ChatTemplate
from serving.text.sequence_text import PromptTokenText, SequenceText, prompt_tokens
from serving.text.tokenizer import Tokenizer, TokenSpan
from serving.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


class TextProcessor:
    """A model's tokenizer and chat template. Immutable after construction; any thread may use it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        chat_template: ChatTemplate | None = None,
        vocab_size: int | None = None,
        config: ModelConfig | None = None,
        grammars: bool = True,
    ) -> None:
        """`vocab_size` is the model's (`EngineReady.vocab_size`): ids beyond it are refused, not sent. `config` may
        choose the formats of calls and reasoning; without `grammars` answers are held to nothing.
        """
        self.tokenizer = tokenizer
        self._chat_template = chat_template
        self._vocab_size = vocab_size
        self._chats = ChatPreparer(
            chat_template,
            encode=functools.partial(tokenizer.encode, add_special_tokens=False),
            special_ids={text: token_id for token_id, text in self.vocabulary.special_text.items()},
            tool_format=None if config is None else config.tool_format,
            reasoning_format=None if config is None else config.reasoning_format,
            grammars=grammars,
        )

    @classmethod
    def read(
        cls, model_dir: str | Path, *, config: ModelConfig | None = None, grammars: bool = True
    ) -> Callable[..., TextProcessor]:
        """Read a model folder and try its chat template. Called with `vocab_size`, the result is the processor, at once.

        Raises `ModelError` or `ConfigError` with the fix.
        """
        tokenizer = Tokenizer.from_dir(model_dir)
        override = None if config is None else config.chat_template
        template = ChatTemplate.from_dir(model_dir, tokenizer.named_tokens, override=override)
        if template is None:
            logger.info("the model has no chat template: chat routes answer 422 (CHAT_TEMPLATE can give one)")
        return functools.partial(cls, tokenizer, chat_template=template, config=config, grammars=grammars)

    @classmethod
    def from_dir(
        cls,
        model_dir: str | Path,
        *,
        vocab_size: int | None = None,
        config: ModelConfig | None = None,
        grammars: bool = True,
    ) -> TextProcessor:
        """`read` and what it returns, in one. Raises `ModelError` or `ConfigError` with the fix."""
        return cls.read(model_dir, config=config, grammars=grammars)(vocab_size=vocab_size)

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
        self._require_usable(ids, "inputs")
        return ids

    def prepare_chat(self, chat: ChatRequest, *, max_chars: int | None = None) -> PreparedChat:
        """The prompt of a chat, and how its answer is read.

        Long chats take time: call it from a thread pool. Raises `TemplateError`, `ToolError` or `InvalidRequest`;
        `ContextTooLong` for a prompt of more than `max_chars`, before it is tokenized.
        """
        prepared = self._chats.prepare(chat, max_chars=max_chars)
        self._require_usable(prepared.prompt_token_ids, "messages")
        return prepared

    def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[TokenSpan]:
        """The tokens of `text` with their places in it. Raises `InvalidRequest`."""
        return self.tokenizer.spans(text, add_special_tokens=add_special_tokens)

    def new_sequence(self, params: SamplingParams, *, prompt_token_ids: Sequence[int] = ()) -> SequenceText:
        """A consumer for the outputs of one sequence."""
        return SequenceText(self.vocabulary, params, prompt_token_ids=prompt_token_ids)

    def prompt_tokens(
        self, token_ids: Sequence[int], logprobs: Sequence[float | None]
    ) -> list[PromptTokenText]:
        """The prompt, spelled token by token."""
        return prompt_tokens(self.vocabulary, token_ids, logprobs)

    def _require_usable(self, ids: Sequence[int], field: str) -> None:
        if not ids:
            raise InvalidRequest(f"`{field}` has no tokens, must have at least one", field=field)
        vocab_size = self._vocab_size
        if vocab_size is not None and len(self.vocabulary) > vocab_size and max(ids) >= vocab_size:
            raise InvalidRequest(
                f"`{field}` holds token {max(ids)}, which this model does not know: it has {vocab_size} tokens",
                field=field,
            )
