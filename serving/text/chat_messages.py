"""Brings OpenAI messages into the shape that a model's template expects, found by trying it once.

Templates disagree on texts in parts, on content that is null and on the arguments of past calls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from serving.errors import InvalidRequest, TemplateError
from serving.text.chat_template import ChatTemplate

Json = Any
Message = dict[str, Json]

_PROBE = "probe-text"
_KEY = "probe_key"
_END_OF_TOOLS = "probe-question"
NoContent = Literal["absent", "null", "empty"]
_NO_CONTENTS: tuple[NoContent, ...] = ("absent", "null", "empty")
_TOOL = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string"}}, "required": [_KEY]},
    },
}


@dataclass(frozen=True, slots=True)
class MessageShape:
    """What a template expects. `takes_parts` and `takes_text`: the forms of content it shows as text.

    `no_content`: what a message with calls and no text gets; transformers gives it no content at all.
    `arguments_text`: the arguments of calls stay JSON text, otherwise they are parsed. `knows_developer`: it has
    OpenAI's role.
    """

    takes_text: bool = True
    takes_parts: bool = False
    no_content: NoContent = "absent"
    arguments_text: bool = False
    knows_developer: bool = False

    def apply(self, messages: Sequence[Message]) -> list[Message]:
        """The messages in this shape. Raises `InvalidRequest` for content that is not text."""
        return [self._shaped(message, i) for i, message in enumerate(messages)]

    def _shaped(self, message: Message, index: int) -> Message:
        # Clients send what they got, with null for what there was not; templates ask what is defined.
        shaped = {key: value for key, value in message.items() if value is not None and value != []}
        calls = shaped.get("tool_calls")
        if calls is not None:
            shaped["tool_calls"] = [_shaped_call(call, self.arguments_text) for call in calls]
        content = message.get("content")
        if content is not None or not calls or self.no_content == "empty":
            shaped["content"] = self._content(content or "", index)
        elif self.no_content == "null":
            shaped["content"] = None
        if shaped.get("role") == "developer" and not self.knows_developer:
            shaped["role"] = "system"
        return shaped

    def _content(self, content: Json, index: int) -> Json:
        if isinstance(content, str):
            return content if self.takes_text else [{"type": "text", "text": content}]
        texts = [_text_of(part, f"messages[{index}].content[{i}]") for i, part in enumerate(content)]
        return content if self.takes_parts else "".join(texts)


def find_shape(template: ChatTemplate) -> MessageShape:
    """Render small chats to see what `template` makes of them. Raises `TemplateError` when it refuses all of them."""
    plain = template.render([{"role": "user", "content": _PROBE}])
    takes_text = _PROBE in plain
    parts = _try(template, [{"role": "user", "content": [{"type": "text", "text": _PROBE}]}])
    takes_parts = parts is not None and (
        parts == plain if takes_text else _PROBE in parts and "'text'" not in parts
    )
    no_content, arguments_text = _call_shape(template)
    return MessageShape(
        takes_text=takes_text or not takes_parts,
        takes_parts=takes_parts,
        no_content=no_content,
        arguments_text=arguments_text,
        knows_developer="developer" in template.source,
    )


def _call_shape(template: ChatTemplate) -> tuple[NoContent, bool]:
    """`no_content` and `arguments_text` with which a past call shows; as transformers has them when in doubt."""
    pairs = [(no_content, as_text) for as_text in (False, True) for no_content in _NO_CONTENTS]
    shown = {pair: _try(template, _call(*pair), tools=True) for pair in pairs}
    # JSON, not Python's spelling of an object or of null.
    fair = {
        pair: text
        for pair, text in shown.items()
        if text and "None" not in text and f"{{'{_KEY}'" not in text
    }
    return next(
        (pair for pair in fair if _KEY in fair[pair].split(_END_OF_TOOLS)[-1]), next(iter(fair), pairs[0])
    )


def _call(no_content: NoContent, arguments_text: bool) -> list[Message]:
    arguments = {_KEY: _PROBE}
    function = {"name": "probe_tool", "arguments": json.dumps(arguments) if arguments_text else arguments}
    # Mistral's templates insist on ids of nine letters.
    call = {"id": "probecall", "type": "function", "function": function}
    calling: Message = {"role": "assistant", "tool_calls": [call]}
    if no_content != "absent":
        calling["content"] = "" if no_content == "empty" else None
    return [
        {"role": "user", "content": _END_OF_TOOLS},
        calling,
        {"role": "tool", "content": _PROBE, "tool_call_id": "probecall", "name": "probe_tool"},
    ]


def _try(template: ChatTemplate, messages: list[Message], *, tools: bool = False) -> str | None:
    try:
        return template.render(messages, tools=[_TOOL] if tools else None)
    except TemplateError:
        return None


def _shaped_call(call: Json, as_text: bool) -> Json:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    arguments = function.get("arguments")
    if isinstance(arguments, str) and not as_text:
        arguments = _parsed(arguments)
    elif isinstance(arguments, Mapping) and as_text:
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def _parsed(arguments: str) -> Json:
    """The object that the text spells; the text itself when it is cut off or something else."""
    try:
        value = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _text_of(part: Json, place: str) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else None
    if not isinstance(text, str):
        raise InvalidRequest(
            f'`{place}` must be {{"type": "text", "text": …}}: this server takes text only', field=place
        )
    return text
