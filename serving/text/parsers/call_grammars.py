"""Writes one call, or an answer full of calls, as grammar rules: the counterpart of the block readers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from serving.text.parsers.lark import LarkGrammar
from serving.text.parsers.tools import Tool

# More in one answer are a model that repeats itself.
MAX_CALLS = 32

# What stands for a name and for arguments in an example.
_EXAMPLE = ("function_name", '{"argument": "value"}')

# Schemas of objects made of these words alone can be written member by member.
_PLAIN_WORDS = {"type", "properties", "required", "additionalProperties", "title", "description"}
_PLAIN_WORDS |= {"$defs", "definitions", "$schema", "$id", "strict", "examples", "default"}


class CallWriter(Protocol):
    """How one call is written."""

    def rule(self, lark: LarkGrammar, tool: Tool, number: int) -> str:
        """Add the rules of a call of `tool`; `number` keeps their names apart. Returns an expression."""

    def example(self) -> str:
        """A call of no function in particular, to show a model."""


@dataclass(frozen=True, slots=True)
class JsonCallWriter:
    """`before`, the tool's name, `after`, the arguments as a JSON object, `end`; with `counted` that and a number
    come first."""

    before: str
    after: str
    end: str = ""
    counted: str = ""

    def rule(self, lark: LarkGrammar, tool: Tool, number: int) -> str:
        arguments = lark.json(f"arguments_{number}", tool.parameters)
        parts = [lark.literal(self.before + tool.name + self.after), arguments, lark.literal(self.end)]
        if self.counted:
            parts[:0] = [lark.literal(self.counted), lark.rule("COUNT", "/[0-9]{1,3}/")]
        return lark.rule(f"call_{number}", " ".join(filter(None, parts)))

    def example(self) -> str:
        name, arguments = _EXAMPLE
        count = self.counted and self.counted + "0"
        return f"{count}{self.before}{name}{self.after}{arguments}{self.end}"


class PythonCallWriter:
    """`name(key=value, …)` with values as JSON, which Python reads but for three constants; where members depend on
    each other, or have names that are none in Python, `name(**{…})`."""

    def rule(self, lark: LarkGrammar, tool: Tool, number: int) -> str:
        name = f"call_{number}"
        members = _plain_members(tool.parameters)
        if members is None:
            arguments = lark.json(f"arguments_{number}", tool.parameters)
            return lark.rule(name, f"{lark.literal(tool.name + '(**')} {arguments} {lark.literal(')')}")
        # first_n: the members from number n on when none came before them; next_n: when some did.
        first = next_ = '""'
        for position, (key, schema, required) in reversed(list(enumerate(members))):
            value = lark.json(f"value_{number}_{position}", schema)
            member = f"{lark.literal(key + '=')} {value} {next_}"
            without = ("", "") if required else (f" | {first}", f" | {next_}")
            next_rule = f"{lark.literal(', ')} {member}{without[1]}"
            first = lark.rule(f"first_{number}_{position}", member + without[0])
            next_ = lark.rule(f"next_{number}_{position}", next_rule)
        return lark.rule(
            name, " ".join(filter(None, (lark.literal(tool.name + "("), first, lark.literal(")"))))
        )

    def example(self) -> str:
        return f'{_EXAMPLE[0]}(argument="value")'


def _plain_members(parameters: Mapping[str, object]) -> list[tuple[str, dict[str, object], bool]] | None:
    """(name, schema, whether required) of each member, None when the schema says more than that."""
    properties = parameters.get("properties", {})
    required = parameters.get("required", [])
    if not isinstance(properties, Mapping) or not isinstance(required, list):
        return None
    if not _PLAIN_WORDS.issuperset(parameters) or not all(name in properties for name in required):
        return None
    shared = {word: parameters[word] for word in ("$defs", "definitions") if word in parameters}
    members: list[tuple[str, dict[str, object], bool]] = []
    for name, schema in properties.items():
        # A reference to anything but the shared definitions would point outside of the member.
        if not isinstance(schema, Mapping) or not name.isidentifier() or "#/properties" in json.dumps(schema):
            return None
        members.append((name, {**schema, **shared}, name in required))
    return members


@dataclass(frozen=True, slots=True)
class AnswerShape:
    """How an answer with calls is written: `trigger opening call separator call … closing`, or with `blocks` each
    further call behind a separator in a block of its own. Without a trigger a call cannot be told from text.
    An `auto_trigger` is one that only some calls of free answers begin with."""

    write_call: CallWriter
    trigger: str = ""
    opening: str = ""
    separator: str = ""
    closing: str = ""
    blocks: bool = False
    auto_trigger: str = ""

    def example(self) -> str:
        """An answer with one call, to show a model."""
        return f"{self.trigger}{self.opening}{self.write_call.example()}{self.closing}"

    def forced(self, lark: LarkGrammar, tools: Sequence[Tool], *, parallel: bool) -> str:
        """Calls and nothing else: one, or with `parallel` one or more."""
        block = f"{lark.literal(self.trigger)} {self._block(lark, tools, parallel=parallel)}".lstrip()
        if not (parallel and self.blocks):
            return block
        block = lark.rule("block", block)
        return f"{block} ({lark.literal(self.separator)} {block}){{0,{MAX_CALLS - 1}}}"

    def triggered(
        self, lark: LarkGrammar, tools: Sequence[Tool], *, parallel: bool, allowed: Sequence[str]
    ) -> str:
        """Any text, in which the trigger begins a block of calls; with `parallel` again and again."""
        text = lark.text(allowed)
        head = lark.text_up_to("head", [self.trigger or self.auto_trigger], allowed)
        block = f"{head} {self._block(lark, tools, parallel=parallel)}"
        return f"({block})* {text}" if parallel else f"{block} | {text}"

    def _block(self, lark: LarkGrammar, tools: Sequence[Tool], *, parallel: bool) -> str:
        """What stands behind the trigger."""
        ways = [self.write_call.rule(lark, tool, number) for number, tool in enumerate(tools)]
        calls = lark.rule("call", " | ".join(ways))
        if parallel and not self.blocks:
            calls = f"{calls} ({lark.literal(self.separator)} {calls}){{0,{MAX_CALLS - 1}}}"
        return " ".join(filter(None, (lark.literal(self.opening), calls, lark.literal(self.closing))))
