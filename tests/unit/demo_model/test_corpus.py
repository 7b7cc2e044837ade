"""The text is a pure function of the seed, keeps its own facts, and never shows the held-out sums."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import islice
from random import Random

import pytest

from local_mode.demo_model import answers
from local_mode.demo_model.chat_format import BEGIN_OF_TEXT, END_OF_TEXT, END_OF_TURN
from local_mode.demo_model.corpus import documents
from local_mode.demo_model.plots import PLOTS
from local_mode.demo_model.stories import story
from local_mode.demo_model.world import BY_NAME, CHARACTERS

COUNT = 3000


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return list(islice(documents(0), COUNT))


def test_the_seed_decides_the_text(corpus: list[str]) -> None:
    again = list(islice(documents(0), COUNT))
    other = list(islice(documents(1), COUNT))
    assert again == corpus
    assert other != corpus


def test_another_process_writes_the_same_text(corpus: list[str]) -> None:
    """Python's string hashes differ from process to process; the text must not."""
    command = [sys.executable, "-m", "local_mode.demo_model.corpus", "--seed", "0", "--count", "20"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    assert printed == "".join(document + "\n\n" for document in corpus[:20])


def test_documents_are_complete(corpus: list[str]) -> None:
    for document in corpus:
        assert document.startswith(BEGIN_OF_TEXT) and document.endswith(END_OF_TEXT)
        assert document.count(BEGIN_OF_TEXT) == document.count(END_OF_TEXT) == 1
        assert "{" not in document or '{"' in document or "```" in document, document


def test_text_varies(corpus: list[str]) -> None:
    stories = {document for document in corpus if "\n\n" in document and "Question:" not in document}
    assert len(stories) > COUNT // 5
    assert sum(document.count("Once upon a time") for document in corpus) > COUNT // 20


def test_held_out_sums_never_appear(corpus: list[str]) -> None:
    seen = {(int(a), int(b)) for text in corpus for a, b in re.findall(r"\b(\d+) \+ (\d+)\b", text)}
    assert not seen & answers.HELD_OUT_SUMS
    assert {(b, a) for a, b in answers.HELD_OUT_SUMS} <= seen


def test_every_equation_is_true(corpus: list[str]) -> None:
    checked = 0
    for text in corpus:
        for a, sign, b, c in re.findall(r"\b(\d+) ([+x-]) (\d+) = (\d+)", text):
            x, y = int(a), int(b)
            assert int(c) == {"+": x + y, "-": x - y, "x": x * y}[sign]
            checked += 1
    assert checked > COUNT // 2


def test_json_answers_parse() -> None:
    rng = Random(5)
    for _ in range(300):
        question, answer = answers.json_question(rng)
        value = json.loads(answer)
        assert isinstance(value, dict) and value and "\n" not in answer, question
        if value.get("name") and "friend" in value:
            assert BY_NAME[value["name"]].friend == value["friend"]


def test_friendship_is_mutual() -> None:
    for character in CHARACTERS:
        assert BY_NAME[character.friend].friend == character.name


@pytest.mark.parametrize("short", [False, True])
def test_stories_have_their_length(short: bool) -> None:
    rng = Random(3)
    for _ in range(200):
        words = len(story(rng, short=short).split())
        assert (40 if short else 60) <= words <= 250


def test_every_sentence_of_every_plot_can_be_filled() -> None:
    """A slot that does not exist raises KeyError in `story`; 3000 stories use every alternative."""
    rng = Random(4)
    told = "\n".join(story(rng) for _ in range(3000))
    for plot, beats in PLOTS.items():
        for alternative in (sentence for beat in beats for sentence in beat):
            fragment = max(re.split(r"\{\w+\}", alternative), key=len)
            assert fragment in told, (plot, alternative)


def test_chats_end_each_answer_with_the_end_of_turn_token(corpus: list[str]) -> None:
    chats = [document for document in corpus if "<|assistant|>" in document]
    assert len(chats) > COUNT // 4
    for document in chats:
        assert document.endswith(f"{END_OF_TURN}\n{END_OF_TEXT}")
        assert document.count("<|user|>") == document.count("<|assistant|>")
