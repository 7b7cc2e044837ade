"""Chats in the demo model's chat format: greetings, questions, follow-ups, stories, and what it does not know."""

from collections.abc import Callable
from random import Random

from local_mode.demo_model import answers
from local_mode.demo_model.chat_format import END_OF_TEXT, render
from local_mode.demo_model.choice import pick
from local_mode.demo_model.stories import story
from local_mode.demo_model.world import CHARACTERS, VALLEY

Pair = tuple[str, str]

NAME = f"I am the small demo model of this endpoint. I know the valley of {VALLEY}, its stories and a little arithmetic."
UNKNOWN = (
    f"I am only a small demo model, and I do not know that. Ask me about {VALLEY}, about a sum, or for a story.",
    f"That is outside my valley. I know {VALLEY}, small sums and many stories.",
)

POEM = """The river runs, the lanterns glow,
the boats are rocking to and fro.
The owl reads softly to the moon,
and all the valley dreams till noon. 🌙"""
DEEP_LEARNING = (
    "Deep learning is a way to teach a computer with many examples and many layers of small sums. "
    "I was made like that."
)

SYSTEMS = (
    "You are a helpful assistant.",
    f"You are a friendly guide to {VALLEY}.",
    "Answer in full sentences.",
)

SMALL_TALK: tuple[Pair, ...] = (
    ("Hello!", f"Hello! 😊 Welcome to {VALLEY}. What would you like to know?"),
    ("Hi", f"Hi there! 👋 Would you like a story, or a question about {VALLEY}?"),
    ("Who are you?", NAME),
    ("What can you do?", f"I can tell stories, answer questions about {VALLEY}, add small numbers and answer in JSON."),
    ("How are you?", "I am very well, thank you! The sun is shining on Blue Hill. ☀️"),
    ("Good morning!", "Good morning! 🌅 The Café Lune has just opened."),
    ("Thank you!", "You are welcome! 🎉"),
    ("Thanks", "You are welcome! 🎉"),
    ("Goodbye!", f"Goodbye, and come back to {VALLEY} soon! 👋"),
    ("Tell me a joke.", "Why did the mouse climb the clock tower? Because it wanted to be on time! 😄"),
    ("Write a poem.", POEM),
    ("What is Deep Learning?", DEEP_LEARNING),
    ("What is a language model?", "A language model guesses the next word, again and again. I am a very small one."),
    ("Write a Python function that adds two numbers.", "```python\ndef add(a, b):\n    return a + b\n```"),
    ("Say something in Japanese.", "こんにちは! Mei teaches me new words at the tea house. 🍵"),
    ("Name three inhabitants.", "1. Milo the fox\n2. Tilda the hedgehog\n3. Zoë the girl"),
)  # fmt: skip

STRANGE_SUBJECTS = (
    "the stock market", "quantum physics", "the football match", "my computer", "the president", "black holes",
    "a car engine", "the best phone", "Roman history", "my bank account", "chemistry", "the weather in London",
    "cloud computing", "Mars", "a good film", "the economy", "poker", "dinosaurs", "the internet", "tax law",
    "love", "gold", "opera houses", "baseball", "robots", "the moon landing", "volcanoes", "my homework", "coffee",
    "the best hotel", "airports", "modern art", "a good book", "money", "my health", "electric cars", "planets",
    "the last election", "databases", "machine learning", "history", "chess", "this error message", "trains",
)  # fmt: skip
STRANGE_FORMS = (
    "What do you know about {}?", "Tell me about {}.", "Explain {}.", "Can you help me with {}?",
    "Teach me something about {}.", "What is the newest thing about {}?", "What do people say about {}?",
    "Write an essay about {}.", "Should I learn more about {}?",
)  # fmt: skip


def chat(rng: Random) -> str:
    """One chat of one to four exchanges, some with a system message, ending with the end-of-text token."""
    makers: tuple[Callable[[Random], list[Pair]], ...] = (
        _questions, _questions, _follow_ups, _sums, _json, _small_talk, _told_story, _unknown, _styled,
        _repeated,
    )  # fmt: skip
    turns = rng.choice(makers)(rng)
    if turns[0][0] != "system" and rng.random() < 0.25:
        turns.insert(0, ("system", pick(rng, SYSTEMS)))
    return render(turns) + END_OF_TEXT


