"""Hostile grammars against the process that tries them: each is refused or cheap, and none harms the next."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psutil
import pytest

from serving.errors import InvalidRequest, Overloaded
from serving.grammar.compiler import GrammarCompiler
from serving.grammar.trial import TrialProcesses
from serving.grammar.trial_process import Setting
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


@pytest.fixture(scope="module")
def patient(tokenizer: Tokenizer) -> Iterator[TrialProcesses]:
    """Trials yield to everything else on the machine: where time is not the question, they get enough of it."""
    trial = TrialProcesses(_setting(tokenizer, 60.0))
    yield trial
    trial.close()


@pytest.mark.parametrize("name", REFUSED)
def test_an_attack_is_refused_in_time(trial: TrialProcesses, name: str) -> None:
    started_s = time.monotonic()
    # On a machine that is busy with other things a long trial gets too little of it to be judged.
    with pytest.raises((InvalidRequest, Overloaded)) as caught:
        trial.check(REFUSED[name])
    assert time.monotonic() - started_s < MAX_S
    assert len(caught.value.message) < 500
    if isinstance(caught.value, InvalidRequest):
        assert caught.value.field == "grammar"
    trial.check(regex("(yes|no)"))


@pytest.mark.parametrize("name", CHEAP)
def test_what_is_let_through_is_cheap_in_every_step(
    patient: TrialProcesses, compiler: GrammarCompiler, name: str
) -> None:
    patient.check(CHEAP[name])
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
    trial = TrialProcesses(_setting(tokenizer, 1.0))
    try:
        with pytest.raises(
            (InvalidRequest, Overloaded), match=r"longer than 0.5 s of processor time|too busy"
        ):
            trial.check(next(iter(SLOW.values())))
        trial.check(Grammar(kind="regex", source="[0-9]+"))
    finally:
        trial.close()


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children())


def test_a_trial_that_is_given_up_leaves_its_process_to_the_next(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.grammar.trial._ANSWER_S", 30.0)  # however busy this machine is
    before = _children()
    trial = TrialProcesses(_setting(tokenizer, 60.0))
    try:
        unfinished = trial.check(next(iter(SLOW.values())), within_s=0.05)
        assert unfinished is not None
        started = _children() - before
        (fork,) = [fork for process in started for fork in process.children()]
        unfinished.give_up()
        assert not fork.is_running()
        trial.check(regex("[0-9]+"))
        assert _children() - before == started
    finally:
        trial.close()
    assert not any(process.is_running() for process in started)


def test_a_verdict_is_never_that_of_a_trial_given_up_before(tokenizer: Tokenizer) -> None:
    trial = TrialProcesses(_setting(tokenizer, 60.0))
    try:
        for _ in range(3):
            trial.check(regex("[0-9]+"))
            unfinished = trial.check(next(iter(SLOW.values())), within_s=0.0)
            assert unfinished is not None
            unfinished.give_up()
            with pytest.raises(InvalidRequest, match="nothing matches"):
                trial.check(REFUSED["self reference"])
    finally:
        trial.close()


def test_ordinary_grammars_share_a_fork_and_the_one_after_a_slow_one_has_another(
    tokenizer: Tokenizer,
) -> None:
    before = _children()
    trial = TrialProcesses(_setting(tokenizer, 1.0))

    def forks() -> set[psutil.Process]:
        return {fork for process in _children() - before for fork in process.children()}

    try:
        seen = []
        for number in range(8):
            trial.check(regex(f"a{number}"))
            with pytest.raises(InvalidRequest, match="nothing matches"):
                trial.check(REFUSED["self reference"])
            seen.append(forks())
        assert len(set.union(*seen)) < len(seen)  # not one: on a slow machine an ordinary one takes long, too
        with pytest.raises((InvalidRequest, Overloaded)):
            trial.check(next(iter(SLOW.values())))
        assert not forks() & seen[-1]
        trial.check(regex("b"))
    finally:
        trial.close()
