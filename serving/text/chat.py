"""Makes a chat into what the engine takes, and says how its answer is read. Composition of template, tokenizer and
message formats; knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from serving.errors import TemplateError, ToolError
from serving.sampling_params import Grammar
from serving.text.answer import AnswerText, TextSource
from serving.text.chat_template import ChatTemplate
from serving.text.parsers.contract import MessageParser

Json = Any
Encode = Callable[[str], list[int]]


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One chat as plain JSON values, in OpenAI's shapes.

    `tool_choice` is `auto`, `none`, `required` or, with `named_tool`, the name of a function. `response_grammar` cannot
    go with forced tools. `tool_prompt` is TGI's: text for the last user message when tools are offered to a template
    that does not show them.
    """

    messages: list[dict[str, Json]]
    tools: list[dict[str, Json]] = []
    tool_choice: str = "auto"
    named_tool: bool = False
    parallel_tool_calls: bool = True
    response_grammar: Grammar | None = None
    documents: list[dict[str, Json]] | None = None
    template_variables: dict[str, Json] = {}
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tool_prompt: str | None = None


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """`prompt_text` is for people; `prompt_token_ids` may differ from its encoding where a message spells a special
    token. `grammar` is what the answer has to match."""

    prompt_text: str
    prompt_token_ids: list[int]
    grammar: Grammar | None
    new_parser: Callable[[], MessageParser | None]

    def new_answer(self, sequence: TextSource) -> AnswerText:
        """The reader of one sequence's answer. `sequence` is a `SequenceText`."""
        return AnswerText(sequence, self.new_parser())


class ChatPreparer:
    """One model's way to read chats. Immutable after construction: any thread may use it."""

    def __init__(
        self, template: ChatTemplate | None, *, encode: Encode, special_texts: Collection[str]
    ) -> None:
        """`encode` gives the ids of a text in which special tokens are spelled, and adds none of its own."""
        self._template = template
        self._encode = encode
        self._special_texts = frozenset(special_texts)

    @property
    def has_template(self) -> bool:
        return self._template is not None

    def prepare(self, chat: ChatRequest) -> PreparedChat:
        """Raises `TemplateError`, `ToolError` or `InvalidRequest`. Takes a while for long chats."""
        if self._template is None:
            raise TemplateError("Template error: template not found")
        if chat.tools and chat.tool_choice != "none":
            raise ToolError("Tool error: this server cannot read tool calls yet")
        text = self._template.render(
            chat.messages,
            add_generation_prompt=chat.add_generation_prompt,
            **_variables(chat.template_variables),
        )
        return PreparedChat(text, self._encode(text), chat.response_grammar, lambda: None)


def _variables(variables: Mapping[str, Json]) -> dict[str, Json]:
    return dict(variables)
