"""Which formats a model uses, found in its chat template, and the parser for one answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from serving.errors import ConfigError
from serving.text.parsers.contract import MessageParser
from serving.text.parsers.families import REASONING_FORMATS, TOOL_FORMATS
from serving.text.parsers.formats import ToolFormat
from serving.text.parsers.message import AnswerParser
from serving.text.parsers.reasoning import ReasoningFormat, ReasoningSplitter
from serving.text.parsers.tools import Tool

NO_FORMAT = "none"

# In order: the format and the texts that its templates have, all of them.
_TOOL_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("deepseek_v3", ("tool▁calls▁begin", "```json")),
    ("deepseek_v31", ("tool▁calls▁begin",)),
    ("mistral_args", ("[TOOL_CALLS]", "[ARGS]")),
    ("mistral", ("[TOOL_CALLS]",)),
    ("command_r", ("<|START_ACTION|>",)),
    ("command_r_fenced", ("Action:", "```json")),
    ("granite", ("<|tool_call|>",)),
    ("hermes", ("<tool_call>",)),
    ("pythonic", ("func_name1(",)),
    ("llama3_json", ("dictionary of argument name",)),
    ("llama3_json", ("<|python_tag|>",)),
)
_REASONING_SIGNS: tuple[tuple[str, str], ...] = (
    ("command_r", "<|START_THINKING|>"),
    ("mistral", "[THINK]"),
    ("think", "</think>"),
    ("think", "<think>"),
    ("reasoning", "<reasoning>"),
    ("granite", "Here is my thought process:"),
)


def find_tool_format(
    template_source: str | None, special_ids: Mapping[str, int], *, name: str | None = None
) -> ToolFormat:
    """The format of a model with this chat template; `json` when it shows none of those known.

    `special_ids` maps the spelling of every special token to its id: without a template they are what is looked at,
    and a marker that is a token of its own counts as that only. `name` chooses the format instead; `ConfigError` for
    one that does not exist.
    """
    formats = {tool_format.name: tool_format for tool_format in TOOL_FORMATS}
    if name is None:
        shows = _shows(template_source, special_ids)
        name = next((found for found, signs in _TOOL_SIGNS if all(map(shows, signs))), "json")
    elif name not in formats:
        raise ConfigError(f"TOOL_FORMAT is {name!r}, must be one of {', '.join(formats)}")
    found = formats[name]
    return replace(found, special_ids=_of_interest(special_ids, found.markers))


def find_reasoning_format(
    template_source: str | None, special_ids: Mapping[str, int], *, name: str | None = None
) -> ReasoningFormat | None:
    """As `find_tool_format`; None when the model does not show its reasoning, or with the name `none`."""
    formats = {reasoning.name: reasoning for reasoning in REASONING_FORMATS}
    if name is None:
        shows = _shows(template_source, special_ids)
        name = next((found for found, sign in _REASONING_SIGNS if shows(sign)), NO_FORMAT)
    elif name not in (*formats, NO_FORMAT):
        raise ConfigError(f"REASONING_FORMAT is {name!r}, must be one of {', '.join(formats)}, {NO_FORMAT}")
    if name == NO_FORMAT:
        return None
    found = formats[name]
    return replace(found, special_ids=_of_interest(special_ids, found.markers))


def new_parser(
    tool_format: ToolFormat | None,
    tools: Sequence[Tool] = (),
    *,
    reasoning: ReasoningFormat | None = None,
    prompt_text: str = "",
    constrained: bool = False,
    forced: bool = False,
) -> MessageParser | None:
    """The parser for one answer to `prompt_text`; None when there is nothing to take apart.

    `constrained` says that the engine holds the answer to what `tool_format.grammar` returned for the same `forced`,
    so that calls can be passed on while they are being written.
    """
    calls = None
    if tool_format is not None and tools:
        calls = tool_format.new_splitter(tools, constrained=constrained, forced=forced)
    thoughts = None if reasoning is None else ReasoningSplitter(reasoning, prompt_text=prompt_text)
    if calls is None and thoughts is None:
        return None
    return AnswerParser(thoughts, calls)


def _shows(template_source: str | None, special_ids: Mapping[str, int]) -> Callable[[str], bool]:
    if template_source is not None:
        return template_source.__contains__
    return lambda sign: any(sign in spelling for spelling in special_ids)


def _of_interest(special_ids: Mapping[str, int], markers: Collection[str]) -> dict[str, int]:
    return {spelling: token_id for spelling, token_id in special_ids.items() if spelling in markers}
