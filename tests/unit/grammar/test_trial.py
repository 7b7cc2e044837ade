"""Hostile grammars against the process that tries them: each is refused or cheap, and none harms the next."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from serving.errors import InvalidRequest
from serving.grammar.compiler import GrammarCompiler
from serving.grammar.trial import Setting, TrialProcesses
from serving.sampling_params import Grammar
from serving.text.tokenizer import Tokenizer
from tests.unit.grammar.attacks import CHEAP, REFUSED, SLOW, regex
from tests.unit.grammar.conftest import EOS, VOCAB_SIZE

# S-16 and R-30 of the reliability requirements: an answer in 3 s.
MAX_S = 3.0
STEPS = 60


def _setting(tokenizer: Tokenizer, timeout_s: float) -> Setting:
    return Setting(
        token_bytes=list(tokenizer.vocabulary.token_bytes),
        special_text=tokenizer.vocabulary.special_text,
        vocab_size=VOCAB_SIZE,
        eos_token_ids=EOS,
        timeout_s=timeout_s,
    )


@pytest.fixture(scope="module")
def trial(tokenizer: Tokenizer) -> Iterator[TrialProcesses]:
    trial = TrialProcesses(_setting(tokenizer, 2.0))
    trial.check(regex("a"))
    yield trial
    trial.close()


@pytest.mark.parametrize("name", REFUSED)
def test_an_attack_is_refused_in_time(trial: TrialProcesses, name: str) -> None:
    started_s = time.monotonic()
    with pytest.raises(InvalidRequest) as caught:
        trial.check(REFUSED[name])
    assert time.monotonic() - started_s < MAX_S
    assert caught.value.field == "grammar" and len(caught.value.message) < 500
    trial.check(regex("(yes|no)"))


@pytest.mark.parametrize("name", CHEAP)
def test_what_is_let_through_is_cheap_in_every_step(
    trial: TrialProcesses, compiler: GrammarCompiler, name: str
) -> None:
    trial.check(CHEAP[name])
    started_s = time.monotonic()
    matcher = compiler.compile(CHEAP[name]).new_matcher()
    for _ in range(STEPS):
        if matcher.is_error() or matcher.is_stopped():
            break
        bits = matcher.compute_bitmask()
        permitted = [i for i in range(8 * len(bits)) if bits[i // 8] >> (i % 8) & 1 and i not in EOS]
        if not permitted or not matcher.consume_token(permitted[len(permitted) // 2]):
            break
    assert time.monotonic() - started_s < MAX_S


def test_a_compilation_that_takes_too_long_is_killed_and_the_next_one_served(tokenizer: Tokenizer) -> None:
    trial = TrialProcesses(_setting(tokenizer, 0.05))
    try:
        with pytest.raises(InvalidRequest, match="longer than 0.05 s"):
            trial.check(next(iter(SLOW.values())))
        trial.check(Grammar(kind="regex", source="[0-9]+"))
    finally:
        trial.close()
