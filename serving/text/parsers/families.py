"""The ways in which models write calls and reasoning, one entry for each.

Sources: the chat templates and model cards of the families; docs/tools.md describes each format.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Collection

from serving.text.parsers.blocks import CallBlock, Either, JsonCalls, NamedCall
from serving.text.parsers.call_grammars import AnswerShape, JsonCallWriter, PythonCallWriter
from serving.text.parsers.formats import ToolFormat
from serving.text.parsers.python_calls import PythonCalls
from serving.text.parsers.reasoning import ReasoningFormat
from serving.text.parsers.splitter import CallSyntax

_NAME = '{"name": "'
_ARGUMENTS = '", "arguments": '
_PARAMETERS = '", "parameters": '

_CALLS_BEGIN, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL_BEGIN, _CALL_END, _SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"


def _short_call_id() -> str:
    """Mistral's templates refuse ids that are not nine letters and digits."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


def _read_mistral_head(head: str) -> str | None:
    """`name[ARGS]`, `name[CALL_ID]id[ARGS]`; None without [ARGS]."""
    name, args, rest = head.partition("[ARGS]")
    return name.partition("[CALL_ID]")[0].strip() if args and not rest.strip() else None


def _read_deepseek_head(head: str) -> str | None:
    """`function<sep>name` with a fence (V3, R1), or `name<sep>` (V3.1)."""
    before, sep, behind = head.partition(_SEP)
    if not sep:
        return None
    behind = behind.strip()
    if not behind:
        return before.strip().removeprefix(_CALL_BEGIN)
    return behind.removesuffix("```json").strip()


def _json_blocks(names: Collection[str]) -> CallBlock:
    return JsonCalls(names)


def _mistral_blocks(names: Collection[str]) -> CallBlock:
    return Either(JsonCalls(names), NamedCall(names, _read_mistral_head))


def _deepseek_blocks(names: Collection[str]) -> CallBlock:
    return NamedCall(names, _read_deepseek_head)


_MISTRAL_SYNTAX = CallSyntax(starts=("[TOOL_CALLS]",), inner=("[ARGS]", "[CALL_ID]"))
_DEEPSEEK_SYNTAX = CallSyntax(
    starts=(_CALLS_BEGIN, _CALL_BEGIN), inner=(_SEP,), closers=("```", _CALL_END, _CALLS_END)
)

TOOL_FORMATS = (
    ToolFormat(
        "hermes",
        CallSyntax(starts=("<tool_call>",), closers=("</tool_call>",)),
        _json_blocks,
        AnswerShape(
            JsonCallWriter("\n" + _NAME, _ARGUMENTS, "}\n</tool_call>"),
            trigger="<tool_call>",
            separator="\n",
            blocks=True,
        ),
    ),
    ToolFormat(
        "llama3_json",
        CallSyntax(starts=("<|python_tag|>",), bare_starts="{", closers=(";",)),
        lambda names: JsonCalls(names, several=False),
        AnswerShape(JsonCallWriter(_NAME, _PARAMETERS, "}"), separator="; ", auto_trigger="<|python_tag|>"),
    ),
    ToolFormat(
        "pythonic",
        CallSyntax(starts=("<|python_start|>",), bare_starts="[", closers=("<|python_end|>",)),
        PythonCalls,
        AnswerShape(PythonCallWriter(), opening="[", separator=", ", closing="]"),
    ),
    ToolFormat(
        "mistral",
        _MISTRAL_SYNTAX,
        _mistral_blocks,
        AnswerShape(
            JsonCallWriter(_NAME, _ARGUMENTS, "}"),
            trigger="[TOOL_CALLS]",
            opening=" [",
            separator=", ",
            closing="]",
        ),
        new_id=_short_call_id,
    ),
    ToolFormat(
        "mistral_args",
        _MISTRAL_SYNTAX,
        _mistral_blocks,
        AnswerShape(JsonCallWriter("", "[ARGS]"), trigger="[TOOL_CALLS]", blocks=True),
        new_id=_short_call_id,
    ),
    ToolFormat(
        "deepseek_v3",
        _DEEPSEEK_SYNTAX,
        _deepseek_blocks,
        AnswerShape(
            JsonCallWriter(f"{_CALL_BEGIN}function{_SEP}", "\n```json\n", f"\n```{_CALL_END}"),
            trigger=_CALLS_BEGIN,
            separator="\n",
            closing=_CALLS_END,
        ),
    ),
    ToolFormat(
        "deepseek_v31",
        _DEEPSEEK_SYNTAX,
        _deepseek_blocks,
        AnswerShape(JsonCallWriter(_CALL_BEGIN, _SEP, _CALL_END), trigger=_CALLS_BEGIN, closing=_CALLS_END),
    ),
    ToolFormat(
        "granite",
        CallSyntax(starts=("<|tool_call|>", "<tool_call>"), closers=("<|/tool_call|>", "</tool_call>")),
        _json_blocks,
        AnswerShape(
            JsonCallWriter(_NAME, _ARGUMENTS, "}"),
            trigger="<|tool_call|>",
            opening="[",
            separator=", ",
            closing="]",
        ),
    ),
    ToolFormat(
        "command_r",
        CallSyntax(starts=("<|START_ACTION|>",), closers=("<|END_ACTION|>",)),
        _json_blocks,
        AnswerShape(
            JsonCallWriter('", "tool_name": "', _PARAMETERS, "}", counted='{"tool_call_id": "'),
            trigger="<|START_ACTION|>",
            opening="[\n    ",
            separator=",\n    ",
            closing="\n]<|END_ACTION|>",
        ),
    ),
    ToolFormat(
        "command_r_fenced",
        CallSyntax(starts=("Action: ```json", "Action:```json"), closers=("```",)),
        _json_blocks,
        AnswerShape(
            JsonCallWriter('{\n        "tool_name": "', '",\n        "parameters": ', "\n    }"),
            trigger="Action: ```json",
            opening="\n[\n    ",
            separator=",\n    ",
            closing="\n]\n```",
        ),
    ),
    ToolFormat(
        "json",
        CallSyntax(bare_starts="{["),
        _json_blocks,
        AnswerShape(JsonCallWriter(_NAME, _ARGUMENTS, "}"), separator="\n"),
    ),
)

REASONING_FORMATS = (
    ReasoningFormat("think", ("<think>",), ("</think>",)),
    # For models whose prompt does not show that they begin inside of their reasoning.
    ReasoningFormat("think_implicit", ("<think>",), ("</think>",), implicit=True),
    ReasoningFormat("mistral", ("[THINK]",), ("[/THINK]",)),
    ReasoningFormat("command_r", ("<|START_THINKING|>",), ("<|END_THINKING|>",)),
    ReasoningFormat("reasoning", ("<reasoning>",), ("</reasoning>",)),
    ReasoningFormat(
        "granite",
        ("Here is my thought process:", "Here's my thought process:"),
        ("Here is my response:", "Here's my response:"),
    ),
)
