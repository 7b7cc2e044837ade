"""Tells a story: chooses a plot and a cast and fills the slots, so that names and pronouns stay consistent."""

from random import Random

from local_mode.demo_model.choice import pick
from local_mode.demo_model.frames import ENDINGS, INTRODUCTIONS, ITEMS, NUMBERS, OPENINGS, TITLES, WEATHERS
from local_mode.demo_model.plots import PLOTS
from local_mode.demo_model.world import BY_NAME, CHARACTERS, PLACES, Character


def story(rng: Random, *, hero: Character | None = None, short: bool = False, titled: bool = False) -> str:
    """One story of 60 to 250 words in two to four paragraphs; `short` leaves out the introduction and one beat."""
    hero = hero or pick(rng, CHARACTERS)
    plot = pick(rng, tuple(PLOTS))
    slots = _slots(rng, hero)
    beats = [pick(rng, beat) for beat in PLOTS[plot]]
    if short:
        del beats[rng.choice((1, 3))]
    first = [pick(rng, OPENINGS)]
    if not short:
        first.append(pick(rng, INTRODUCTIONS))
    half = len(beats) // 2
    paragraphs = [first, beats[:half], [*beats[half:], pick(rng, ENDINGS)]]
    if short:
        paragraphs = [first + beats[:half], paragraphs[2]]
    text = "\n\n".join(" ".join(_fill(sentence, slots) for sentence in paragraph) for paragraph in paragraphs)
    return f"{_fill(TITLES[plot], slots)}\n\n{text}" if titled else text


def _fill(sentence: str, slots: dict[str, str]) -> str:
    text = sentence.format_map(slots)
    return text.replace(" a old ", " an old ").replace("A old ", "An old ").replace(" a news ", " the news ")


def _slots(rng: Random, hero: Character) -> dict[str, str]:
    friend = BY_NAME[hero.friend]
    elder = pick(rng, [c for c in CHARACTERS if c not in (hero, friend)])
    item = pick(rng, ITEMS)
    return {
        "H": hero.name, "look": f"{hero.look} {hero.kind}", "kind": hero.kind, "home": hero.home, "job": hero.job,
        "food": hero.food, "he": hero.he, "him": hero.him, "his": hero.his,
        "He": hero.he.capitalize(), "His": hero.his.capitalize(),
        "F": friend.name, "f_kind": friend.kind, "f_job": friend.job, "f_food": friend.food,
        "f_he": friend.he, "f_him": friend.him, "f_his": friend.his,
        "E": elder.name, "e_kind": elder.kind,
        "place": pick(rng, PLACES).name, "weather": pick(rng, WEATHERS), "num": pick(rng, NUMBERS),
        "item": item, "Item": item.title(),
    }  # fmt: skip
