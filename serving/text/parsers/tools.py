"""The tools that a request offers, checked. Knows nothing of how a model writes calls."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

import msgspec

from serving.errors import ToolError

MAX_TOOLS = 128
MAX_NAME_CHARS = 64
# OpenAI's, and the dot that names of MCP tools have.
_NAME_CHARS = frozenset(string.ascii_letters + string.digits + "_-.")
# With one of these in a schema, an object's members are not only those of `properties`.
_OPEN_ENDED = {"additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames"}
_OPEN_ENDED |= {"allOf", "anyOf", "oneOf", "not", "if", "$ref", "$dynamicRef", "dependentSchemas"}


class Tool(msgspec.Struct, frozen=True):
    """One function. `parameters` is a JSON schema that only objects satisfy."""

    name: str
    parameters: dict[str, object]
    description: str = ""


def offered_tools(tools: Sequence[object], *, named: str | None = None) -> tuple[Tool, ...]:
    """The functions of OpenAI's tool objects; with `named` only that one. Raises `ToolError`."""
    if len(tools) > MAX_TOOLS:
        raise ToolError(f"Tool error: `tools` has {len(tools)} entries, the limit is {MAX_TOOLS}")
    offered: dict[str, Tool] = {}
    for position, tool in enumerate(tools):
        read = _read_tool(tool, f"tools[{position}]")
        if read.name in offered:
            raise ToolError(f"Tool error: `tools` has two functions called {read.name!r}: rename one")
        offered[read.name] = read
    if named is None:
        return tuple(offered.values())
    if named not in offered:
        raise ToolError(f"Tool error: `tool_choice` names {named[:80]!r}, which is not in `tools`")
    return (offered[named],)


def _read_tool(tool: object, place: str) -> Tool:
    if not isinstance(tool, Mapping) or tool.get("type", "function") != "function":
        raise ToolError(f'Tool error: `{place}` must be an object with "type": "function"')
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise ToolError(f"Tool error: `{place}.function` must be an object")
    name = function.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS or not _NAME_CHARS.issuperset(name):
        shown = repr(name[:80]) if isinstance(name, str) else f"a {type(name).__name__}"
        raise ToolError(
            f"Tool error: `{place}.function.name` is {shown}, must be 1 to {MAX_NAME_CHARS} letters, digits, "
            "underscores, dashes or dots"
        )
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping):
        raise ToolError(f"Tool error: `{place}.function.parameters` must be a JSON schema (an object)")
    description = function.get("description")
    return Tool(name, _object_schema(parameters, place), description if isinstance(description, str) else "")


def _object_schema(parameters: Mapping[str, object], place: str) -> dict[str, object]:
    kind = parameters.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise ToolError(
            f"Tool error: `{place}.function.parameters.type` is {str(kind)[:80]!r}, must be 'object': "
            "arguments have names"
        )
    schema = {**parameters, "type": "object"}
    # No function takes arguments that its description does not name, and a small model invents them gladly.
    if isinstance(schema.get("properties"), Mapping) and not any(word in schema for word in _OPEN_ENDED):
        schema["additionalProperties"] = False
    return schema
