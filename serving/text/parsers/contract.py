"""What a parser of model output gives back, and what its callers may rely on. Knows no format."""

from __future__ import annotations

from typing import Protocol

import msgspec


class ToolCallDelta(msgspec.Struct):
    """A piece of call number `index`. The first piece of a call has `name` and `id`, later ones only `arguments`.

    The `arguments` of a call join to JSON text of an object, unless the generation was cut inside them.
    """

    index: int
    name: str | None = None
    id: str | None = None
    arguments: str = ""


class MessageDelta(msgspec.Struct):
    """What one step adds to the message."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = msgspec.field(default_factory=list)

    def add_arguments(self, index: int, text: str) -> None:
        """Add to the arguments of call `index`, in the piece at hand where it is the same call's."""
        if self.tool_calls and self.tool_calls[-1].index == index:
            self.tool_calls[-1].arguments += text
        else:
            self.tool_calls.append(ToolCallDelta(index=index, arguments=text))


class MessageParser(Protocol):
    """Takes one answer apart. Its deltas join to the same message for every way to cut the text into pushes."""

    @property
    def called_tools(self) -> bool:
        """True as soon as a call has been reported."""

    def push(self, text: str) -> MessageDelta:
        """The text goes on with `text`."""

    def push_special(self, spelling: str) -> MessageDelta:
        """A special token follows; one that means nothing to the format is dropped, as everywhere."""

    def finish(self) -> MessageDelta:
        """The text has ended: what was held back. Nothing may be pushed afterwards."""
