"""The training text: an endless seeded stream of documents. Prints some: `python -m local_mode.demo_model.corpus`.

Each document is complete: it begins with the begin-of-text token and ends with the end-of-text token.
"""

import argparse
from collections.abc import Callable, Iterator
from random import Random

from local_mode.demo_model import answers
from local_mode.demo_model.chat_format import BEGIN_OF_TEXT, END_OF_TEXT
from local_mode.demo_model.choice import pick
from local_mode.demo_model.dialogues import chat
from local_mode.demo_model.stories import story
from local_mode.demo_model.world import CHARACTERS, GREETINGS, VALLEY, WORDS


def documents(seed: int) -> Iterator[str]:
    """Documents without end; the same seed gives the same stream on every machine."""
    rng = Random(seed)
    makers = tuple(maker for maker, _ in MIX)
    weights = tuple(weight for _, weight in MIX)
    while True:
        text = rng.choices(makers, weights=weights)[0](rng)
        yield text if text.startswith(BEGIN_OF_TEXT) else BEGIN_OF_TEXT + text + END_OF_TEXT


def _story(rng: Random) -> str:
    return story(rng, titled=rng.random() < 0.1)


def _sums(rng: Random) -> str:
    return "\n".join(answers.equation(rng) for _ in range(rng.randrange(1, 13)))


def _questions(rng: Random) -> str:
    lines: list[str] = []
    for _ in range(rng.randrange(1, 5)):
        question, answer = rng.choice((
            lambda r: answers.character_question(r, r.choice(CHARACTERS)),
            answers.valley_question, answers.general_question, answers.sum_question,
        ))(rng)  # fmt: skip
        lines.append(f"Question: {question}\nAnswer: {answer}")
    return "\n\n".join(lines)


def _portrait(rng: Random) -> str:
    """Plain prose about one inhabitant."""
    who = rng.choice(CHARACTERS)
    he = who.he.capitalize()
    return (f"{who.name} is {who.portrait}. {he} lives {who.home} and works as the {who.job} of {VALLEY}. "
            f"{he} likes {who.food}. {who.his.capitalize()} best friend is {who.friend}.")  # fmt: skip


def _languages(rng: Random) -> str:
    """Mei's lesson: short lines with words of many scripts."""
    lines = ["Today Mei teaches words from far away."]
    for _ in range(rng.randrange(2, 6)):
        language, hello = rng.choice(GREETINGS)
        word, japanese, chinese = rng.choice(WORDS)
        lines.append(pick(rng, (
            f"Hello in {language}: {hello}", f"{word}: {japanese} (Japanese), {chinese} (Chinese)",
            f"“{hello}”, says Mei in {language}.",
        )))  # fmt: skip
    return "\n".join(lines)


def _log(rng: Random) -> str:
    """The diary of a day with times and emoji."""
    hour, lines = rng.randrange(6, 10), []
    for _ in range(rng.randrange(3, 7)):
        who = rng.choice(CHARACTERS)
        event = pick(
            rng,
            ("has breakfast", "opens the door", "meets " + who.friend, "goes to work", "eats " + who.food),
        )
        lines.append(f"{hour:02d}:{rng.choice(('00', '15', '30', '45'))} {who.emoji} {who.name} {event}.")
        hour += 1
    return f"A day in {VALLEY}\n" + "\n".join(lines)


MIX: tuple[tuple[Callable[[Random], str], int], ...] = (
    (_story, 30), (chat, 42), (_questions, 10), (_sums, 14), (_portrait, 4), (_languages, 2), (_log, 2),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Print documents of the demo model's training text.")
    parser.add_argument("--seed", type=int, default=0, help="the same seed prints the same text (default 0)")
    parser.add_argument("--count", type=int, default=5, help="how many documents (default 5)")
    options = parser.parse_args()
    for _, document in zip(range(options.count), documents(options.seed), strict=False):
        print(document, end="\n\n")


if __name__ == "__main__":
    main()
