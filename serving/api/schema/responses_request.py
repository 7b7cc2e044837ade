"""Body of `POST /v1/responses` as types, and its meaning as a `ChatRequest`. Knows nothing of HTTP.

Source of the shapes: OpenAI's API reference and the types of its client (`openai.types.responses`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from serving.api.error_styles import printable
from serving.api.schema.generate import Limits
from serving.api.schema.openai_chat import FunctionDefinition, check_tools, plain_tool
from serving.api.schema.openai_formats import MAX_GRAMMAR_CHARS, grammar_of
from serving.api.schema.openai_sampling import RANGES, SamplingFields, check_sampling, doc, refuse
from serving.api.schema.responses_input import InputItem, to_messages
from serving.api.strict_json import JsonValue
from serving.errors import InvalidRequest, ToolError
from serving.sampling_params import Grammar
from serving.text.chat import ChatRequest

LOGPROBS = "message.output_text.logprobs"

_MAX_NAME_CHARS = 64
_MAX_METADATA_KEY_CHARS = 64
_MAX_METADATA_VALUE_CHARS = 512
_NO_STATE = "this server keeps no state between requests"
_NOT_INCLUDED = {
    "reasoning.encrypted_content": "reasoning is sent in full: send the items back as they are",
    "web_search_call.action.sources": "this server does not search the web",
    "code_interpreter_call.outputs": "this server runs no code",
    "computer_call_output.output.image_url": "this server has no computer tool",
    "file_search_call.results": "this server keeps no files",
    "message.input_image.image_url": "this server serves text models",
}


class FunctionTool(FunctionDefinition, kw_only=True, forbid_unknown_fields=True):
    type: Literal["function"]

    @property
    def definition(self) -> FunctionDefinition:
        """Without the type, as chats have it."""
        return FunctionDefinition(
            name=self.name, description=self.description, parameters=self.parameters, strict=self.strict
        )


class _Choice(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """Choices are told apart by `type`."""


class ChosenFunction(_Choice, tag="function"):
    name: str


class AllowedTools(_Choice, tag="allowed_tools"):
    mode: Literal["auto", "required"]
    tools: Annotated[list[ChosenFunction], doc("some of the `tools`")]


class _Format(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """Formats are told apart by `type`."""


class PlainText(_Format, tag="text"):
    pass


class JsonObject(_Format, tag="json_object"):
    pass


class JsonSchema(_Format, tag="json_schema"):
    name: Annotated[str, doc("1 to 64 characters, without effect")]
    schema: Annotated[dict[str, Any], doc("JSON schema that the answer satisfies")]
    description: Annotated[str | None, doc("without effect")] = None
    strict: Annotated[bool | None, doc("without effect: the answer always follows the schema")] = None


class TextConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    format: PlainText | JsonObject | JsonSchema | None = None
    verbosity: Annotated[str | None, doc("only `medium`: no model served here knows it")] = None


class ReasoningConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    effort: Annotated[
        Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None,
        doc("given to the chat template as the variable `reasoning_effort`"),
    ] = None
    summary: Annotated[str | None, doc("only `auto`: reasoning is returned in full, never as a summary")] = (
        None
    )
    generate_summary: Annotated[None, doc("null only: deprecated, as `summary`")] = None
    context: Annotated[str | None, doc("only `auto`: the model's template decides")] = None
    mode: Annotated[str | None, doc("only `standard`")] = None


class ResponsesStreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    include_obfuscation: Annotated[bool | None, doc("only false: events are not padded")] = None


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """A field that is null counts as absent."""

    input: Annotated[str | list[InputItem], doc("text of the user, or the chat so far, 1 to 4096 items")]
    model: Annotated[str | None, doc("name of the model; absent, empty or `tgi`: the served one")] = None
    instructions: Annotated[str | None, doc("system message in front of `input`")] = None
    max_output_tokens: Annotated[
        int | None,
        doc(
            "longest answer with reasoning, in tokens; absent: the rest of the context", range_of="max_tokens"
        ),
    ] = None
    temperature: Annotated[
        float | None, doc("0 takes the likeliest token; absent: 1", range_of="temperature")
    ] = None
    top_p: Annotated[float | None, doc("share of the likeliest tokens to choose from", range_of="top_p")] = (
        None
    )
    top_logprobs: Annotated[
        int | None,
        doc(f"likeliest tokens at each position; needs `include: [{LOGPROBS}]`", range_of="top_logprobs"),
    ] = None
    include: Annotated[list[str] | None, doc(f"only `{LOGPROBS}`")] = None
    tools: Annotated[list[FunctionTool] | None, doc("functions that the model may call, at most 128")] = None
    tool_choice: Annotated[
        str | ChosenFunction | AllowedTools | None,
        doc("`auto`, `none`, `required`, one function that must be called, or some of the tools"),
    ] = None
    parallel_tool_calls: Annotated[bool | None, doc("more than one call in one answer; absent: true")] = None
    text: Annotated[TextConfig | None, doc("format of the answer")] = None
    reasoning: Annotated[ReasoningConfig | None, doc("how the model reasons")] = None
    stream: Annotated[bool | None, doc("send the answer in events as it is made")] = None
    stream_options: Annotated[ResponsesStreamOptions | None, doc("only with `stream`")] = None
    store: Annotated[bool | None, doc("nothing is stored: only false is accepted; absent: false")] = None
    background: Annotated[bool | None, doc("only false")] = None
    truncation: Annotated[str | None, doc("only `disabled`: input is never cut")] = None
    metadata: Annotated[dict[str, str] | None, doc("returned with the answer; at most 16 entries")] = None
    user: Annotated[str | None, doc("accepted without effect")] = None
    service_tier: Annotated[str | None, doc("accepted without effect")] = None
    safety_identifier: Annotated[str | None, doc("accepted without effect")] = None
    prompt_cache_key: Annotated[str | None, doc("accepted without effect")] = None
    prompt_cache_retention: Annotated[str | None, doc("accepted without effect")] = None
    prompt_cache_options: Annotated[dict[str, Any] | None, doc("accepted without effect")] = None

    @property
    def sampling(self) -> SamplingFields:
        """The fields that all OpenAI routes have."""
        return SamplingFields(
            model=self.model,
            temperature=self.temperature,
            top_p=self.top_p,
            stream=self.stream,
            store=self.store,
            metadata=self.metadata,
        )

    @property
    def num_top_logprobs(self) -> int | None:
        """None: log-probabilities were not asked for."""
        return self.top_logprobs or 0 if LOGPROBS in (self.include or ()) else None

    @property
    def offered_tools(self) -> list[FunctionTool]:
        """Those that may be called."""
        tools = self.tools or []
        if not isinstance(self.tool_choice, AllowedTools):
            return tools
        names = {tool.name for tool in self.tool_choice.tools}
        return [tool for tool in tools if tool.name in names]


def refuse_other_tools(given: JsonValue) -> None:
    """Tools that OpenAI runs itself, by name."""
    for index, tool in enumerate(given if isinstance(given, list) else []):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind != "function":
            raise InvalidRequest(
                f"`tools[{index}].type` is {printable(kind)!r}, which is not supported: this server runs no tools, it "
                "offers yours to the model (the type `function`)",
                field=f"tools[{index}].type",
            )


def check_responses(fields: ResponsesRequest, limits: Limits) -> None:
    """Raises `InvalidRequest` or `ToolError` naming the first wrong field."""
    check_sampling(fields.sampling, limits)
    tokens = fields.max_output_tokens
    if tokens is not None and not (tokens >= 1 and RANGES["max_tokens"].holds(tokens)):
        refuse("max_output_tokens", tokens, "must be at least 1")
    _check_logprobs(fields)
    _check_options(fields)
    _check_metadata(fields.metadata or {})
    _check_tools(fields)
    _check_format(fields.text, limits)


def to_chat_request(fields: ResponsesRequest) -> ChatRequest:
    """A checked body as the template and the tools' formats take it. Raises `InvalidRequest` or `ToolError`."""
    choice = fields.tool_choice
    named = isinstance(choice, ChosenFunction)
    word = "auto"
    if isinstance(choice, AllowedTools):
        word = choice.mode
    elif choice is not None:
        word = choice.name if isinstance(choice, ChosenFunction) else choice
    tools = fields.offered_tools
    grammar = _grammar(fields.text)
    if grammar is not None and tools and word != "none":
        raise ToolError(
            "a text format and tools cannot be combined in one answer: leave one of them out, or set "
            '`tool_choice` to "none"'
        )
    effort = None if fields.reasoning is None else fields.reasoning.effort
    return ChatRequest(
        messages=to_messages(fields.input, fields.instructions),
        tools=[plain_tool(tool.definition) for tool in tools],
        tool_choice=word,
        named_tool=named,
        parallel_tool_calls=fields.parallel_tool_calls is not False,
        response_grammar=grammar,
        template_variables={} if effort is None else {"reasoning_effort": effort},
    )


