"""Stop strings are found where a search of the whole text finds them, however the text arrives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidRequest
from serving.text.stop import StopMatch, StopMatcher

# Few characters, so that stops overlap each other, themselves and the cuts.
TEXT = st.text("ab\n", max_size=40)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=6), min_size=1, max_size=4)


def first_match(text: str, stops: list[str]) -> StopMatch | None:
    """The definition: of all occurrences, the one that ends first, then the one that starts first."""
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return StopMatch(start=min(found)[1], end=min(found)[0]) if found else None


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    return [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def search(pieces: list[str], stops: list[str]) -> tuple[StopMatcher, int]:
    """The matcher and how many pieces it took."""
    matcher = StopMatcher(stops)
    for n, piece in enumerate(pieces, 1):
        if matcher.push(piece) is not None:
            return matcher, n
    return matcher, len(pieces)


@given(TEXT, STOPS, st.lists(st.integers(0, 40), max_size=12))
def test_equals_the_search_of_the_whole_text(text: str, stops: list[str], cuts: list[int]) -> None:
    pieces = pieces_of(text, cuts)
    matcher, num_pieces = search(pieces, stops)
    assert matcher.match == first_match(text, stops)
    if matcher.match is not None:
        seen = sum(map(len, pieces[:num_pieces]))
        assert seen - len(pieces[num_pieces - 1]) < matcher.match.end <= seen


@given(TEXT, STOPS, st.lists(st.integers(0, 40), max_size=12))
def test_hold_back_is_the_longest_possible_beginning(text: str, stops: list[str], cuts: list[int]) -> None:
    matcher, _ = search(pieces_of(text, cuts), stops)
    if matcher.match is not None:
        assert matcher.hold_back == 0
        return
    beginnings = [k for stop in stops for k in range(len(stop)) if text.endswith(stop[:k])]
    assert matcher.hold_back == max(beginnings)


@given(TEXT, STOPS, st.lists(st.integers(0, 40), max_size=12))
def test_what_is_not_held_back_never_belongs_to_a_stop(text: str, stops: list[str], cuts: list[int]) -> None:
    matcher, shown, seen = StopMatcher(stops), 0, 0
    for piece in pieces_of(text, cuts):
        matcher.push(piece)
        seen += len(piece)
        if matcher.match is not None:
            assert matcher.match.start >= shown
            return
        shown = max(shown, seen - matcher.hold_back)


@pytest.mark.parametrize("stop", ["###", "\n\nUser:", "</答え>", "🛑", "a", "abcabcabd"])
def test_every_cut_of_text_and_stop(stop: str) -> None:
    text = f"abcab 家 {stop}tail {stop}"
    for a in range(len(text) + 1):
        for b in range(a, len(text) + 1):
            matcher, _ = search([text[:a], text[a:b], text[b:]], [stop])
            assert matcher.match == StopMatch(text.index(stop), text.index(stop) + len(stop))


def test_of_two_that_end_together_the_longer_one_is_cut() -> None:
    matcher, _ = search(["x\nUs", "er:"], ["User:", "\nUser:", ":"])
    assert matcher.match == StopMatch(1, 7)


def test_a_long_stop_string_and_its_near_misses() -> None:
    stop = "a" * 3000 + "b"
    matcher, num_pieces = search(["a" * 7] * 5000 + ["aab", "never"], [stop, "c"])
    assert matcher.match == StopMatch(35_002 - 3000, 35_003)
    assert num_pieces == 5001


def test_without_stops_nothing_matches_and_nothing_is_held_back() -> None:
    matcher, _ = search(["some", " text"], [])
    assert (matcher.match, matcher.hold_back) == (None, 0)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least one character") as caught:
        StopMatcher(["ok", ""])
    assert caught.value.field == "stop"


def test_nothing_follows_a_match() -> None:
    matcher, _ = search(["a"], ["a"])
    with pytest.raises(ValueError, match="ended"):
        matcher.push("b")
