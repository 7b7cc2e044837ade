"""The detokenizer shows what a whole decode shows, and no character before or after its last byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.text.detokenizer import IncrementalDetokenizer
from tests.unit.text.vocabularies import of_pieces

# Characters of every UTF-8 length, joiners, combining marks and both directions.
UNICODE = st.text(
    st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from("👨\u200d👩\u200d👧👍🏽🇩🇪\ufe0f家族猫שלוםمرحبا\u0301\u200f\ufffd\U0010ffff\x00"),
    )
)
# Pieces of characters next to whole ones: what a broken model may say.
BYTES = st.lists(
    st.one_of(
        st.binary(max_size=4),
        UNICODE.map(str.encode),
        st.sampled_from(
            [b"\xf0\x9f", b"\xf0\x90\x80", b"\xed\xa0\x80", b"\xe2\x80", b"\x8d", b"\xf4\x90", b"\xc0"]
        ),
    ),
    max_size=12,
)


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    text = draw(UNICODE)
    data = text.encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return text, [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def pushed(pieces: list[bytes]) -> tuple[list[str], str]:
    detokenizer = IncrementalDetokenizer(of_pieces(*pieces))
    return [detokenizer.push(n) for n in range(len(pieces))], detokenizer.flush()


@given(BYTES)
def test_joins_to_the_whole_decode(pieces: list[bytes]) -> None:
    texts, rest = pushed(pieces)
    assert "".join(texts) + rest == b"".join(pieces).decode("utf-8", "replace")


@given(cut_texts())
def test_valid_text_cut_anywhere_is_exact_at_every_token(cut: tuple[str, list[bytes]]) -> None:
    text, pieces = cut
    texts, rest = pushed(pieces)
    assert rest == ""
    for n in range(len(pieces)):
        # "ignore" drops the incomplete character at the end and nothing else: the text is valid.
        assert "".join(texts[: n + 1]) == b"".join(pieces[: n + 1]).decode("utf-8", "ignore")
    assert "".join(texts) == text


def test_a_family_arrives_emoji_by_emoji() -> None:
    family = "👨‍👩‍👧"
    texts, rest = pushed([bytes([byte]) for byte in family.encode()])
    assert [text for text in texts if text] == list(family)
    assert rest == ""


def test_a_token_that_is_the_replacement_character() -> None:
    assert pushed([b"\xef\xbf\xbd", b"a", b"\xef\xbf", b"\xbd"]) == (["\ufffd", "a", "", "\ufffd"], "")


def test_bytes_that_can_no_longer_become_a_character_show_at_once() -> None:
    assert pushed([b"\xe5\xae", b"A", b"\xe5"]) == (["", "\ufffdA", ""], "\ufffd")


def test_flush_ends_the_text_once() -> None:
    detokenizer = IncrementalDetokenizer(of_pieces(b"\xf0\x9f\x91", b"\x8d"))
    detokenizer.push(0)
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""
    assert detokenizer.push(1) == "\ufffd"


def test_a_character_begun_in_the_prompt_is_completed() -> None:
    vocabulary = of_pieces(b"\xf0\x9f", b"\x91\x8d", "ok")
    detokenizer = IncrementalDetokenizer(vocabulary, prompt_token_ids=[2, 2, 2, 2, 2, 0])
    assert detokenizer.push(1) == "👍"
    assert IncrementalDetokenizer(vocabulary, prompt_token_ids=[0, 2]).push(2) == "ok"


@pytest.mark.parametrize("token_id", [1, 2, 10**6, -1])
def test_special_and_unknown_ids_add_nothing_and_break_no_character(token_id: int) -> None:
    vocabulary = of_pieces(b"\xc3", special=["</s>"])
    detokenizer = IncrementalDetokenizer(vocabulary)
    assert [detokenizer.push(0), detokenizer.push(token_id), detokenizer.flush()] == ["", "", "\ufffd"]


def test_ids_do_not_count_from_the_end() -> None:
    assert IncrementalDetokenizer(of_pieces("first", "last")).push(-1) == ""
