"""Random answers that the grammars allow: the parsers find calls in them, and their arguments satisfy the schemas."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from serving.errors import ToolError
from serving.sampling_params import Grammar
from serving.text.parsers import ReasoningFormat, ToolFormat, new_parser, offered_tools
from tests.unit.text.parsers.answers import FORMATS, REASONING, TOOLS, function, read

SCHEMAS: dict[str, Any] = {tool.name: tool.parameters for tool in TOOLS}
EOS = 256
FIRST_SPECIAL = 257


class Bytes:
    """A vocabulary of all bytes, EOS, and the special tokens of a test."""

    bos_token_id = None
    eos_token_id = EOS

    def __init__(self, special: Sequence[str]) -> None:
        self.tokens = [bytes([n]) for n in range(256)] + [text.encode() for text in ("<eos>", *special)]
        self.special_token_ids = list(range(EOS, len(self.tokens)))

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


class Walk:
    """An answer that grows only by what a grammar allows."""

    def __init__(self, grammar: Grammar, special: Sequence[str] = ()) -> None:
        assert grammar.kind == "lark"
        self.special = special
        tokenizer = LLTokenizer(TokenizerWrapper(Bytes(special)))
        self.matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar.source), log_level=0)
        assert not self.matcher.is_error(), self.matcher.get_error() + grammar.source
        self.tokens: list[int] = []

    def allowed(self) -> set[int]:
        bits = np.unpackbits(np.frombuffer(self.matcher.compute_bitmask(), np.uint8), bitorder="little")
        return {int(token) for token in np.flatnonzero(bits) if token < FIRST_SPECIAL + len(self.special)}

    def add(self, *pieces: str | tuple[str]) -> bool:
        """Take these texts and special tokens; False when the grammar does not allow one."""
        for piece in pieces:
            tokens = (
                list(piece.encode())
                if isinstance(piece, str)
                else [FIRST_SPECIAL + self.special.index(*piece)]
            )
            if self.matcher.try_consume_tokens(tokens) != len(tokens):
                return False
            self.tokens += tokens
        return True

    def wander(self, rng: random.Random, num_tokens: int = 1500) -> bool:
        """Go on at random; True when the answer has ended, which it does early."""
        for _ in range(num_tokens):
            allowed = self.allowed()
            assert allowed
            if EOS in allowed and (len(allowed) == 1 or rng.random() < 0.4):
                return True
            token = rng.choice(sorted(allowed - {EOS}))
            assert self.matcher.consume_token(token)
            self.tokens.append(token)
        return False

    def pieces(self) -> Iterator[str | tuple[str]]:
        waiting = b""
        for token in [*self.tokens, EOS]:
            if token < EOS:
                waiting += bytes([token])
                continue
            if waiting:
                yield waiting.decode("utf-8", "replace")
                waiting = b""
            if token != EOS:
                yield (self.special[token - FIRST_SPECIAL],)


def with_special(tool_format: ToolFormat) -> tuple[ToolFormat, list[str]]:
    special = [marker for marker in dict.fromkeys(tool_format.markers) if marker[:1] in "<[" and marker]
    return replace(
        tool_format, special_ids={text: FIRST_SPECIAL + n for n, text in enumerate(special)}
    ), special


def valid(calls: list[tuple[str, str]]) -> bool:
    for name, arguments in calls:
        jsonschema.validate(json.loads(arguments), SCHEMAS[name])
    return True


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("tokens", [False, True], ids=["text", "tokens"])
@pytest.mark.parametrize("name", FORMATS)
def test_forced_answers_are_valid_calls(name: str, tokens: bool, parallel: bool, full: bool) -> None:
    tool_format, special = with_special(FORMATS[name]) if tokens else (FORMATS[name], [])
    grammar = tool_format.grammar(TOOLS, forced=True, parallel=parallel)
    assert grammar is not None
    rng = random.Random(len(name))
    num_ended = 0
    for _ in range(100 if full else 8):
        walk = Walk(grammar, special)
        ended = walk.wander(rng)
        content, _, calls = read(walk.pieces(), tool_format, constrained=True, forced=True)
        if ended:
            num_ended += 1
            assert content == ""
            assert calls
            assert parallel or len(calls) == 1
            assert valid(calls)
            # The same answer means the same when nobody promised that it is valid.
            assert read(walk.pieces(), tool_format)[2] == calls
    assert num_ended > 0


@pytest.mark.parametrize("tokens", [False, True], ids=["text", "tokens"])
@pytest.mark.parametrize("name", FORMATS)
def test_free_answers_are_held_to_the_schema_behind_the_trigger(name: str, tokens: bool, full: bool) -> None:
    tool_format, special = with_special(FORMATS[name]) if tokens else (FORMATS[name], [])
    shape = tool_format.shape
    trigger = shape.trigger or (shape.auto_trigger if tokens else "")
    rng = random.Random(5)
    for parallel in (False, True):
        grammar = tool_format.grammar(TOOLS, forced=False, parallel=parallel)
        if not trigger:
            assert grammar is None
            continue
        assert grammar is not None
        plain = Walk(grammar, special)
        text = 'Text {"a": [1]} < [TOOL] `x`\n\n<tool, 猫 and ```json\n{"name": 1}\n```'
        assert plain.add(text)
        assert EOS in plain.allowed()
        assert read(plain.pieces(), tool_format, constrained=True) == (text, "", [])
        for _ in range(50 if full else 4):
            walk = Walk(grammar, special)
            assert walk.add("Let me look. ", (trigger,) if trigger in special else trigger)
            assert EOS not in walk.allowed()
            if not walk.wander(rng):
                continue
            content, _, calls = read(walk.pieces(), tool_format, constrained=True)
            assert content.startswith("Let me look.")
            assert calls
            assert parallel or len(calls) == 1
            assert valid(calls)


@pytest.mark.parametrize("reasoning", REASONING.values(), ids=list(REASONING))
@pytest.mark.parametrize("tokens", [False, True], ids=["text", "tokens"])
def test_reasoning_comes_before_what_is_forced(reasoning: ReasoningFormat, tokens: bool) -> None:
    special = list(reasoning.markers) if tokens else []
    reasoning = replace(reasoning, special_ids={text: FIRST_SPECIAL + n for n, text in enumerate(special)})
    opening, closing = ((text,) if tokens else text for text in (reasoning.opens[0], reasoning.closes[0]))
    tool_format = FORMATS["hermes"]
    call = '<tool_call>\n{"name": "ping", "arguments": {}}\n</tool_call>'
    for prompt_text, pieces in (
        (f"user: x\n{reasoning.opens[0]}\n", ["think {a", closing, "\n\n", call]),
        ("user: x\n", [opening, "\nthink {a\n", closing, "\n\n", call]),
        (f"user: x\n{reasoning.opens[0]}\n\n{reasoning.closes[0]}\n\n", [call]),
    ):
        if reasoning.implicit and pieces[0] == opening:
            continue
        grammar = tool_format.grammar(
            TOOLS, forced=True, parallel=False, reasoning=reasoning, prompt_text=prompt_text
        )
        assert grammar is not None
        walk = Walk(grammar, special)
        assert walk.add(*pieces)
        assert walk.allowed() == {EOS}
        message = read(walk.pieces(), tool_format, reasoning=reasoning, prompt_text=prompt_text, forced=True)
        assert message == ("", "think {a" if len(pieces) > 1 else "", [("ping", "{}")])
        assert not Walk(grammar, special).add("no call", closing, "and no call")
        auto = tool_format.grammar(
            TOOLS, forced=False, parallel=True, reasoning=reasoning, prompt_text=prompt_text
        )
        assert auto is not None
        walk = Walk(auto, special)
        assert walk.add(*pieces, "\nor text")
        assert EOS in walk.allowed()


@pytest.mark.parametrize(
    ("grammar", "matching", "other"),
    [
        (Grammar(kind="json_schema", source='{"type": "object", "required": ["a"]}'), '{"a": 1}', "[]"),
        (Grammar(kind="regex", source=r"\d+/\d+\/\d"), "10/20/3", "x"),
        (Grammar(kind="lark", source='start: "a" B\nB: /[0-9]+/'), "a12", "b"),
    ],
    ids=["json_schema", "regex", "lark"],
)
def test_reasoning_wraps_any_grammar(grammar: Grammar, matching: str, other: str) -> None:
    think = REASONING["think"]
    for prompt_text, before in (("", "<think>\nhm</think>\n\n"), ("<think>\n", "hm</think>\n\n"), ("", "")):
        wrapped = think.wrap(grammar, prompt_text=prompt_text)
        walk = Walk(wrapped)
        assert walk.add(before + matching)
        assert EOS in walk.allowed()
        assert not Walk(wrapped).add(before + other)
    assert think.wrap(grammar, prompt_text="<think>\n\n</think>\n\n") is grammar


def test_grammars_need_tools() -> None:
    assert FORMATS["hermes"].grammar((), forced=False, parallel=True) is None
    with pytest.raises(ToolError, match="is empty"):
        FORMATS["hermes"].grammar((), forced=True, parallel=True)


def test_a_named_tool_is_the_only_one_that_can_be_called() -> None:
    tools = offered_tools([function("one"), function("two")], named="two")
    grammar = FORMATS["hermes"].grammar(tools, forced=True, parallel=False)
    assert grammar is not None
    assert Walk(grammar).add('<tool_call>\n{"name": "two", "arguments": {}}\n</tool_call>')
    assert not Walk(grammar).add('<tool_call>\n{"name": "one"')


def test_descriptions_stay_out_of_grammars() -> None:
    parameters = {
        "description": "NOT THIS",
        "properties": {
            "description": {"type": "string", "title": "NOT THIS", "enum": ["description"]},
            "list": {
                "type": "array",
                "items": {"const": {"title": "kept"}, "description": "NOT THIS"},
                "minItems": 1,
            },
        },
        "required": ["description", "list"],
    }
    grammar = FORMATS["hermes"].grammar(
        offered_tools([function("f", parameters)]), forced=True, parallel=False
    )
    assert grammar is not None
    assert "NOT THIS" not in grammar.source
    arguments = '{"description": "description", "list": [{"title": "kept"}]}'
    assert Walk(grammar).add(f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n</tool_call>')
    assert not Walk(grammar).add('<tool_call>\n{"name": "f", "arguments": {"description": "x')


def test_tools_too_large_for_a_grammar_are_offered_without_one() -> None:
    schema = {"properties": {f"argument_{n}": {"type": "string"} for n in range(40)}}
    tools = offered_tools([function(f"f{n}", schema) for n in range(128)])
    assert FORMATS["hermes"].grammar(tools, forced=False, parallel=True) is None
    # Nor does a reader that is told of a grammar believe in one.
    parser = new_parser(FORMATS["hermes"], tools, constrained=True)
    assert parser is not None
    assert not parser.push('<tool_call>{"name": "f1", "arguments": {"a').tool_calls
    assert FORMATS["hermes"].grammar(tools[:8], forced=False, parallel=True) is not None
