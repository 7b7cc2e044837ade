"""Body of `POST /v1/chat/completions` as types, and its meaning as a `ChatRequest`. Knows nothing of HTTP.

Source of the shapes: OpenAI's API reference and the types of its client (`openai.types.chat`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from serving.api.schema.generate import Limits
from serving.api.schema.openai_formats import check_formats, grammar_of
from serving.api.schema.openai_sampling import SamplingFields, check_sampling, doc, refuse
from serving.api.strict_json import JsonValue
from serving.errors import InvalidRequest, ToolError
from serving.text.chat import ChatRequest

MAX_MESSAGES = 4096
MAX_TOOLS = 128

_FUNCTION_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CHOICES = ("none", "auto", "required")
_PARTS_OF_OTHER_MODELS = {
    "image_url": "images",
    "image": "images",
    "input_image": "images",
    "input_audio": "audio",
    "audio": "audio",
    "audio_url": "audio",
    "video": "videos",
    "video_url": "videos",
    "file": "files",
    "input_file": "files",
}

Text = Annotated[str, Meta(description="text")]


class TextPart(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["text"]
    text: Text
    prompt_cache_breakpoint: Annotated[Any, doc("accepted without effect")] = None
    cache_control: Annotated[Any, doc("accepted without effect")] = None


class CalledFunction(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, doc("name of the function")]
    arguments: Annotated[str | dict[str, Any], doc("JSON text of the arguments, or the arguments")]


class MadeToolCall(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    function: CalledFunction
    id: Annotated[str | None, doc("id of the call, which the tool's answer repeats")] = None
    type: Literal["function"] = "function"
    index: Annotated[int | None, doc("accepted without effect")] = None


class ChatMessage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One message. What models answer with can be sent back as it is."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | list[TextPart] | None, doc("text, or parts of text")] = None
    name: Annotated[str | None, doc("who speaks, if the model's template shows it")] = None
    tool_calls: Annotated[list[MadeToolCall] | None, doc("calls that the assistant made")] = None
    tool_call_id: Annotated[str | None, doc("the call that a tool's message answers")] = None
    reasoning_content: Annotated[str | None, doc("reasoning of the assistant, if the template shows it")] = (
        None
    )
    refusal: Annotated[str | None, doc("text of a refusal of the assistant")] = None
    annotations: Annotated[list[Any] | None, doc("accepted without effect")] = None
    audio: Annotated[None, doc("null only")] = None
    function_call: Annotated[None, doc("null only: deprecated, use `tool_calls`")] = None


class FunctionDefinition(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, doc("1 to 64 letters, digits, `_`, `-` and `.`")]
    description: Annotated[str | None, doc("what the function does, for the model")] = None
    parameters: Annotated[dict[str, Any] | None, doc("JSON schema of the arguments")] = None
    strict: Annotated[bool | None, doc("arguments always follow the schema where calls are forced")] = None


class ToolDefinition(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: str


class NamedTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    function: NamedFunction
    type: Literal["function"] = "function"


class ChatCompletionRequest(SamplingFields, kw_only=True):
    messages: Annotated[list[ChatMessage], doc("the chat so far, 1 to 4096 messages")]
    max_completion_tokens: Annotated[int | None, doc("as `max_tokens`", range_of="max_completion_tokens")] = (
        None
    )
    logprobs: Annotated[bool | None, doc("return the log-probability of each token")] = None
    top_logprobs: Annotated[
        int | None, doc("also of so many likeliest tokens; needs `logprobs`", range_of="top_logprobs")
    ] = None
    response_format: Annotated[
        dict[str, Any] | None,
        doc("`text`, `json_object`, `json_schema` (OpenAI's form), or TGI's `{type, value}`"),
    ] = None
    tools: Annotated[list[ToolDefinition] | None, doc("functions that the model may call, at most 128")] = (
        None
    )
    tool_choice: Annotated[
        str | NamedTool | None, doc("`auto`, `none`, `required`, or one function that must be called")
    ] = None
    tool_prompt: Annotated[str | None, doc("how tools are announced where the template does not")] = None
    parallel_tool_calls: Annotated[bool | None, doc("more than one call in one answer; absent: true")] = None
    reasoning_effort: Annotated[
        Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None,
        doc("given to the chat template as a variable"),
    ] = None
    documents: Annotated[list[dict[str, Any]] | None, doc("given to the chat template")] = None
    chat_template_kwargs: Annotated[dict[str, Any] | None, doc("variables for the chat template")] = None
    add_generation_prompt: Annotated[bool | None, doc("begin the assistant's answer; absent: true")] = None
    continue_final_message: Annotated[bool | None, doc("go on with the last message")] = None
    modalities: Annotated[list[str] | None, doc('only `["text"]`')] = None
    safety_identifier: Annotated[str | None, doc("accepted without effect")] = None
    prompt_cache_key: Annotated[str | None, doc("accepted without effect")] = None
    prompt_cache_retention: Annotated[str | None, doc("accepted without effect")] = None
    prompt_cache_options: Annotated[dict[str, Any] | None, doc("accepted without effect")] = None

    @property
    def num_top_logprobs(self) -> int:
        return self.top_logprobs or 0 if self.logprobs else 0

    @property
    def token_limit(self) -> tuple[str, int | None]:
        """The field that limits the answer, and its value."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens


class _Plain(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A message as templates see it: what is null is not there."""

    role: str
    content: str | list[dict[str, Any]] | UnsetType | None = UNSET
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


def refuse_other_parts(body: dict[str, JsonValue]) -> None:
    """Parts of messages that only other models take, by name. Also bounds the number of messages."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        return
    if not 1 <= len(messages) <= MAX_MESSAGES:
        refuse("messages", f"a list of {len(messages)}", f"must have 1 to {MAX_MESSAGES} messages")
    for index, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        for number, part in enumerate(content if isinstance(content, list) else []):
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind in _PARTS_OF_OTHER_MODELS:
                raise InvalidRequest(
                    f"`messages[{index}].content[{number}]` is of the type `{kind}`: "
                    f"{_PARTS_OF_OTHER_MODELS[kind]} are not supported, this server serves text models",
                    field=f"messages[{index}].content[{number}]",
                )


def check_chat(fields: ChatCompletionRequest, limits: Limits) -> None:
    """Raises `InvalidRequest` or `ToolError` naming the first wrong field."""
    check_sampling(fields, limits)
    name, tokens = fields.token_limit
    if fields.max_tokens is not None and fields.max_tokens != tokens:
        refuse("max_tokens", fields.max_tokens, f"but `max_completion_tokens` is {tokens}: send one of them")
    if tokens is not None and tokens < 1:
        refuse(name, tokens, "must be at least 1")
    if fields.top_logprobs is not None and not fields.logprobs:
        refuse("top_logprobs", fields.top_logprobs, "which needs `logprobs: true`")
    if fields.modalities is not None and fields.modalities != ["text"]:
        refuse("modalities", fields.modalities, 'must be ["text"]: this server serves text models')
    for index, message in enumerate(fields.messages):
        _check_message(index, message)
    choice = fields.tool_choice
    check_tools(
        [
            (f"tools[{index}].function.name", tool.function.name)
            for index, tool in enumerate(fields.tools or [])
        ],
        choice=choice if isinstance(choice, str) else None,
        chosen=[choice.function.name] if isinstance(choice, NamedTool) else [],
    )
    check_formats(fields, fields.response_format, limits)
    if fields.continue_final_message and fields.add_generation_prompt:
        raise InvalidRequest(
            "`add_generation_prompt` and `continue_final_message` exclude each other",
            field="add_generation_prompt",
        )


def to_chat_request(fields: ChatCompletionRequest) -> ChatRequest:
    """A checked body as the template and the tools' formats take it."""
    choice = fields.tool_choice
    named = isinstance(choice, NamedTool)
    grammar = grammar_of(fields, fields.response_format)
    tool_choice = choice.function.name if isinstance(choice, NamedTool) else choice or "auto"
    if grammar is not None and fields.tools and tool_choice != "none":
        raise ToolError(
            "a response format and tools cannot be combined in one answer: leave one of them out, or set "
            '`tool_choice` to "none"'
        )
    variables = dict(fields.chat_template_kwargs or {})
    if fields.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", fields.reasoning_effort)
    continues = bool(fields.continue_final_message)
    begins = fields.add_generation_prompt
    return ChatRequest(
        messages=[_plain(message) for message in fields.messages],
        tools=[plain_tool(tool.function) for tool in fields.tools or []],
        tool_choice=tool_choice,
        named_tool=named,
        parallel_tool_calls=fields.parallel_tool_calls is not False,
        response_grammar=grammar,
        documents=fields.documents,
        template_variables=variables,
        add_generation_prompt=not continues if begins is None else begins,
        continue_final_message=continues,
        tool_prompt=fields.tool_prompt or None,
    )


def _check_message(index: int, message: ChatMessage) -> None:
    path = f"messages[{index}]"
    if message.content is None and not message.tool_calls and message.refusal is None:
        raise InvalidRequest(f"`{path}.content` is missing", field=f"{path}.content")
    if message.tool_calls and message.role != "assistant":
        refuse(f"{path}.role", message.role, "but only the assistant makes `tool_calls`")


def check_tools(tools: Sequence[tuple[str, str]], *, choice: str | None, chosen: Sequence[str]) -> None:
    """`tools` are the places of the names in the request, and the names; `choice` and `chosen` are what `tool_choice`
    says: one word, or names. Raises `InvalidRequest`.
    """
    if len(tools) > MAX_TOOLS:
        refuse("tools", f"a list of {len(tools)}", f"must have at most {MAX_TOOLS}")
    names: set[str] = set()
    for field, name in tools:
        if not _FUNCTION_NAME.fullmatch(name):
            refuse(field, name, "must be 1 to 64 letters, digits, `_`, `-` and `.`")
        if name in names:
            refuse(field, name, "which is the name of another tool")
        names.add(name)
    for name in chosen:
        if name not in names:
            refuse("tool_choice", name, "which is none of the `tools`")
    if choice is not None and choice not in _CHOICES:
        refuse("tool_choice", choice, f"must be one of {', '.join(_CHOICES)} or name a function")
    if choice == "required" and not tools:
        refuse("tool_choice", choice, "which needs `tools`")


def _plain(message: ChatMessage) -> dict[str, Any]:
    content: str | list[dict[str, Any]] | None = message.refusal if message.content is None else None
    if isinstance(message.content, str):
        content = message.content
    elif message.content is not None:
        content = [{"type": "text", "text": part.text} for part in message.content]
    plain: dict[str, Any] = msgspec.to_builtins(
        _Plain(
            role=message.role,
            content=content,
            name=message.name,
            tool_calls=[_plain_call(call) for call in message.tool_calls or []] or None,
            tool_call_id=message.tool_call_id,
            reasoning_content=message.reasoning_content,
        )
    )
    return plain


def _plain_call(call: MadeToolCall) -> dict[str, Any]:
    plain: dict[str, Any] = {} if call.id is None else {"id": call.id}
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {**plain, "type": "function", "function": function}


def plain_tool(function: FunctionDefinition) -> dict[str, Any]:
    """A function as templates and the tools' formats see it: what is null is not there."""
    plain = msgspec.to_builtins(function)
    return {"type": "function", "function": {k: v for k, v in plain.items() if v is not None}}
