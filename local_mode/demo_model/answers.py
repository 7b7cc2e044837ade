"""Single questions with their one right answer: facts of the valley, sums, words, and data as JSON."""

import json
from random import Random

from local_mode.demo_model.choice import pick
from local_mode.demo_model.world import (
    CAPITALS,
    CHARACTERS,
    FACTS,
    GREETINGS,
    PLACES,
    VALLEY,
    WORDS,
    Character,
)

# Single-digit sums that the corpus never holds in this order; the mirrored sum is there. Tests ask for them.
HELD_OUT_SUMS = frozenset({(2, 5), (3, 6), (4, 7), (1, 8), (5, 9), (6, 8), (2, 9), (3, 7), (4, 5), (7, 8)})

WEEK = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def character_question(rng: Random, who: Character) -> tuple[str, str]:
    """A question that names the character, and its answer."""
    n = who.name
    plural = (
        "is"
        if who.food.split()[-1]
        in ("bread", "pie", "cheese", "cake", "soup", "jam", "tart", "stew", "salad", "lettuce")
        else "are"
    )
    about = (f"{n} is {who.portrait} who lives {who.home}. {who.he.capitalize()} is the {who.job}, "
             f"{who.he} likes {who.food}, and {who.his} best friend is {who.friend}.")  # fmt: skip
    return pick(rng, (
        (f"Where does {n} live?", f"{n} lives {who.home}."),
        (f"Who is {n}?", f"{n} is {who.portrait} and the {who.job} of {VALLEY}."),
        (f"What does {n} like to eat?", f"{n} likes {who.food}."),
        (f"What is the job of {n}?", f"{n} is the {who.job}."),
        (f"Who is the best friend of {n}?", f"The best friend of {n} is {who.friend}."),
        (f"What kind of creature is {n}?", f"{n} is a {who.kind}."),
        (f"What is the favourite food of {n}?", f"{who.food.capitalize()} {plural} the favourite food of {n}."),
        (f"Tell me about {n}.", about),
        (f"Is {n} a {who.kind}?", f"Yes, {n} is a {who.kind}."),
        (f"Which emoji fits {n}?", who.emoji),
    ))  # fmt: skip


def valley_question(rng: Random) -> tuple[str, str]:
    """A question about a place, a role or a known fact, and its answer."""
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(FACTS)
    who, place = rng.choice(CHARACTERS), rng.choice(PLACES)
    if kind == 1:
        return f"Where is {place.name}?", f"{place.at_start} is {place.where}."
    if kind == 2:
        return f"Who is the {who.job} of {VALLEY}?", f"{who.name} the {who.kind} is the {who.job}."
    return f"Tell me about {place.name}.", " ".join((f"{place.at_start} is {place.where}.", *place.facts))


def general_question(rng: Random) -> tuple[str, str]:
    """A question from outside the valley: capitals, greetings and words of other languages, days, letters."""
    kind = rng.randrange(6)
    if kind == 0:
        country, capital = rng.choice(CAPITALS)
        return f"What is the capital of {country}?", f"The capital of {country} is {capital}."
    if kind == 1:
        language, hello = rng.choice(GREETINGS)
        return f"How do you say hello in {language}?", f"In {language}, hello is “{hello}”."
    if kind == 2:
        word, japanese, chinese = rng.choice(WORDS)
        language, foreign = rng.choice((("Japanese", japanese), ("Chinese", chinese)))
        return f"How do you write {word} in {language}?", f"In {language}, {word} is written {foreign}."
    if kind == 3:
        day = rng.randrange(7)
        return f"Which day comes after {WEEK[day]}?", f"{WEEK[(day + 1) % 7]} comes after {WEEK[day]}."
    if kind == 4:
        top = rng.choice((10, 5, 20, 8, 12))
        return f"Count from 1 to {top}.", ", ".join(map(str, range(1, top + 1)))
    letter = rng.randrange(25)
    return (f"Which letter comes after {chr(65 + letter)}?",
            f"The letter {chr(66 + letter)} comes after {chr(65 + letter)}.")  # fmt: skip