def _check_logprobs(fields: ResponsesRequest) -> None:
    for name in fields.include or []:
        if name != LOGPROBS:
            reason = _NOT_INCLUDED.get(name, f"only `{LOGPROBS}` is known here")
            raise InvalidRequest(f"`include` has {printable(name)!r}: {reason}", field="include")
    if fields.top_logprobs is None:
        return
    if not RANGES["top_logprobs"].holds(fields.top_logprobs):
        refuse("top_logprobs", fields.top_logprobs, f"must be {RANGES['top_logprobs']}")
    if fields.top_logprobs and fields.num_top_logprobs is None:
        refuse("top_logprobs", fields.top_logprobs, f'which needs `include: ["{LOGPROBS}"]`')


def _check_options(fields: ResponsesRequest) -> None:
    """What has one accepted value."""
    text, reasoning = fields.text or TextConfig(), fields.reasoning or ReasoningConfig()
    if fields.background:
        refuse("background", True, f"only false is accepted: {_NO_STATE}")
    _only(fields.truncation, "disabled", "truncation", "input is never cut")
    _only(text.verbosity, "medium", "text.verbosity", "no model served here knows it, say it in a message")
    _only(reasoning.summary, "auto", "reasoning.summary", "reasoning is returned in full, never as a summary")
    _only(reasoning.context, "auto", "reasoning.context", "the model's template decides")
    _only(reasoning.mode, "standard", "reasoning.mode", "there is no other")
    options = fields.stream_options
    if options is None:
        return
    if not fields.stream:
        raise InvalidRequest("`stream_options` is only allowed with `stream: true`", field="stream_options")
    if options.include_obfuscation:
        refuse("stream_options.include_obfuscation", True, "only false is accepted: events are not padded")


