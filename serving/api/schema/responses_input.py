"""The `input` of `POST /v1/responses` as types, and as the messages of a chat. Knows nothing of HTTP.

Source of the shapes: OpenAI's API reference and the types of its client (`openai.types.responses`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from serving.api.error_styles import printable
from serving.api.schema.openai_chat import MAX_MESSAGES
from serving.api.schema.openai_sampling import doc, refuse
from serving.api.strict_json import JsonValue
from serving.errors import InvalidRequest

_ITEM_TYPES = ("message", "function_call", "function_call_output", "reasoning")
_TEXT_ONLY = "this server serves text models"
_OTHER_PARTS = {
    "input_image": f"images are not supported, {_TEXT_ONLY}",
    "input_file": f"files are not supported, {_TEXT_ONLY}",
    "input_audio": f"audio is not supported, {_TEXT_ONLY}",
}

Status = Literal["in_progress", "completed", "incomplete"]


class _Part(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """Parts are told apart by `type`."""


class InputText(_Part, tag="input_text"):
    text: str
    prompt_cache_breakpoint: Annotated[Any, doc("accepted without effect")] = None


class GivenOutputText(_Part, tag="output_text"):
    text: str
    annotations: Annotated[list[Any] | None, doc("accepted without effect")] = None
    logprobs: Annotated[list[Any] | None, doc("accepted without effect")] = None


class GivenRefusal(_Part, tag="refusal"):
    refusal: str


class GivenReasoningText(_Part, tag="reasoning_text"):
    text: str


class GivenSummaryText(_Part, tag="summary_text"):
    text: str


class _Item(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """Items are told apart by `type`; one without is a message. What models answered can be sent back as it is."""

    id: Annotated[str | None, doc("accepted without effect")] = None
    status: Annotated[Status | None, doc("accepted without effect")] = None


class MessageItem(_Item, tag="message"):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | list[InputText | GivenOutputText | GivenRefusal], doc("text, or parts of text")]
    phase: Annotated[str | None, doc("accepted without effect")] = None


class FunctionCallItem(_Item, tag="function_call"):
    call_id: Annotated[str, doc("the call's id, which its output repeats")]
    name: str
    arguments: Annotated[str, doc("JSON text of the arguments")]


class FunctionCallOutputItem(_Item, tag="function_call_output"):
    call_id: Annotated[str, doc("the call that this answers; it stands earlier in `input`")]
    output: str | list[InputText]


class ReasoningItem(_Item, tag="reasoning"):
    """Shown to the model where its template shows `reasoning_content`, and dropped elsewhere."""

    summary: Annotated[list[GivenSummaryText] | None, doc("accepted without effect")] = None
    content: Annotated[list[GivenReasoningText] | None, doc("what the model thought")] = None
    encrypted_content: Annotated[None, doc("null only: reasoning is sent in `content`")] = None


_ITEMS = (MessageItem, FunctionCallItem, FunctionCallOutputItem, ReasoningItem)
_PARTS = (InputText, GivenOutputText, GivenRefusal, GivenReasoningText)

INPUT_NAMES = tuple(kind.__name__ for kind in (*_ITEMS, *_PARTS))
"""Types in which every null counts as absent."""
MESSAGE_NAME = MessageItem.__name__
"""The type of items that say no type."""

InputItem = MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem


def read_input(given: JsonValue) -> JsonValue:
    """`input` without nulls and with the type of each message filled in, ready to be converted.

    Raises `InvalidRequest` for items and parts that OpenAI has and this server does not serve, by name, and for too many.
    """
    if not isinstance(given, list):
        return given
    if not 1 <= len(given) <= MAX_MESSAGES:
        refuse("input", f"a list of {len(given)}", f"must have 1 to {MAX_MESSAGES} items")
    return [_read_item(f"input[{index}]", item) for index, item in enumerate(given)]


def to_messages(given: str | list[InputItem], instructions: str | None) -> list[dict[str, Any]]:
    """OpenAI's chat messages. Items of one turn of the assistant become one message.

    Raises `InvalidRequest` for the output of a call that is not there.
    """
    messages = _Messages()
    if instructions is not None:
        messages.add({"role": "system", "content": instructions})
    if isinstance(given, str):
        messages.add({"role": "user", "content": given})
    else:
        for index, item in enumerate(given):
            messages.add_item(index, item)
    return messages.finish()


class _Messages:
    """Collects messages; the assistant's turn stays open until somebody else speaks."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._turn: dict[str, Any] | None = None
        self._names: dict[str, str] = {}

    def add(self, message: dict[str, Any]) -> None:
        self._close()
        self._messages.append(message)

    def add_item(self, index: int, item: InputItem) -> None:
        match item:
            case MessageItem(role="assistant"):
                self._add_text("".join(_texts(item.content)))
            case MessageItem():
                self.add({"role": item.role, "content": _content(item.content)})
            case ReasoningItem():
                self._add_reasoning("".join(part.text for part in item.content or []))
            case FunctionCallItem():
                self._names[item.call_id] = item.name
                function = {"name": item.name, "arguments": item.arguments}
                calls = self._assistant().setdefault("tool_calls", [])
                calls.append({"id": item.call_id, "type": "function", "function": function})
            case FunctionCallOutputItem():
                self._add_output(f"input[{index}].call_id", item)

    def finish(self) -> list[dict[str, Any]]:
        self._close()
        return self._messages

    def _assistant(self) -> dict[str, Any]:
        if self._turn is None:
            self._turn = {"role": "assistant", "content": None}
        return self._turn

    def _add_text(self, text: str) -> None:
        turn = self._assistant()
        if turn["content"] is not None and "tool_calls" not in turn:
            self._close()  # two messages of the assistant in a row stay two
            turn = self._assistant()
        turn["content"] = (turn["content"] or "") + text

    def _add_reasoning(self, text: str) -> None:
        if self._turn is not None and self._turn["content"] is not None and "tool_calls" not in self._turn:
            self._close()
        if text:
            turn = self._assistant()
            turn["reasoning_content"] = turn.get("reasoning_content", "") + text

    def _add_output(self, field: str, item: FunctionCallOutputItem) -> None:
        name = self._names.get(item.call_id)
        if name is None:
            refuse(field, item.call_id, "which is the `call_id` of no `function_call` before it")
        content = _content(item.output)
        self.add({"role": "tool", "tool_call_id": item.call_id, "name": name, "content": content})

    def _close(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None and (turn["content"] is not None or "tool_calls" in turn):
            self._messages.append(turn)  # reasoning that led to nothing is not a message


def _read_item(path: str, item: JsonValue) -> JsonValue:
    if not isinstance(item, dict):
        return item
    kind = item.get("type")
    if kind == "item_reference":
        raise InvalidRequest(
            f"`{path}` is an `item_reference`: this server keeps no state between requests, send the item itself",
            field=path,
        )
    if isinstance(kind, str) and kind not in _ITEM_TYPES:
        raise InvalidRequest(
            f"`{path}.type` is {printable(kind)!r}, supported are {', '.join(_ITEM_TYPES)}",
            field=f"{path}.type",
        )
    read = {"type": kind if "type" in item else "message", **_without_nulls(item)}
    for name in ("content", "output"):
        parts = item.get(name)
        if isinstance(parts, list):
            read[name] = [_read_part(f"{path}.{name}[{i}]", part) for i, part in enumerate(parts)]
    return read


def _read_part(path: str, part: JsonValue) -> JsonValue:
    if not isinstance(part, dict):
        return part
    kind = part.get("type")
    if isinstance(kind, str) and kind in _OTHER_PARTS:
        raise InvalidRequest(f"`{path}` is of the type `{kind}`: {_OTHER_PARTS[kind]}", field=path)
    return _without_nulls(part)


def _without_nulls(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Clients that send a whole answer back send the nulls of their own types along."""
    return {name: each for name, each in value.items() if each is not None}


def _texts(content: str | list[InputText | GivenOutputText | GivenRefusal] | list[InputText]) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part.refusal if isinstance(part, GivenRefusal) else part.text for part in content]


def _content(
    content: str | list[InputText | GivenOutputText | GivenRefusal] | list[InputText],
) -> str | list[dict[str, str]]:
    """One part is plain text, which every template knows."""
    texts = _texts(content)
    return texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]