def operands(rng: Random) -> tuple[int, int]:
    """Two numbers to add, mostly single digits, never a held-out pair."""
    while True:
        top = rng.choice((10, 10, 10, 10, 20, 50))
        pair = (rng.randrange(top), rng.randrange(top))
        if pair not in HELD_OUT_SUMS:
            return pair


def equation(rng: Random) -> str:
    """One line such as `7 + 5 = 12`: a sum, a difference that is not negative, or a small product."""
    a, b = operands(rng)
    kind = rng.choices(("+", "-", "x"), weights=(7, 2, 1))[0]
    if kind == "+":
        return f"{a} + {b} = {a + b}"
    if kind == "-":
        return f"{max(a, b)} - {min(a, b)} = {max(a, b) - min(a, b)}"
    a, b = a % 11, b % 11
    return f"{a} x {b} = {a * b}"


def sum_question(rng: Random) -> tuple[str, str]:
    """A sum asked in words, with its answer."""
    a, b = operands(rng)
    if rng.random() < 0.2:
        a, b = max(a, b), min(a, b)
        return f"What is {a} - {b}?", f"{a} - {b} = {a - b}"
    if rng.random() < 0.2:
        who, thing = rng.choice(CHARACTERS), rng.choice(("apples", "books", "coins", "shells", "buttons"))
        question = f"{who.name} has {a} {thing} and gets {b} more. How many {thing} does {who.name} have now?"
        return question, f"{a} + {b} = {a + b}, so {who.name} has {a + b} {thing}."
    question = pick(rng, (f"What is {a} + {b}?", f"{a} + {b} = ?", f"What is {a} plus {b}?", f"How much is {a} + {b}?",
                          f"{a}+{b}", f"Please add {a} and {b}."))  # fmt: skip
    return question, f"{a} + {b} = {a + b}"


def json_question(rng: Random) -> tuple[str, str]:
    """A request for JSON, with one JSON value on one line as the answer."""
    kind = rng.randrange(5)
    who = pick(rng, CHARACTERS)
    facts: dict[str, object] = {
        "name": who.name, "kind": who.kind, "home": who.home.split(" ", 1)[1], "job": who.job, "food": who.food,
        "friend": who.friend,
    }  # fmt: skip
    if kind <= 1:
        keys = pick(rng, (("name", "kind", "home"), ("name", "job"), ("name", "kind", "job", "food"),
                          ("name", "friend"), ("name", "home", "food", "friend"), ("kind", "job")))  # fmt: skip
        listed = ", ".join(keys[:-1]) + " and " + keys[-1]
        ask = pick(rng, (f"Describe {who.name} as JSON with the keys {listed}.",
                         f"Give me a JSON object with {listed} of {who.name}."))  # fmt: skip
        return ask, _dump({key: facts[key] for key in keys})
    if kind == 2:
        ask = pick(rng, (f"Who is {who.name}? Answer in JSON.", f"Describe {who.name} in JSON."))
        return ask, _dump({key: facts[key] for key in ("name", "kind", "home", "job")})
    if kind == 3:
        a, b = operands(rng)
        return f"What is {a} + {b}? Answer in JSON.", _dump({"question": f"{a} + {b}", "answer": a + b})
    count, thing = rng.randrange(2, 10), rng.choice(("apples", "books", "pears", "lamps", "fish"))
    day = rng.choice(WEEK)
    ask = f"On {day}, {who.name} bought {count} {thing} at the market. Answer in JSON with name, item, count and day."
    return ask, _dump({"name": who.name, "item": thing, "count": count, "day": day})


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def json_answer(answer: str) -> str:
    """A plain answer wrapped as `{"answer": ...}`."""
    return _dump({"answer": answer})
