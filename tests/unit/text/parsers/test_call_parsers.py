"""What every format makes of outputs: calls, content, and the same for every way to cut the text."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace

import pytest

from serving.text.parsers.splitter import MAX_BLOCK_CHARS
from tests.unit.text.parsers.answers import FORMATS, REASONING, WRITERS, Message, cut, random_calls, read

DEEPSEEK = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"
PING = [("ping", "{}")]
HERMES_PING = '<tool_call>\n{"name": "ping", "arguments": {}}\n</tool_call>'

OUTPUTS: list[tuple[str, str, Message]] = [
    ("hermes", "No call.\n\n  at all \n", ("No call.\n\n  at all \n", "", [])),
    ("hermes", f"Look:\n{HERMES_PING}", ("Look:", "", PING)),
    ("hermes", f"{HERMES_PING}\n{HERMES_PING}\nDone. ", ("Done. ", "", PING * 2)),
    (
        "hermes",
        '<tool_call>{"arguments":{"a": [1, {}]},"name":"ping"}',
        ("", "", [("ping", '{"a": [1, {}]}')]),
    ),
    ("hermes", '<tool_call>{"name": "ping"}</tool_call>', ("", "", PING)),
    ("hermes", '<tool_call>[{"name": "ping"}]</tool_call>', ("", "", PING)),
    ("hermes", '<tool_call>{"name": "pi\\u006eg", "id": 1}</tool_call>', ("", "", PING)),
    (
        "hermes",
        '<tool_call>{"name": "ping", "arguments": {"a": "one\ntwo\x01"}}',
        ("", "", [("ping", '{"a": "one\\ntwo\\u0001"}')]),
    ),
    ("hermes", f"a <tool_call>\n{HERMES_PING}", ("a <tool_call>", "", PING)),
    ("llama3_json", '{"name": "ping", "parameters": {}}', ("", "", PING)),
    ("llama3_json", '\n{"name": "ping", "parameters": {}}; {"name": "ping"}', ("", "", PING * 2)),
    ("llama3_json", '<|python_tag|>{"type": "function", "name": "ping", "parameters": {}}', ("", "", PING)),
    (
        "llama3_json",
        'Try {"name": "ping", "parameters": {}}',
        ('Try {"name": "ping", "parameters": {}}', "", []),
    ),
    ("llama3_json", '{"answer": 42}', ('{"answer": 42}', "", [])),
    ("pythonic", "[ping()]", ("", "", PING)),
    (
        "pythonic",
        "[get_weather(city='Pa\\'r\\x69s', days=-1, exact=True), ping(a=(1, .5, None,), b={'k': [\"\\u00e9\"]},)]",
        (
            "",
            "",
            [
                ("get_weather", '{"city": "Pa\'ris", "days": -1, "exact": true}'),
                ("ping", '{"a": [1, 0.5, null], "b": {"k": ["é"]}}'),
            ],
        ),
    ),
    (
        "pythonic",
        'Python: <|python_start|>[ping(**{"a": 1})]<|python_end|>',
        ("Python:", "", [("ping", '{"a": 1}')]),
    ),
    ("pythonic", "[1] says so", ("[1] says so", "", [])),
    ("mistral", '[TOOL_CALLS] [{"name": "ping", "arguments": {}, "id": "abcdefghi"}]', ("", "", PING)),
    ("mistral", "[TOOL_CALLS]ping[ARGS]{}", ("", "", PING)),
    ("mistral_args", 'Yes[TOOL_CALLS]ping[CALL_ID]abc[ARGS]{"a": 1}', ("Yes", "", [("ping", '{"a": 1}')])),
    ("mistral_args", "[TOOL_CALLS]ping{}", ("[TOOL_CALLS]ping{}", "", [])),
    (
        "deepseek_v3",
        f"Hm.\n\n{DEEPSEEK}function<｜tool▁sep｜>ping\n```json\n{{}}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ("Hm.", "", PING),
    ),
    (
        "deepseek_v31",
        f"{DEEPSEEK}ping<｜tool▁sep｜>{{}}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ("", "", PING),
    ),
    ("deepseek_v31", f"{DEEPSEEK}ping {{}}", (f"{DEEPSEEK}ping {{}}", "", [])),
    ("granite", '<|tool_call|>[{"name": "ping", "arguments": {}}]', ("", "", PING)),
    ("granite", '<tool_call>[{"name": "ping", "arguments": {}}]', ("", "", PING)),
    ("granite", "<|tool_call|>[]", ("<|tool_call|>[]", "", [])),
    (
        "command_r",
        'Plan.<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "ping", "parameters": {}}\n]<|END_ACTION|>',
        ("Plan.", "", PING),
    ),
    (
        "command_r_fenced",
        'Action: ```json\n[\n    {\n        "tool_name": "ping",\n        "parameters": {}\n    }\n]```',
        ("", "", PING),
    ),
    ("json", '{"name": "ping", "arguments": {}}', ("", "", PING)),
    ("json", '[{"name": "ping", "arguments": {}}, {"name": "ping"}]', ("", "", PING * 2)),
    ("json", "{}", ("{}", "", [])),
]
# Nothing of these is a call: they come back as they are.
BROKEN = [
    '{"name": "rm", "arguments": {}}',
    '{"name": "ping", "arguments": "{}"}',
    '{"name": "ping", "arguments": {"a": 01}}',
    '{"name": "ping", "arguments": {"a": NaN}}',
    '{"name": "ping", "arguments": {"a": 1,}}',
    '{"name": "ping", "arguments": {"a": "\\x"}}',
    '{"name": "ping", "name": "ping"}',
    '{"name": "ping", "arguments": {}',
    '{"arguments": {}}',
    "__import__('os').system('true')",
    '{"' + "n" * 300 + '": 1}',
]
BROKEN_PYTHON = [
    "[__import__('os').system('true')]",
    "[ping(a=__import__('os'))]",
    "[ping(a=1+1)]",
    "[ping(a=ping())]",
    "[ping(1)]",
    "[ping(a=1, a=2)]",
    "[ping(a=[1)]",
    "[ping(a=nan)]",
    "[ping(a='\\ud8')]",
    "[ping(a=1) ping()]",
    "[rm()]",
    "[ping(**{}, a=1)]",
    "[ping(a=" + "[" * 200 + "]" * 200 + ")]",
]


@pytest.mark.parametrize(("name", "text", "message"), OUTPUTS)
def test_outputs_and_all_their_cuts(name: str, text: str, message: Message) -> None:
    tool_format = FORMATS[name]
    assert read([text], tool_format) == message
    assert read(text, tool_format) == message
    for position in range(1, len(text)):
        assert read([text[:position], text[position:]], tool_format) == message, position


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_call_is_content(text: str) -> None:
    for marked in (f"<tool_call>{text} </tool_call> more", f"[TOOL_CALLS][{text}] more", text):
        for name in ("hermes", "mistral", "json"):
            assert read([marked], FORMATS[name]) == (marked, "", [])
            assert read(marked, FORMATS[name]) == (marked, "", [])


@pytest.mark.parametrize("text", BROKEN_PYTHON)
def test_python_that_is_no_call_is_content(text: str) -> None:
    assert read([text], FORMATS["pythonic"]) == (text, "", [])
    assert read(text, FORMATS["pythonic"]) == (text, "", [])


def test_markers_that_are_special_tokens() -> None:
    special = {"[TOOL_CALLS]": 5, "[ARGS]": 6}
    tool_format = replace(FORMATS["mistral_args"], special_ids=special)
    pieces = ["Hi [TOOL_CALLS] ", ("[TOOL_CALLS]",), "ping", ("[ARGS]",), "{}", ("[TOOL_CALLS]",), "pi", "ng"]
    pieces += [("[ARGS]",), '{"a": 1}', ("</s>",)]
    assert read(pieces, tool_format) == ("Hi [TOOL_CALLS]", "", [*PING, ("ping", '{"a": 1}')])
    # Spelled in ordinary text, the marker is text.
    assert read(["[TOOL_CALLS]ping[ARGS]{}"], tool_format) == ("[TOOL_CALLS]ping[ARGS]{}", "", [])


def test_constrained_calls_are_passed_on_as_they_are_written() -> None:
    text = '<tool_call>\n{"name": "ping", "arguments": {"a": "long'
    for constrained, message in ((True, ("", "", [("ping", '{"a": "long')])), (False, (text, "", []))):
        assert read([text], FORMATS["hermes"], constrained=constrained) == message
        assert read(text, FORMATS["hermes"], constrained=constrained) == message


def test_ids_are_those_that_templates_accept() -> None:
    assert len(FORMATS["mistral"].new_id()) == 9
    assert FORMATS["hermes"].new_id().startswith("call_")
    assert FORMATS["hermes"].new_id() != FORMATS["hermes"].new_id()


def test_a_block_without_grammar_waits_no_longer_than_its_cap() -> None:
    text = '<tool_call>{"name": "ping", "arguments": {"a": "' + "x" * MAX_BLOCK_CHARS + '"}}</tool_call>'
    assert read([text], FORMATS["hermes"]) == (text, "", [])
    assert read([text[n : n + 997] for n in range(0, len(text), 997)], FORMATS["hermes"]) == (text, "", [])
    (_, arguments) = read([text], FORMATS["hermes"], constrained=True)[2][0]
    assert len(json.loads(arguments)["a"]) == MAX_BLOCK_CHARS


def test_random_streams(full: bool) -> None:
    """Every format, valid and damaged, with and without reasoning: cuts change nothing, and valid calls are found."""
    rng = random.Random(43)
    reasoning = REASONING["think"]
    for number in range(5000 if full else 600):
        name = list(FORMATS)[number % len(FORMATS)]
        calls = random_calls(rng)
        text = WRITERS[name](calls)
        bare = not FORMATS[name].shape.trigger
        content = "" if bare else rng.choice(("", "I look.", "a < b [1] `x`"))
        answer = (
            rng.choice(("", "<think>\nhm</think>\n\n")) + content + rng.choice(("", "\n")) * (not bare) + text
        )
        constrained = rng.random() < 0.5
        if rng.random() < 0.3:
            position = rng.randrange(len(answer))
            answer = answer[:position] + rng.choice(("", "<", '"', "}", "\\", "é")) + answer[position + 1 :]
            content = calls = None
        whole = read([answer], FORMATS[name], reasoning=reasoning, constrained=constrained)
        for _ in range(3):
            pieces = cut(answer, rng)
            assert read(pieces, FORMATS[name], reasoning=reasoning, constrained=constrained) == whole, (
                name,
                pieces,
            )
        if calls is not None:
            found = [(call, json.loads(arguments)) for call, arguments in whole[2]]
            assert (whole[0], found) == (content, calls), (name, answer)
        elif not constrained:
            for _, arguments in whole[2]:
                assert isinstance(json.loads(arguments), dict)


HOSTILE = [
    "<tool_call",
    "<tool_call>",
    "[",
    "{",
    '{"a":',
    "[TOOL_CALLS]",
    "[TOOL_CALLS] [{",
    "<",
    "`",
    " ",
    "\\",
    '"',
]
HOSTILE += [
    "[ping(a=",
    "[ping(a='",
    "ping(",
    DEEPSEEK,
    "Action: ```json",
    "<think>",
    "</think>",
    "<|tool_call|>[[{",
]
HOSTILE += [
    '<tool_call>{"name": "ping", "arguments": {"a": "',
    '<tool_call>{"name": "ping", "arguments": {"a": [',
]


@pytest.mark.parametrize("name", FORMATS)
def test_hostile_outputs_take_linear_time(name: str, full: bool) -> None:
    num_chars = 200_000 if full else 20_000
    for repeated in HOSTILE:
        # Single characters are worst inside of a call's arguments, the rest where calls begin.
        before_call = WRITERS[name]([("ping", {"a": "XX"})]).partition("X")[0]
        for before in ("", before_call) if len(repeated) == 1 else ("",):
            text = (before + repeated * num_chars)[:num_chars]
            for length in (4, num_chars):
                pieces = [text[n : n + length] for n in range(0, num_chars, length)]
                for _ in range(3):
                    start = time.process_time()
                    content, reasoning, calls = read(pieces, FORMATS[name], reasoning=REASONING["think"])
                    took_ms = (time.process_time() - start) * 1000
                    # A busy machine spoils a timing now and then, not three times in a row.
                    if took_ms < 50 * num_chars / 10_000:
                        break
                assert took_ms < 50 * num_chars / 10_000, (before, repeated, length)
                assert not calls or before
                assert len(content) + len(reasoning) + sum(len(call[1]) for call in calls) <= num_chars
