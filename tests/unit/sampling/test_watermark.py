"""The watermark is found where it is, is not found where it is not, and is the same on every machine."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import pytest
import torch

from serving import LLM, SamplingParams
from serving.sampling.watermark import GreenLists, Watermarker, detect
from serving.sampling_params import Watermark

VOCAB = 2048
NUM_TOKENS = 300


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", device="cpu", num_threads=1) as llm:
        yield llm


def _texts(llm: LLM, count: int, watermark: Watermark | None) -> list[list[int]]:
    params = [
        SamplingParams(
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            temperature=1.5,
            seed=seed,
            watermark=watermark,
        )
        for seed in range(count)
    ]
    return [output.token_ids for output in llm.generate(["Once upon a time"] * count, params, progress=False)]


def test_marked_text_is_found_and_unmarked_text_is_not(llm: LLM, full: bool) -> None:
    """The demo model is very sure of itself (0.9 nats per token here), which leaves little room for a mark: a strong one is
    found in every text, one of the default strength in all of them together."""
    count = 30 if full else 5
    strong = Watermark(gamma=0.25, delta=6.0)
    for ids in _texts(llm, count if full else 2, strong):
        assert detect(ids, vocab_size=VOCAB, gamma=0.25).p_value < 1e-4
    together = [token_id for ids in _texts(llm, count, Watermark()) for token_id in ids]
    assert detect(together, vocab_size=VOCAB).p_value < 1e-4
    for ids in _texts(llm, count if full else 2, None):
        assert detect(ids, vocab_size=VOCAB).p_value > 1e-4


def test_false_positives_are_as_rare_as_the_p_value_says(full: bool) -> None:
    """One in twenty, within what chance leaves with a probability of 99 %."""
    count, least, most = (400, 4, 32) if full else (120, 1, 13)
    chance = random.Random(7)
    texts = [[chance.randrange(VOCAB) for _ in range(100)] for _ in range(count)]
    found = sum(detect(ids, vocab_size=VOCAB).p_value < 0.05 for ids in texts)
    assert least <= found <= most


def test_a_repeated_phrase_is_counted_once() -> None:
    lists = GreenLists(VOCAB)
    first = 5
    second = int(lists.after(first, 0.5).nonzero()[0])
    loop = [first, second] * 200
    assert detect(loop, vocab_size=VOCAB).num_scored == 2
    assert detect(loop, vocab_size=VOCAB).p_value > 0.2
    assert detect([], vocab_size=VOCAB).p_value == 1.0
    with pytest.raises(ValueError, match="2048"):
        detect([1, VOCAB], vocab_size=VOCAB)


def test_delta_goes_to_the_green_share_that_the_previous_token_selects() -> None:
    logits = torch.zeros(3, VOCAB)
    marker = Watermarker()
    for row, previous in enumerate((10, 10, 11)):
        marker.apply(logits[row], Watermark(gamma=0.25, delta=2.0), previous)
    assert logits.sum(-1).tolist() == [2.0 * 512] * 3
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])


def test_the_lists_are_these_on_every_machine() -> None:
    green = GreenLists(64).after(3, 0.5)
    assert int(green.sum()) == 32
    digest = hashlib.sha256(bytes(green.tolist())).hexdigest()
    assert digest == "36c5c24b524025d3af1b74d6f80347f0e476055cf27880268276aca3a77d6c8e"


def test_lists_are_kept_within_their_bytes() -> None:
    lists = GreenLists(100, cache_bytes=1000)
    first = lists.after(1, 0.5)
    for token_id in range(2, 40):
        lists.after(token_id, 0.5)
    assert lists.num_kept == 10
    assert torch.equal(lists.after(1, 0.5), first)