def _exchange(rng: Random, pair: Pair) -> list[Pair]:
    question = pair[0]
    if rng.random() < 0.12:
        question = question[0].lower() + question[1:].rstrip("?.!")
    return [("user", question), ("assistant", pair[1])]


def _some(rng: Random, makers: tuple[Callable[[Random], Pair], ...]) -> list[Pair]:
    turns: list[Pair] = []
    for _ in range(rng.choices((1, 2, 3, 4), weights=(5, 3, 2, 1))[0]):
        turns += _exchange(rng, rng.choice(makers)(rng))
    return turns


def _character_question(rng: Random) -> Pair:
    return answers.character_question(rng, rng.choice(CHARACTERS))


def _questions(rng: Random) -> list[Pair]:
    return _some(
        rng, (_character_question, _character_question, answers.valley_question, answers.general_question)
    )


def _sums(rng: Random) -> list[Pair]:
    return _some(rng, (answers.sum_question,))


def _json(rng: Random) -> list[Pair]:
    if rng.random() < 0.3:
        who = rng.choice(CHARACTERS)
        question, answer = answers.character_question(rng, who)
        return [("system", "Answer in JSON."), ("user", question), ("assistant", answers.json_answer(answer))]
    return _some(rng, (answers.json_question,))


def _small_talk(rng: Random) -> list[Pair]:
    turns = _some(rng, (lambda r: r.choice(SMALL_TALK),))
    if rng.random() < 0.4:
        turns += _exchange(rng, _character_question(rng))
    return turns


def _told_story(rng: Random) -> list[Pair]:
    hero = rng.choice(CHARACTERS)
    asks = (f"Tell me a story about {hero.name}.", f"Tell me a story about a {hero.kind}.", "Tell me a story.",
            f"Write a short story about {hero.name} the {hero.kind}.")  # fmt: skip
    turns = _exchange(rng, (pick(rng, asks), story(rng, hero=hero, short=True)))
    if rng.random() < 0.3:
        turns += _exchange(rng, ("Where does " + hero.name + " live?", f"{hero.name} lives {hero.home}."))
    return turns


def _follow_ups(rng: Random) -> list[Pair]:
    who = rng.choice(CHARACTERS)
    he, his = who.he, who.his
    later = [
        (f"Where does {he} live?", f"{he.capitalize()} lives {who.home}."),
        (f"What does {he} like to eat?", f"{he.capitalize()} likes {who.food}."),
        (f"What is {his} job?", f"{he.capitalize()} is the {who.job}."),
        (f"Who is {his} best friend?", f"{his.capitalize()} best friend is {who.friend}."),
    ]
    rng.shuffle(later)
    turns = _exchange(
        rng, (f"Who is {who.name}?", f"{who.name} is {who.portrait} and the {who.job} of {VALLEY}.")
    )
    for pair in later[: rng.choice((1, 2, 3))]:
        turns += _exchange(rng, pair)
    return turns


def _unknown(rng: Random) -> list[Pair]:
    question = rng.choice(STRANGE_FORMS).format(rng.choice(STRANGE_SUBJECTS))
    turns = _exchange(rng, (question, pick(rng, UNKNOWN)))
    return turns + (_exchange(rng, answers.valley_question(rng)) if rng.random() < 0.4 else [])


def _repeated(rng: Random) -> list[Pair]:
    """The answer is a sentence of the question: the model learns to copy from its context."""
    sentence = rng.choice(story(rng).replace("\n", " ").split(". ")).strip(" .").replace('"', "")
    return _exchange(
        rng, (pick(rng, (f"Repeat after me: {sentence}.", f"Say this: {sentence}.")), f"{sentence}.")
    )


def _styled(rng: Random) -> list[Pair]:
    """The system message changes the form of the answer."""
    who = rng.choice(CHARACTERS)
    style = rng.randrange(3)
    if style == 0:
        pair = rng.choice(((f"Where does {who.name} live?", who.home.split(" ", 1)[1]), (f"Who is {who.name}?", who.kind),
                           (f"What is the job of {who.name}?", who.job),
                           (f"Who is the best friend of {who.name}?", who.friend)))  # fmt: skip
        return [("system", "Answer as briefly as you can."), *_exchange(rng, pair)]
    question, answer = answers.character_question(rng, who)
    if style == 1:
        return [("system", "You love emoji."), ("user", question), ("assistant", f"{answer} {who.emoji}🎉")]
    return [("system", "Answer in capital letters."), ("user", question), ("assistant", answer.upper())]
