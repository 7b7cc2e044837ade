"""Divides an answer into text and blocks of calls, and decides when a call is certain. Knows no format's details."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from serving.text.parsers.blocks import CallBlock
from serving.text.parsers.contract import MessageDelta, ToolCallDelta
from serving.text.parsers.markers import WHITESPACE, MarkerFinder, TrailingSpace

# A block that has no grammar waits until it is complete; one longer than this is text.
MAX_BLOCK_CHARS = 2**20


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """Where blocks of calls begin and end in a model's answers.

    `starts` begin a block anywhere; one of the characters `bare_starts` begins a block at the start of the answer and
    directly behind another block. Of `closers` each may follow a block once, in this order. `inner` markers stand inside.
    """

    starts: tuple[str, ...] = ()
    bare_starts: str = ""
    closers: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        return (*self.starts, *self.inner, *self.closers)


class CallSplitter:
    """Text and calls of one answer.

    A block is reported as a whole once it is complete and every call in it is valid; otherwise it is content, as
    generated. With `guided` (a grammar holds the model to the block's syntax) calls are reported as they are written.
    Whitespace next to a block belongs to neither text nor call.
    """

    __slots__ = (
        "_after",
        "_block",
        "_closers",
        "_finder",
        "_guided",
        "_guided_bare",
        "_index",
        "_live",
        "_may_begin",
        "_new_block",
        "_new_id",
        "_num_chars",
        "_num_reported",
        "_raw",
        "_space",
        "_syntax",
        "_tail",
    )

    def __init__(
        self,
        syntax: CallSyntax,
        new_block: Callable[[], CallBlock],
        new_id: Callable[[], str],
        *,
        special: Collection[str] = (),
        guided: bool = False,
        guided_bare: bool = False,
    ) -> None:
        """Markers in `special` are tokens of their own: the same characters as text begin nothing.

        `guided` is said of blocks behind one of `syntax.starts`, `guided_bare` of the others.
        """
        self._syntax = syntax
        self._new_block = new_block
        self._new_id = new_id
        self._guided = guided
        self._guided_bare = guided_bare
        self._finder = MarkerFinder([start for start in syntax.starts if start not in special])
        # Whitespace that is content only if no block follows.
        self._space = TrailingSpace()
        self._block: CallBlock | None = None
        self._live = False
        # Text of the block, for as long as nothing of it has been reported.
        self._raw: list[str] = []
        self._num_chars = 0
        self._num_reported = 0
        self._index = -1
        # True while only whitespace or blocks came before.
        self._may_begin = True
        # Directly behind a block: the closers that may still come, and what may be the beginning of one.
        self._after = False
        self._closers: tuple[str, ...] = ()
        self._tail = ""

    @property
    def called_tools(self) -> bool:
        return self._index >= 0

    def push(self, text: str, delta: MessageDelta) -> None:
        """Add what `text` brings to `delta`."""
        while text:
            if self._block is not None:
                text = self._push_block(text, self._block, delta)
            elif self._after:
                text = self._push_after(text)
            else:
                text = self._push_text(text, delta)

    def knows(self, spelling: str) -> bool:
        """True for the markers of this syntax."""
        return spelling in self._syntax.markers

    def push_special(self, spelling: str, delta: MessageDelta) -> None:
        """Add what a marker that is a token of its own brings."""
        if self._block is not None:
            self.push(spelling, delta)
        elif self._after and spelling in self._closers:
            self._closers = self._closers[self._closers.index(spelling) + 1 :]
            self._tail = ""
        elif spelling in self._syntax.starts:
            self._after, self._tail = False, ""
            self._show(self._finder.flush(), delta)
            self._begin_block(spelling)

    def finish(self, delta: MessageDelta) -> None:
        """Add what was held back."""
        if self._block is not None and not self._num_reported:
            delta.content += self._space.flush() + "".join(self._raw)
        self._block = None
        self._show(self._finder.flush(), delta)
        delta.content += self._space.flush()

    def _push_text(self, text: str, delta: MessageDelta) -> str:
        if self._may_begin and self._syntax.bare_starts:
            begin = len(text) - len(text.lstrip(WHITESPACE))
            self._show(text[:begin], delta)
            text = text[begin:]
            if not text:
                return ""
            if text[0] in self._syntax.bare_starts:
                self._begin_block("")
                return text
        self._may_begin = False
        shown, marker, rest = self._finder.feed(text)
        self._show(shown, delta)
        if marker is not None:
            self._begin_block(marker)
        return rest

    def _push_after(self, text: str) -> str:
        text = (self._tail + text).lstrip(WHITESPACE)
        self._tail = ""
        for position, closer in enumerate(self._closers):
            if text.startswith(closer):
                self._closers = self._closers[position + 1 :]
                return text[len(closer) :]
        if not text or any(closer.startswith(text) for closer in self._closers):
            self._tail = text
            return ""
        self._after = False
        return text

    def _show(self, text: str, delta: MessageDelta) -> None:
        delta.content += self._space.feed(text)

    def _begin_block(self, marker: str) -> None:
        self._block = self._new_block()
        self._live = self._guided if marker else self._guided_bare
        self._raw = [marker]
        self._num_chars = self._num_reported = 0

    def _push_block(self, text: str, block: CallBlock, delta: MessageDelta) -> str:
        room = len(text) if self._live else MAX_BLOCK_CHARS - self._num_chars
        end = block.feed(text[:room], 0)
        self._num_chars += end
        if not self._num_reported:
            self._raw.append(text[:end])
        if block.done or self._live:
            self._report(block, delta)
        text = text[end:]
        if block.done:
            self._block = None
            self._after, self._may_begin = True, True
            self._closers = self._syntax.closers
        elif block.broken or (not self._live and self._num_chars == MAX_BLOCK_CHARS):
            self._block = None
            self._may_begin = False
            if not self._num_reported:
                kept = "".join(self._raw).removesuffix(block.leftover)
                self._show(kept, delta)
                return block.leftover + text
        return text

    def _report(self, block: CallBlock, delta: MessageDelta) -> None:
        """Add what `block` found and nobody has seen yet."""
        for position in range(max(0, self._num_reported - 1), len(block.calls)):
            call = block.calls[position]
            if position >= self._num_reported:
                self._space.drop()
                self._raw = []
                self._num_reported += 1
                self._index += 1
                delta.tool_calls.append(ToolCallDelta(index=self._index, name=call.name, id=self._new_id()))
            if call.arguments:
                delta.add_arguments(self._index, "".join(call.arguments))
                call.arguments.clear()