def _only(value: str | None, accepted: str, field: str, reason: str) -> None:
    if value is not None and value != accepted:
        refuse(field, value, f'only "{accepted}" is accepted: {reason}')


def _check_metadata(metadata: dict[str, str]) -> None:
    for name, value in metadata.items():
        if len(name) > _MAX_METADATA_KEY_CHARS:
            refuse("metadata", name, f"names must have at most {_MAX_METADATA_KEY_CHARS} characters")
        if len(value) > _MAX_METADATA_VALUE_CHARS:
            refuse("metadata", value, f"values must have at most {_MAX_METADATA_VALUE_CHARS} characters")


def _check_tools(fields: ResponsesRequest) -> None:
    choice = fields.tool_choice
    chosen: list[str] = []
    if isinstance(choice, ChosenFunction):
        chosen = [choice.name]
    elif isinstance(choice, AllowedTools):
        chosen = [tool.name for tool in choice.tools]
        if not chosen:
            refuse("tool_choice.tools", [], "must name at least one of the `tools`")
    check_tools(
        [(f"tools[{index}].name", tool.name) for index, tool in enumerate(fields.tools or [])],
        choice=choice if isinstance(choice, str) else None,
        chosen=chosen,
    )


def _check_format(text: TextConfig | None, limits: Limits) -> None:
    grammar = _grammar(text)
    if grammar is None:
        return
    if not limits.grammar_support:
        raise InvalidRequest(
            "`text.format`: structured output is switched off on this server", field="text.format"
        )
    if (
        text is not None
        and isinstance(text.format, JsonSchema)
        and not 1 <= len(text.format.name) <= _MAX_NAME_CHARS
    ):
        refuse("text.format.name", text.format.name, f"must have 1 to {_MAX_NAME_CHARS} characters")
    if len(grammar.source) > MAX_GRAMMAR_CHARS:
        raise InvalidRequest(
            f"`text.format.schema` has {len(grammar.source)} characters, must have at most {MAX_GRAMMAR_CHARS}",
            field="text.format.schema",
        )


def _grammar(text: TextConfig | None) -> Grammar | None:
    match None if text is None else text.format:
        case JsonObject():
            return grammar_of(SamplingFields(), {"type": "json_object"})
        case JsonSchema(schema=schema):
            return grammar_of(SamplingFields(), {"type": "json_schema", "json_schema": {"schema": schema}})
        case _:
            return None
