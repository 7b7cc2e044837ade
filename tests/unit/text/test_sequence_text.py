"""What one sequence says, where it ends and why: TGI's order of checks, and texts that always join."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.messages import SequenceOutput, TopToken
from serving.sampling_params import SamplingParams
from serving.text.sequence_text import PromptTokenText, SequenceText, TokenText, TopText, prompt_tokens
from serving.text.stop import StopMatch
from serving.vocabulary import Vocabulary
from tests.unit.text.vocabularies import of_pieces

PIECES = ["a", "b", "ab", "ba\n", "\n", "a家", b"\xe5\xae", b"\xb6", b"\xf0\x9f", b"\xff", "\ufffd", ""]
VOCABULARY = of_pieces(*PIECES, special=["</s>", "<|user|>"], eos=[len(PIECES)])
EOS, USER = len(PIECES), len(PIECES) + 1


def sequence(*stops: str, vocabulary: Vocabulary = VOCABULARY) -> SequenceText:
    return SequenceText(vocabulary, SamplingParams(stop=stops))


def output(*token_ids: int, finish: str | None = None, **fields: object) -> SequenceOutput:
    logprobs = [-float(n) for n in range(len(token_ids))]
    return SequenceOutput(
        request_id="r", token_ids=list(token_ids), logprobs=logprobs, finish_reason=finish, **fields
    )


def texts(tokens: list[TokenText]) -> list[str]:
    return [token.text for token in tokens]


@dataclass(frozen=True)
class Run:
    token_ids: list[int]
    group_sizes: list[int]
    stops: list[str]
    finish: str


@st.composite
def runs(draw: st.DrawFn) -> Run:
    token_ids = draw(st.lists(st.integers(0, USER), min_size=1, max_size=14))
    stops = draw(st.lists(st.sampled_from(["ab", "b\n", "aab", "a家", "\n\n", "\ufffd"]), max_size=3))
    sizes = draw(st.lists(st.integers(1, 4), min_size=14, max_size=14))
    finish = draw(st.sampled_from(["length", "eos_token", "stop_token", "abort"]))
    return Run(token_ids, sizes, stops, finish)


def outputs(run: Run, sizes: list[int]) -> list[SequenceOutput]:
    groups, rest = [], run.token_ids
    for size in sizes:
        if rest:
            groups.append(rest[:size])
            rest = rest[size:]
    return [output(*ids, finish=run.finish if ids is groups[-1] else None) for ids in groups]


def consume(run: Run, sizes: list[int]) -> tuple[SequenceText, list[tuple[int, str, bool]]]:
    text = sequence(*run.stops)
    tokens = [token for news in outputs(run, sizes) for token in text.push(news)]
    return text, [(token.id, token.text, token.special) for token in tokens]


@given(runs())
def test_token_texts_join_to_the_text_and_its_length_to_the_tokens(run: Run) -> None:
    text, tokens = consume(run, run.group_sizes)
    assert "".join(piece for _, piece, special in tokens if not special) == text.text
    assert text.num_tokens == len(tokens)
    assert [token_id for token_id, _, _ in tokens] == run.token_ids[: len(tokens)]
    assert text.finish_reason is not None


@given(runs())
def test_several_tokens_per_output_change_nothing(run: Run) -> None:
    together, tokens = consume(run, run.group_sizes)
    alone, tokens_alone = consume(run, [1] * 14)
    assert (tokens, together.text, together.finish_reason) == (tokens_alone, alone.text, alone.finish_reason)
    assert together.stop_match == alone.stop_match


@given(runs())
def test_equals_the_decode_of_all_bytes_cut_behind_the_first_stop(run: Run) -> None:
    text, _ = consume(run, run.group_sizes)
    data = b"".join(VOCABULARY.token_bytes[token_id] for token_id in run.token_ids)
    # An incomplete character at the end shows in an ordinary last token and nowhere else.
    shows_end = run.token_ids[-1] < EOS
    whole = data.decode("utf-8", "replace") if shows_end else _without_incomplete_end(data)
    ends = [whole.find(stop) + len(stop) for stop in run.stops if stop in whole]
    assert text.text == (whole[: min(ends)] if ends else whole)
    if not ends:
        assert text.finish_reason == ("stop_sequence" if run.finish == "stop_token" else run.finish)


def _without_incomplete_end(data: bytes) -> str:
    for length in range(4):
        head, tail = data[: len(data) - length], data[len(data) - length :]
        try:
            tail.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data" and error.start == 0:
                return head.decode("utf-8", "replace")
    return data.decode("utf-8", "replace")


STOP_TEXT = "one 家 two\n\nUser: three"


@pytest.mark.parametrize("first", range(1, len(STOP_TEXT.encode())))
def test_a_stop_string_cut_by_tokens_anywhere(first: int) -> None:
    data = STOP_TEXT.encode()
    for second in range(first, len(data)):
        vocabulary = of_pieces(data[:first], data[first:second], data[second:], "later")
        text = sequence("\n\nUser:", vocabulary=vocabulary)
        tokens = [token for n in range(4) for token in text.push(output(n))]
        assert text.text == "one 家 two\n\nUser:" == "".join(texts(tokens))
        assert (text.finish_reason, text.stopped) == ("stop_sequence", True)
        assert text.stop_match == StopMatch(9, 16)
        assert text.num_tokens == len(tokens) <= 3


def test_everything_after_a_stop_is_discarded() -> None:
    text = sequence("ab")
    assert texts(text.push(output(0, 1, 0, 0))) == ["a", "b"]
    assert text.push(output(0, 1)) == []
    assert text.push(output(finish="abort")) == []
    assert (text.text, text.num_tokens, text.finish_reason, text.stopped) == ("ab", 2, "stop_sequence", True)


@pytest.mark.parametrize(
    ("token_ids", "finish", "expected"),
    [
        ([0, 1], "length", "length"),  # the last permitted token completes the stop: length wins
        ([0, 1, 0], "length", "stop_sequence"),  # the stop was complete before
        ([0, 1, EOS], "eos_token", "stop_sequence"),
        ([0, EOS], "eos_token", "eos_token"),
        ([0, EOS], "length", "length"),
        ([0, 0], "stop_token", "stop_sequence"),
        ([0, 1], "stop_token", "stop_sequence"),
        ([0, 1], "abort", "stop_sequence"),
        ([0], "abort", "abort"),
        ([0], "error", "error"),
    ],
)
def test_finish_reason(token_ids: list[int], finish: str, expected: str) -> None:
    text = sequence("ab")
    text.push(output(*token_ids, finish=finish))
    assert text.finish_reason == expected
    assert not text.stopped, "the engine has ended the sequence itself"


def test_the_text_ends_behind_the_stop_string_on_the_last_permitted_token_too() -> None:
    text = sequence("b")
    assert texts(text.push(output(0, 3, finish="length"))) == ["a", "b"]
    assert (text.text, text.finish_reason, text.stop_match) == ("ab", "length", StopMatch(1, 2))


def test_a_terminal_output_without_tokens() -> None:
    text = sequence()
    text.push(output(0, 6))
    assert text.push(output(finish="error")) == []
    assert (text.text, text.finish_reason, text.num_tokens) == ("a", "error", 2)


def test_special_tokens_are_spelled_and_stay_out_of_the_text() -> None:
    text = sequence("<|user|>")
    tokens = text.push(output(0, USER, 1, EOS, finish="eos_token"))
    assert [(token.text, token.special) for token in tokens] == [
        ("a", False), ("<|user|>", True), ("b", False), ("</s>", True),
    ]  # fmt: skip
    assert (text.text, text.num_tokens, text.finish_reason) == ("ab", 4, "eos_token")


def test_a_character_across_a_special_token_is_whole() -> None:
    text = sequence()
    assert texts(text.push(output(6, USER, 7, finish="length"))) == ["", "<|user|>", "家"]


def test_an_incomplete_end_shows_in_an_ordinary_last_token_only() -> None:
    text = sequence()
    assert texts(text.push(output(0, 8, finish="length"))) == ["a", "\ufffd"]
    assert text.text == "a\ufffd"
    text = sequence()
    assert texts(text.push(output(0, 8, EOS, finish="eos_token"))) == ["a", "", "</s>"]
    assert text.text == "a"


def test_hold_back_grows_with_the_beginning_of_a_stop_and_ends_with_the_text() -> None:
    text = sequence("ab\n")
    text.push(output(0))
    assert text.hold_back == 1
    text.push(output(1))
    assert text.hold_back == 2
    text.push(output(1, finish="length"))
    assert text.hold_back == 0


def test_top_tokens_are_spelled_alone() -> None:
    top = [
        [TopToken(2, -0.1), TopToken(6, -0.5), TopToken(EOS, -1.0), TopToken(10**6, -9.0)],
        [TopToken(1, 0.0)],
    ]
    tokens = sequence().push(output(0, 1, top_tokens=top))
    assert tokens[0].top == [
        TopText(2, "ab", -0.1, False),
        TopText(6, "\ufffd", -0.5, False),
        TopText(EOS, "</s>", -1.0, True),
        TopText(10**6, "", -9.0, False),
    ]
    assert tokens[1].top == [TopText(1, "b", 0.0, False)]
    assert sequence().push(output(0))[0].top is None


def test_logprobs_stay_with_their_tokens() -> None:
    assert [(token.id, token.logprob) for token in sequence().push(output(1, 0, 6))] == [
        (1, 0.0),
        (0, -1.0),
        (6, -2.0),
    ]


def test_prompt_tokens_join_to_the_prompt() -> None:
    ids = [USER, 0, 6, 7, 8]
    tokens = prompt_tokens(VOCABULARY, ids, [None, -1.0, -2.0, -3.0, -4.0])
    assert tokens[:2] == [PromptTokenText(USER, "<|user|>", None), PromptTokenText(0, "a", -1.0)]
    assert [token.text for token in tokens[2:]] == ["", "家", "\ufffd"]


def test_stop_strings_count_behind_the_least_number_of_tokens() -> None:
    a, b, ab = (PIECES.index(piece) for piece in ("a", "b", "ab"))
    text = SequenceText(VOCABULARY, SamplingParams(stop=("ab",), min_new_tokens=3, max_new_tokens=9))
    for token_id in (ab, a, ab):
        text.push(output(token_id))
        assert (text.finish_reason, text.hold_back) == (None, 0)
    text.push(output(b))  # the end of a stop string that begins in front does not count either
    assert text.finish_reason is None
    text.push(output(a))
    assert text.hold_back == 1
    text.push(output(b))
    assert (text.finish_reason, text.text) == ("stop_sequence", "abaabbab")
    assert text.stop_match == StopMatch(start=6, end=8)
