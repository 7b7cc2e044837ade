"""The text a client sees: cut before the stop string, exact to the byte, the same streamed or whole."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from serving.messages import SequenceOutput
from serving.sampling_params import SamplingParams
from serving.text.answer import AnswerDelta, AnswerText
from serving.text.parsers.contract import MessageDelta
from serving.text.sequence_text import SequenceText
from serving.vocabulary import Vocabulary
from tests.unit.text.vocabularies import of_pieces

ENDINGS = {"length": "length", "eos_token": "stop", "stop_token": "stop"}
SAMPLES = [
    "👨‍👩‍👧‍👦🏳️‍🌈🇩🇪👍🏽",
    "家族が海辺の町に住んでいた。猫は魚が好きです",
    "كان يا ما كان שלום עולם \u200f\u202e",
    "plain words, and more words",
    "\ufffd real replacement \ufffd characters \ufffd",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff e\u0301 ñ\x00\x7f",
]


@dataclass
class Run:
    """What one way to deliver a sequence gave."""

    answer: AnswerText
    deltas: list[AnswerDelta] = field(default_factory=list)

    @property
    def content(self) -> str:
        return "".join(delta.content for delta in self.deltas)

    @property
    def spelled(self) -> str:
        return "".join(token.text for delta in self.deltas for token in delta.tokens)

    @property
    def ids(self) -> list[int]:
        return [token.id for delta in self.deltas for token in delta.tokens]


def deliver(
    vocabulary: Vocabulary, portions: list[list[int]], *, stop: tuple[str, ...] = (), ending: str = "length"
) -> Run:
    """Push each portion as one output of the engine; the last one has the finish reason."""
    sequence = SequenceText(vocabulary, SamplingParams(stop=stop))
    run = Run(AnswerText(sequence))
    for i, ids in enumerate(portions):
        last = i == len(portions) - 1
        output = SequenceOutput(
            request_id="r", token_ids=ids, logprobs=[-1.0] * len(ids), finish_reason=ending if last else None
        )
        tokens = sequence.push(output)
        final = sequence.finish_reason is not None
        run.deltas.append(run.answer.take(tokens, final=final))
        if final:
            break
    return run


def cut(items: list[int], rng: random.Random) -> list[list[int]]:
    """`items` in random portions, some of them empty."""
    portions, start = [], 0
    while start < len(items):
        size = rng.choice((0, 1, 1, 1, 2, 5))
        portions.append(items[start : start + size])
        start += size
    return portions or [[]]


def pieces_of(data: bytes, rng: random.Random) -> list[bytes]:
    pieces, start = [], 0
    while start < len(data):
        size = rng.choice((1, 1, 2, 3, 7))
        pieces.append(data[start : start + size])
        start += size
    return pieces


def first_match(text: str, stops: tuple[str, ...]) -> int | None:
    """Naive: the start of the match that ends first, of those the one that starts first."""
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return min(found)[1] if found else None


@pytest.mark.parametrize("ending", ENDINGS)
def test_stop_strings_never_show_and_streams_equal_whole_answers(full: bool, ending: str) -> None:
    rng = random.Random(f"stops {ending}")
    for _ in range(3400 if full else 150):
        letters = rng.choice(("ab", "abc", "ab👍\n", "aé家"))
        text = "".join(rng.choice(letters) for _ in range(rng.randrange(30)))
        stops = tuple(
            "".join(rng.choice(letters) for _ in range(rng.randrange(1, 6))) for _ in range(rng.randrange(5))
        )
        pieces = pieces_of(text.encode(), rng)
        vocabulary = of_pieces(*pieces, special=["</s>"], eos=[len(pieces)])
        ids = list(range(len(pieces))) + ([len(pieces)] if ending == "eos_token" else [])
        start = first_match(text, stops)
        expected = text if start is None else text[:start]
        streamed = deliver(vocabulary, cut(ids, rng), stop=stops, ending=ending)
        whole = deliver(vocabulary, [ids], stop=stops, ending=ending)
        for run in (streamed, whole):
            assert run.content == expected, (text, stops)
            assert run.spelled == expected, (text, stops)
            assert run.answer.finish_reason == ("stop" if start is not None else ENDINGS[ending])
        assert streamed.ids == whole.ids
        shown = ""
        for delta in streamed.deltas:
            shown += delta.content
            assert expected.startswith(shown)


def test_every_text_arrives_byte_for_byte(full: bool) -> None:
    rng = random.Random("utf-8")
    for _ in range(10_000 if full else 300):
        data = "".join(rng.choice(SAMPLES) for _ in range(rng.randrange(1, 4))).encode()
        if rng.random() < 0.5:
            broken = bytearray(data)
            for _ in range(rng.randrange(1, 4)):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
            data = bytes(broken)
        pieces = pieces_of(data, rng)
        vocabulary = of_pieces(*pieces)
        ids = list(range(len(pieces)))
        streamed, whole = deliver(vocabulary, cut(ids, rng)), deliver(vocabulary, [ids])
        expected = data.decode("utf-8", "replace")
        assert streamed.content == whole.content == expected
        assert streamed.spelled == whole.spelled == expected
        assert streamed.ids == whole.ids == ids


def test_what_may_begin_a_stop_string_waits_until_it_is_known() -> None:
    vocabulary = of_pieces("Hello ", "EN", "T", "ER", " END", "never")
    sequence = SequenceText(vocabulary, SamplingParams(stop=("END",)))
    answer = AnswerText(sequence)
    shown = []
    for token_id in range(5):
        tokens = sequence.push(SequenceOutput(request_id="r", token_ids=[token_id], logprobs=[-1.0]))
        shown.append(answer.take(tokens, final=sequence.finish_reason is not None).content)
    assert shown == ["Hello ", "", "ENT", "ER", " "]
    assert answer.finish_reason == "stop"


def test_a_token_is_cut_where_the_stop_string_begins_in_it() -> None:
    run = deliver(of_pieces("one", " two END three"), [[0], [1]], stop=("END",))
    assert run.content == "one two "
    assert [token.text for delta in run.deltas for token in delta.tokens] == ["one", " two "]


def test_special_tokens_do_not_show() -> None:
    vocabulary = of_pieces("a", "b", special=["<mark>", "</s>"], eos=[3])
    run = deliver(vocabulary, [[0], [2], [1], [3]], ending="eos_token")
    assert (run.content, run.ids, run.answer.finish_reason) == ("ab", [0, 1], "stop")


class Recorder:
    """A parser that writes down what it gets."""

    def __init__(self, called_tools: bool = False) -> None:
        self.called_tools = called_tools
        self.heard: list[str] = []

    def push(self, text: str) -> MessageDelta:
        self.heard.append(text)
        return MessageDelta(content=text.upper())

    def push_special(self, spelling: str) -> MessageDelta:
        self.heard.append(spelling)
        return MessageDelta(reasoning="!")

    def finish(self) -> MessageDelta:
        return MessageDelta(content=".")


def parsed(portions: list[list[int]], ending: str, parser: Recorder, stop: tuple[str, ...] = ()) -> Run:
    vocabulary = of_pieces("one ", "two ", "stop", special=["<call>", "</s>"], eos=[4])
    sequence = SequenceText(vocabulary, SamplingParams(stop=stop))
    run = Run(AnswerText(sequence, parser))
    for i, ids in enumerate(portions):
        reason = ending if i == len(portions) - 1 else None
        output = SequenceOutput(
            request_id="r", token_ids=ids, logprobs=[-1.0] * len(ids), finish_reason=reason
        )
        tokens = sequence.push(output)
        run.deltas.append(run.answer.take(tokens, final=sequence.finish_reason is not None))
    return run


@pytest.mark.parametrize("portions", [[[0, 3, 1, 4]], [[0], [3], [1], [4]], [[0, 3], [1, 4]]])
def test_a_parser_hears_special_tokens_in_their_place_and_not_the_end(portions: list[list[int]]) -> None:
    parser = Recorder()
    run = parsed(portions, "eos_token", parser)
    assert parser.heard == ["one ", "<call>", "two "]
    assert run.content == "ONE TWO ."
    assert "".join(delta.reasoning for delta in run.deltas) == "!"
    assert run.ids == [0, 1]


def test_a_parser_hears_nothing_of_a_stop_string_and_nothing_behind_it() -> None:
    for portions in ([[0, 3, 2, 3, 1]], [[0], [3], [2], [3], [1]]):
        parser = Recorder()
        run = parsed(portions, "length", parser, stop=("stop",))
        assert parser.heard == ["one ", "<call>"]
        assert (run.content, run.answer.finish_reason) == ("ONE .", "stop")


@pytest.mark.parametrize(("ending", "reason"), [("eos_token", "tool_calls"), ("length", "length")])
def test_calls_are_the_reason_only_when_the_model_ended_by_itself(ending: str, reason: str) -> None:
    run = parsed([[0], [4]], ending, Recorder(called_tools=True))
    assert run.answer.finish_reason == reason


def test_before_the_end_there_is_no_reason() -> None:
    sequence = SequenceText(of_pieces("a"), SamplingParams())
    answer = AnswerText(sequence)
    tokens = sequence.push(SequenceOutput(request_id="r", token_ids=[0], logprobs=[-1.0]))
    assert answer.take(tokens, final=False).content == "a"
    assert answer.finish_reason is None


@pytest.mark.parametrize("seed", range(20))
def test_the_short_way_and_the_long_one_may_alternate(seed: int) -> None:
    """Plain tokens one way or the other: the same text, the same state at the end."""
    rng = random.Random(seed)
    pieces: list[str | bytes] = ["a", "é家", b"\xf0\x9f", b"\x98\x80", "", " b\n", b"\xff"]
    vocabulary = of_pieces(*pieces, special=["</s>"], eos=[len(pieces)])
    ids = [rng.randrange(len(pieces) + 1) for _ in range(30)]
    shown = []
    for short in (0.0, 0.5, 1.0):
        sequence = SequenceText(vocabulary, SamplingParams())
        answer = AnswerText(sequence)
        text = ""
        for i, token_id in enumerate(ids):
            last = i == len(ids) - 1
            passed = None
            if not last and rng.random() < short and answer.passes:
                passed = sequence.push_one(token_id)
            if passed is not None:
                answer.pass_on(passed)
                text += passed
                continue
            output = SequenceOutput(
                request_id="r",
                token_ids=[token_id],
                logprobs=[-1.0],
                finish_reason="length" if last else None,
            )
            text += answer.take(sequence.push(output), final=last).content
        shown.append((text, sequence.text, sequence.num_tokens, sequence.num_chars, answer.finish_reason))
    assert shown[0] == shown[1] == shown[2]


def test_nothing_passes_where_text_may_be_held_back_or_read() -> None:
    vocabulary = of_pieces("a")
    assert AnswerText(SequenceText(vocabulary, SamplingParams())).passes
    assert not AnswerText(SequenceText(vocabulary, SamplingParams(stop=("b",)))).passes
    assert not AnswerText(SequenceText(vocabulary, SamplingParams()), Recorder()).passes
