"""A way to write calls: its grammars and its parsers. Knows no particular one."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from serving.errors import ToolError
from serving.sampling_params import Grammar
from serving.text.parsers.blocks import CallBlock
from serving.text.parsers.call_grammars import AnswerShape
from serving.text.parsers.lark import LarkGrammar, num_schema_bytes
from serving.text.parsers.reasoning import ReasoningFormat
from serving.text.parsers.splitter import CallSplitter, CallSyntax
from serving.text.parsers.tools import Tool

# The engine refuses grammars over 64 KiB. Where no call is forced, the model is trusted instead.
MAX_FREE_GRAMMAR_BYTES = 60 * 1024
# What a tool takes up besides its schema, about.
_TOOL_BYTES = 256

_LETTERS = string.ascii_letters + string.digits


def _call_id() -> str:
    return "call_" + "".join(secrets.choice(_LETTERS) for _ in range(24))


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How one family of models writes calls: `syntax` and `new_block` read them, `shape` makes the grammar."""

    name: str
    syntax: CallSyntax
    new_block: Callable[[Collection[str]], CallBlock]
    shape: AnswerShape
    new_id: Callable[[], str] = _call_id
    special_ids: Mapping[str, int] = field(default_factory=dict)

    def grammar(
        self,
        tools: Sequence[Tool],
        *,
        forced: bool,
        parallel: bool,
        reasoning: ReasoningFormat | None = None,
        prompt_text: str = "",
    ) -> Grammar | None:
        """What answers to `prompt_text` have to match: with `forced` one call (or more, with `parallel`) behind
        any reasoning, otherwise any text in which calls are valid. None when nothing can be held to anything: such
        answers are read all the same.

        Raises `ToolError` when a call is forced and there are no tools.
        """
        if not tools:
            if forced:
                raise ToolError("Tool error: `tool_choice` asks for a call, but `tools` is empty")
            return None
        if not forced and not self._guides(tools):
            return None
        lark = LarkGrammar({**self.special_ids, **({} if reasoning is None else reasoning.special_ids)})
        before = "" if reasoning is None else reasoning.before(lark, prompt_text)
        if forced:
            return lark.build(f"{before} {self.shape.forced(lark, tools, parallel=parallel)}".lstrip())
        allowed = [*self._free_tokens(), *(reasoning.markers if reasoning is not None else ())]
        answer = self.shape.triggered(lark, tools, parallel=parallel, allowed=allowed)
        # Reasoning that is not certain to come is text among other text.
        return lark.build(f"{before} ({answer})" if before and not before.endswith("?") else answer)

    def instructions(self, tools: Sequence[Tool], tool_prompt: str | None = None) -> str:
        """Text to add to the last user message when a template shows no tools: a line that separates, the tools as
        JSON, and `tool_prompt` (TGI's field of that name; absent or empty: ours)."""
        offered = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    **({"description": tool.description} if tool.description else {}),
                    "parameters": tool.parameters,
                },
            }
            for tool in tools
        ]
        prompt = tool_prompt or (
            "If one of these functions helps to answer, call it: write nothing but the call, with the value of each "
            f"argument filled in, in this form:\n{self.shape.example()}"
        )
        return f"\n---\n{json.dumps(offered, ensure_ascii=False)}\n{prompt}"

    def new_splitter(self, tools: Sequence[Tool], *, constrained: bool, forced: bool) -> CallSplitter:
        """For one answer. `constrained`: it is held to the grammar that `grammar` made with the same `forced`."""
        names = frozenset(tool.name for tool in tools)
        return CallSplitter(
            self.syntax,
            lambda: self.new_block(names),
            self.new_id,
            special=self.special_ids,
            guided=constrained and (forced or self._guides(tools)),
            guided_bare=constrained and forced,
        )

    @property
    def markers(self) -> tuple[str, ...]:
        """Every text that may be a special token of a model and means something to this format."""
        return (*self.syntax.markers, self.shape.trigger, *_ANSWER_FRAMES)

    def _guides(self, tools: Sequence[Tool]) -> bool:
        """Whether calls in free answers are held to a grammar: there is a mark for them and room for the schemas."""
        if not self.shape.trigger and self.shape.auto_trigger not in self.special_ids:
            return False
        num_bytes = sum(_TOOL_BYTES + num_schema_bytes(tool.parameters) for tool in tools)
        return num_bytes <= MAX_FREE_GRAMMAR_BYTES

    def _free_tokens(self) -> list[str]:
        """Special tokens that mean nothing to us where a model writes text around its answers."""
        return [spelling for spelling in _ANSWER_FRAMES if spelling in self.special_ids]


# Around the texts of Command-R's answers.
_ANSWER_FRAMES = ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>")
