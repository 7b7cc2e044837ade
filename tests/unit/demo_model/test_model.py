"""The trained weights are good enough to greet a newcomer and peaked enough to be an oracle: float32, greedy."""

from __future__ import annotations

import json
from itertools import islice

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

from local_mode.demo_model import demo_model_path
from local_mode.demo_model.answers import HELD_OUT_SUMS
from local_mode.demo_model.chat_format import END_OF_TURN, render
from local_mode.demo_model.corpus import documents
from local_mode.demo_model.world import BY_NAME, CHARACTERS

FOLDER = demo_model_path()
TOKENIZER = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
# Training draws from seed 0 and its neighbours.
UNSEEN_SEED = 20_240_607


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)


def greedy(
    model: LlamaForCausalLM, text: str, *, max_new_tokens: int, add_special_tokens: bool = True
) -> list[int]:
    ids = TOKENIZER.encode(text, add_special_tokens=add_special_tokens).ids
    inputs = torch.tensor([ids])
    output = model.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=max_new_tokens)
    return [int(token) for token in output[0, len(ids) :]]


def reply(model: LlamaForCausalLM, *turns: tuple[str, str], max_new_tokens: int = 60) -> str:
    """The assistant's answer; fails when it does not end with the end-of-turn token."""
    text = render(turns, add_generation_prompt=True)
    ids = greedy(model, text, max_new_tokens=max_new_tokens, add_special_tokens=False)
    assert ids[-1] == TOKENIZER.token_to_id(END_OF_TURN), TOKENIZER.decode(ids)
    return TOKENIZER.decode(ids[:-1], skip_special_tokens=False)


@pytest.mark.parametrize("prompt", ["Once upon a time", "One morning", "Long ago", "Milo was a"])
def test_stories_do_not_loop(model: LlamaForCausalLM, prompt: str) -> None:
    ids = greedy(model, prompt, max_new_tokens=80)
    trigrams = list(zip(ids, ids[1:], ids[2:], strict=False))
    assert len(ids) >= 60
    assert len(set(trigrams)) / len(trigrams) > 0.6, TOKENIZER.decode(ids)


def test_a_story_keeps_its_hero(model: LlamaForCausalLM) -> None:
    text = TOKENIZER.decode(greedy(model, "Once upon a time", max_new_tokens=160))
    hero = next(character for character in CHARACTERS if character.name in text)
    assert text.count(hero.name) >= 3
    assert hero.kind in text


def test_held_out_sums(model: LlamaForCausalLM) -> None:
    """Sums of single digits that training never saw in this order."""
    right = 0
    for a, b in sorted(HELD_OUT_SUMS):
        line = TOKENIZER.decode(greedy(model, f"{a} + {b} =", max_new_tokens=4)).strip().split("\n")[0]
        right += line == str(a + b)
        right += reply(model, ("user", f"What is {a} + {b}?")) == f"{a} + {b} = {a + b}"
    assert right >= 0.9 * 2 * len(HELD_OUT_SUMS)


@pytest.mark.parametrize("name", ["Milo", "Zoë", "Wilma"])
def test_it_knows_its_world(model: LlamaForCausalLM, name: str) -> None:
    character = BY_NAME[name]
    assert reply(model, ("user", f"Where does {name} live?")) == f"{name} lives {character.home}."
    follow_up = reply(
        model,
        ("user", f"Who is {name}?"),
        ("assistant", f"{name} is {character.portrait} and the {character.job} of Willowbrook."),
        ("user", f"What does {character.he} like to eat?"),
    )
    assert follow_up == f"{character.he.capitalize()} likes {character.food}."


def test_it_answers_in_json(model: LlamaForCausalLM) -> None:
    answer = reply(model, ("user", "Describe Pip as JSON with the keys name, kind and home."))
    assert json.loads(answer) == {"name": "Pip", "kind": "mouse", "home": "the clock tower"}


def test_it_obeys_the_system_message(model: LlamaForCausalLM) -> None:
    answer = reply(model, ("system", "Answer in JSON."), ("user", "Where does Hugo live?"))
    assert json.loads(answer) == {"answer": "Hugo lives in the lighthouse."}


@pytest.mark.parametrize(
    "question", ["Hello!", "Who are you?", "What is the capital of France?", "Explain opera."]
)
def test_it_ends_its_turn(model: LlamaForCausalLM, question: str) -> None:
    assert reply(model, ("user", question))


def test_its_distribution_is_peaked_on_unseen_text(model: LlamaForCausalLM) -> None:
    tops, losses = [], []
    for document in islice(documents(UNSEEN_SEED), 60):
        ids = torch.tensor([TOKENIZER.encode(document, add_special_tokens=False).ids])
        with torch.inference_mode():
            probabilities = model(ids).logits[0, :-1].softmax(-1)
        tops.append(probabilities.amax(-1))
        losses.append(-probabilities.gather(-1, ids[0, 1:, None]).log())
    assert torch.cat(tops).mean() > 0.85
    assert torch.cat(losses).mean() < 0.4


def test_late_positions_still_make_sense(model: LlamaForCausalLM) -> None:
    """Windows of 1024 packed tokens: the last quarter is predicted about as well as unseen short documents are.

    Four windows, because one tail of 256 tokens may be a single story with rare turns.
    """
    stream = documents(UNSEEN_SEED + 1)
    tails = []
    for _ in range(4):
        ids: list[int] = []
        while len(ids) < 1024:
            ids += TOKENIZER.encode(next(stream), add_special_tokens=False).ids
        window = torch.tensor([ids[:1024]])
        with torch.inference_mode():
            logits = model(window).logits[0, 767:-1]
        tails.append(torch.nn.functional.cross_entropy(logits, window[0, 768:]))
    assert torch.stack(tails).mean() < 0.5, tails


def test_transformers_loads_the_tokenizer_and_the_template() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    messages = [{"role": "user", "content": "Who is Zoë?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == render([("user", "Who is Zoë?")], add_generation_prompt=True)
    assert tokenizer("Once upon a time")["input_ids"] == TOKENIZER.encode("Once upon a time").ids
