"""A model's chat template: renders chats as transformers' `apply_chat_template` does. Knows nothing of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from serving.errors import InvalidRequest, TemplateError
from serving.text.template_files import DEFAULT, TOOL_USE, find_templates
from serving.text.template_sandbox import CompiledTemplate

# Names that mean something to the renderer or to its callers: a request must not set them as variables.
RESERVED_VARIABLES = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tools",
        "truncation",
    }
)

_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
# The trailing blank shows whether the template trims the final message.
_END_TAG = "CONTINUE_FINAL_MESSAGE_TAG "

Messages = Sequence[Mapping[str, object]]


class ChatTemplate:
    """A template, or several by name. Compiled at its first use, so that a broken one fails chats and nothing else."""

    def __init__(self, source: str | Mapping[str, str], named_tokens: Mapping[str, str]) -> None:
        """`named_tokens` (`bos_token`, `eos_token`, …) are variables of every rendering."""
        self._sources = {DEFAULT: source} if isinstance(source, str) else dict(source)
        self._named_tokens = dict(named_tokens)

    @classmethod
    def from_dir(
        cls, model_dir: str | Path, named_tokens: Mapping[str, str], *, override: str | None = None
    ) -> ChatTemplate | None:
        """The folder's templates or `override` (see `find_templates`), None when there is none.

        Raises `ModelError` when a file is damaged, `ConfigError` for an `override` that cannot be read.
        """
        sources = find_templates(Path(model_dir), override)
        return cls(sources, named_tokens) if sources else None

    @property
    def source(self) -> str:
        """The text of all templates."""
        return "\n".join(self._sources.values())

    def shows_tools(self) -> bool:
        """Whether it tells the model about the tools that are offered. Raises `TemplateError` when it is broken."""
        return TOOL_USE in self._sources or "tools" in self._compiled(DEFAULT).variables

    def render(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        continue_final_message: bool = False,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """The prompt text. Messages, tools, documents and further `variables` are plain JSON values.

        With `continue_final_message` it ends where the last message's content does. Raises `TemplateError` when the
        template refuses them or reaches a limit, `InvalidRequest` for a reserved variable.
        """
        variables = variables or {}
        for name in variables:
            if name in RESERVED_VARIABLES or name in self._named_tokens or name.startswith("_"):
                raise InvalidRequest(
                    f"`{name[:80]}` is not a template variable that a request may set", field=name[:80]
                )
        name = TOOL_USE if tools is not None and TOOL_USE in self._sources else DEFAULT
        chat = [_with_reasoning(message) for message in messages]
        if continue_final_message:
            chat[-1:] = [_tagged(chat, self._source_of(name))]
        rendered = self._compiled(name).render(
            {
                **self._named_tokens,
                **variables,
                "messages": chat,
                "tools": None if tools is None else list(tools),
                "documents": None if documents is None else list(documents),
                "add_generation_prompt": add_generation_prompt,
            }
        )
        return _cut_at_tag(rendered, messages[-1]) if continue_final_message else rendered

    def _source_of(self, name: str) -> str:
        if name not in self._sources:
            raise TemplateError(
                f"Template error: the model has templates named {', '.join(sorted(self._sources))}, none is the default"
            )
        return self._sources[name]

    def _compiled(self, name: str) -> CompiledTemplate:
        self._source_of(name)
        return self._all_compiled[name]

    @cached_property
    def _all_compiled(self) -> dict[str, CompiledTemplate]:
        return {
            name: CompiledTemplate(source)
            for name, source in self._sources.items()
            if name in (DEFAULT, TOOL_USE)
        }


def _with_reasoning(message: Mapping[str, object]) -> dict[str, object]:
    """The message with its reasoning under every name by which templates read it."""
    given = (message.get(name) for name in _REASONING_FIELDS)
    reasoning = next((value for value in given if value is not None), None)
    if reasoning is None:
        return dict(message)
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _tagged(chat: list[dict[str, object]], source: str) -> dict[str, object]:
    """The final message with a tag behind its content."""
    content = chat[-1].get("content") if chat else None
    if content is None:
        raise TemplateError("Template error: there is no final message with content to continue")
    if "content" not in source:
        raise TemplateError("Template error: the template does not show the content of messages")
    if isinstance(content, str):
        return {**chat[-1], "content": content + _END_TAG}
    parts: list[object] = list(content) if isinstance(content, list) else []
    for i in range(len(parts) - 1, -1, -1):
        part = parts[i]
        if isinstance(part, Mapping) and "text" in part:
            parts[i] = {**part, "text": f"{part['text']}{_END_TAG}"}
            return {**chat[-1], "content": parts}
    raise TemplateError("Template error: the final message has no text to continue")


def _cut_at_tag(rendered: str, final_message: Mapping[str, object]) -> str:
    """As transformers does: exact where the template keeps blanks, trimmed where it trims the message."""
    tag = rendered.rfind(_END_TAG.strip())
    if tag < 0 or _final_text(final_message).strip() not in rendered:
        raise TemplateError(
            "Template error: the final message cannot be continued, the template changes its text"
        )
    if rendered.startswith(_END_TAG, tag):
        return rendered[:tag]
    return rendered[:tag].rstrip()


def _final_text(message: Mapping[str, object]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        texts = [str(part["text"]) for part in content if isinstance(part, Mapping) and "text" in part]
        return texts[-1] if texts else ""
    return str(content)
