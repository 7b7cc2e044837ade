"""Takes a model's answers apart into text, reasoning and tool calls, and makes the grammars that calls have to match.

Everything here is linear in the text and bounded in memory; nothing of it is ever evaluated.
"""

from serving.text.parsers.contract import MessageDelta, MessageParser, ToolCallDelta
from serving.text.parsers.find import find_reasoning_format, find_tool_format, new_parser
from serving.text.parsers.formats import ToolFormat
from serving.text.parsers.reasoning import ReasoningFormat
from serving.text.parsers.tools import Tool, offered_tools

__all__ = [
    "MessageDelta",
    "MessageParser",
    "ReasoningFormat",
    "Tool",
    "ToolCallDelta",
    "ToolFormat",
    "find_reasoning_format",
    "find_tool_format",
    "new_parser",
    "offered_tools",
]
