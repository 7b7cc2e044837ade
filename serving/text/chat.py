"""Makes a chat into what the engine takes, and says how its answer is read. Composition of template, tokenizer and
message formats; knows no HTTP.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from serving.errors import ContextTooLong, InvalidRequest, TemplateError, ToolError
from serving.sampling_params import Grammar
from serving.text.answer import AnswerText, TextSource
from serving.text.chat_messages import MessageShape, find_shape
from serving.text.chat_template import ChatTemplate
from serving.text.control_text import ControlText, Encode, MarkedEncoder, unmarked
from serving.text.parsers.contract import MessageParser
from serving.text.parsers.find import find_reasoning_format, find_tool_format, new_parser
from serving.text.parsers.tools import Tool, offered_tools

logger = logging.getLogger(__name__)

Json = Any

_ROLES = frozenset({"assistant", "developer", "function", "system", "tool", "user"})
_PROMPT_END_CHARS = 1024
"""More than any marker of reasoning: a parser needs the end of the prompt only."""


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
        self,
        template: ChatTemplate | None,
        *,
        encode: Encode,
        special_ids: Mapping[str, int],
        tool_format: str | None = None,
        reasoning_format: str | None = None,
        grammars: bool = True,
    ) -> None:
        """`encode` gives the ids of a text in which special tokens are spelled, and adds none of its own; `special_ids`
        are their ids. The formats, found in the template by default, are chosen by name. Without `grammars` nothing
        holds answers to anything. Raises `ConfigError` for an unknown format.
        """
        self._template = template
        self._control = ControlText(special_ids)
        self._encode = MarkedEncoder(encode)
        source = None if template is None else template.source
        self._tool_format = find_tool_format(source, special_ids, name=tool_format)
        self._reasoning = find_reasoning_format(source, special_ids, name=reasoning_format)
        self._grammars = grammars
        self._shape = MessageShape() if template is None else _shape_of(template)

    @property
    def has_template(self) -> bool:
        return self._template is not None

    def prepare(self, chat: ChatRequest, *, max_chars: int | None = None) -> PreparedChat:
        """Raises `TemplateError`, `ToolError` or `InvalidRequest`; `ContextTooLong` for a prompt of more than `max_chars`,
        which is not tokenized. Takes a while for long chats."""
        if self._template is None:
            raise TemplateError("Template error: template not found")
        tools = _offered(chat)
        marked_prompt = self._render(self._template, chat, tools)
        prompt_text = unmarked(marked_prompt)
        if max_chars is not None and len(prompt_text) > max_chars:
            raise ContextTooLong(
                f"`messages` make a prompt of {len(prompt_text)} characters, at most {max_chars} are taken",
                field="messages",
            )
        return PreparedChat(
            prompt_text=prompt_text,
            prompt_token_ids=self._encode(marked_prompt),
            grammar=self._grammar(chat, tools, prompt_text),
            new_parser=self._parser_factory(chat, tools, prompt_text),
        )

    def _render(self, template: ChatTemplate, chat: ChatRequest, tools: Sequence[Tool]) -> str:
        self._require_roles(chat.messages)
        messages = self._shape.apply(chat.messages)
        shown = chat.tools if tools else None
        if tools and not template.shows_tools():
            messages = _with_instructions(messages, self._tool_format.instructions(tools, chat.tool_prompt))
        return template.render(
            self._control.marked(messages),
            add_generation_prompt=chat.add_generation_prompt and not chat.continue_final_message,
            tools=self._control.marked(shown),
            documents=self._control.marked(chat.documents),
            continue_final_message=chat.continue_final_message,
            variables=self._control.marked(chat.template_variables),
        )

    def _require_roles(self, messages: Sequence[Mapping[str, Json]]) -> None:
        """Templates write control tokens around roles, so an unusual one must not be the middle of another token."""
        for i, message in enumerate(messages):
            role = message.get("role")
            if not isinstance(role, str) or (role not in _ROLES and (not role or self._control.holds(role))):
                raise InvalidRequest(
                    f"`messages[{i}].role` is {str(role)[:40]!r}, must be one of {', '.join(sorted(_ROLES))}",
                    field=f"messages[{i}].role",
                )

    def _grammar(self, chat: ChatRequest, tools: Sequence[Tool], prompt_text: str) -> Grammar | None:
        if not self._grammars:
            if _forced(chat):
                raise ToolError(
                    "Tool error: calls cannot be forced, grammars are switched off (GRAMMAR_SUPPORT)"
                )
            return chat.response_grammar
        if chat.response_grammar is None:
            return self._tool_format.grammar(
                tools,
                forced=_forced(chat),
                parallel=chat.parallel_tool_calls and not chat.named_tool,
                reasoning=self._reasoning,
                prompt_text=prompt_text,
            )
        if self._reasoning is None:
            return chat.response_grammar
        return self._reasoning.wrap(chat.response_grammar, prompt_text=prompt_text)

    def _parser_factory(
        self, chat: ChatRequest, tools: Sequence[Tool], prompt_text: str
    ) -> Callable[[], MessageParser | None]:
        # An answer in a format of its own is that format's text, whatever calls look like.
        constrained = self._grammars and chat.response_grammar is None
        return functools.partial(
            new_parser,
            None if chat.response_grammar is not None else self._tool_format,
            tools,
            reasoning=self._reasoning,
            prompt_text=prompt_text[-_PROMPT_END_CHARS:],
            constrained=constrained,
            forced=_forced(chat),
        )


def _shape_of(template: ChatTemplate) -> MessageShape:
    """Tries the template out, so that a broken one is known before the first request."""
    try:
        return find_shape(template)
    except TemplateError as error:
        logger.warning(
            "the chat template cannot render a plain chat, such requests will fail: %s", error.message
        )
        return MessageShape()


def _forced(chat: ChatRequest) -> bool:
    return chat.named_tool or chat.tool_choice == "required"


def _offered(chat: ChatRequest) -> tuple[Tool, ...]:
    """The tools the model may call."""
    if _forced(chat) and chat.response_grammar is not None:
        raise ToolError("Tool error: Grammar and tools are mutually exclusive")
    if chat.tool_choice == "none" and not chat.named_tool:
        return ()
    tools = offered_tools(chat.tools, named=chat.tool_choice if chat.named_tool else None)
    if _forced(chat) and not tools:
        raise ToolError("Tool error: `tool_choice` asks for a call, but `tools` is empty")
    return tools


def _with_instructions(messages: list[dict[str, Json]], instructions: str) -> list[dict[str, Json]]:
    """The messages with a text added to the last one of the user."""
    last = next((i for i in reversed(range(len(messages))) if messages[i].get("role") == "user"), None)
    if last is None:
        return messages
    content = messages[last]["content"]
    added: Json = content + instructions if isinstance(content, str) else [*content, _text_part(instructions)]
    return [*messages[:last], {**messages[last], "content": added}, *messages[last + 1 :]]


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
