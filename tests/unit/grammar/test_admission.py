"""Compilation beside the engine: once per source, bounded, refusable; and the store of what was compiled."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from serving.errors import InvalidRequest, Overloaded
from serving.grammar.admission import MAX_PENDING, GrammarAdmission, Verdict
from serving.grammar.compiler import CompiledGrammar, GrammarCompiler
from serving.grammar.refusals import MAX_AGE_S, MAX_REFUSALS, Refusals
from serving.grammar.store import GrammarStore
from serving.sampling_params import Grammar
from tests.unit.grammar.attacks import lark, regex, schema

WAIT_S = 10.0


class HeldCompiler:
    """The real compiler, which waits for permission and remembers what it was asked."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self.go = threading.Semaphore(0)
        self.asked: list[Grammar] = []

    def try_apart(self, grammar: Grammar, *, within_s: float) -> None:
        self.asked.append(grammar)
        assert self.go.acquire(timeout=WAIT_S)

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        return self._compiler.compile(grammar)

    def close(self) -> None:
        self.go.release()


@pytest.fixture
def held(compiler: GrammarCompiler) -> HeldCompiler:
    return HeldCompiler(compiler)


@pytest.fixture
def admission(held: HeldCompiler) -> Iterator[GrammarAdmission]:
    admission = GrammarAdmission(held, GrammarStore(10**7), timeout_s=2.0)
    yield admission
    for _ in range(MAX_PENDING + 1):
        held.go.release()
    admission.close()


def _take(admission: GrammarAdmission, count: int) -> list[Verdict]:
    news = threading.Semaphore(0)
    admission.call_on_verdict(news.release)
    verdicts = admission.take()
    while len(verdicts) < count:
        assert news.acquire(timeout=WAIT_S)
        verdicts += admission.take()
    return verdicts


def test_the_same_source_is_compiled_once_for_all_who_wait(
    admission: GrammarAdmission, held: HeldCompiler
) -> None:
    for _ in range(5):
        admission.request(regex("[a-z]+"))
    held.go.release()
    verdicts = _take(admission, 1)
    assert [verdict.error for verdict in verdicts] == [None] and len(held.asked) == 1
    assert admission.find(regex("[a-z]+")) is verdicts[0].compiled


def test_a_bad_grammar_is_refused_and_the_next_one_served(
    admission: GrammarAdmission, held: HeldCompiler
) -> None:
    admission.request(regex("(["))
    admission.request(regex("[0-9]"))
    held.go.release(2)
    bad, good = _take(admission, 2)
    assert isinstance(bad.error, InvalidRequest) and bad.error.field == "grammar"
    assert good.error is None


def test_a_refused_grammar_is_refused_again_without_being_tried(
    admission: GrammarAdmission, held: HeldCompiler
) -> None:
    held.go.release(2)
    admission.request(regex("(["))
    (refused,) = _take(admission, 1)
    assert refused.error is not None
    for number in range(2):
        with pytest.raises(InvalidRequest) as again:
            admission.request(regex("(["))
        assert (again.value.message, again.value.field) == (refused.error.message, "grammar")
        assert admission.stats().num_refused == 2 + number
    admission.request(lark("(["))  # another kind is another grammar
    assert len(_take(admission, 1)) == 1 and held.asked == [regex("(["), lark("([")]


def test_refusals_are_kept_for_a_time_and_the_last_ones_only(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals, now_s = Refusals(), 1000.0
    monkeypatch.setattr("serving.grammar.refusals.time", SimpleNamespace(monotonic=lambda: now_s))
    for number in range(MAX_REFUSALS + 1):
        refusals.add(regex(f"a{number}"), InvalidRequest("no", field="grammar"))
    refusals.check(regex("a0"))
    with pytest.raises(InvalidRequest, match="no"):
        refusals.check(regex("a1"))
    now_s += MAX_AGE_S
    refusals.check(regex("a1"))


def test_a_grammar_that_came_too_late_is_not_held_against_it(
    held: HeldCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Asked, begun, tried, compiled; each time anew.
    moments = itertools.cycle([0.0, 0.1, 0.2, 5.0])
    monkeypatch.setattr("serving.grammar.admission.time", SimpleNamespace(monotonic=lambda: next(moments)))
    admission = GrammarAdmission(held, GrammarStore(10**7), timeout_s=2.0)
    try:
        for _ in range(2):
            held.go.release()
            admission.request(regex("a"))
            (late,) = _take(admission, 1)
            assert late.error is not None and "took 4.8 s" in late.error.message
    finally:
        held.go.release()
        admission.close()


def test_the_queue_is_bounded(admission: GrammarAdmission) -> None:
    for number in range(MAX_PENDING):
        admission.request(regex(f"a{number}"))
    with pytest.raises(Overloaded):
        admission.request(regex("one too many"))
    admission.request(regex("a3"))


def test_switched_off_means_refused_by_name() -> None:
    admission = GrammarAdmission(None, GrammarStore(10**6), timeout_s=1.0)
    with pytest.raises(InvalidRequest, match="switched off"):
        admission.find(regex("a"))
    admission.close()


def test_the_store_keeps_the_last_used_within_its_bytes_and_whatever_is_held(
    compiler: GrammarCompiler,
) -> None:
    made = [compiler.compile(regex(f"a{number}")) for number in range(4)]
    store = GrammarStore(3 * made[0].num_bytes)
    for compiled in made[:3]:
        store.add(compiled)
    assert store.find(made[0].grammar) is made[0]
    store.add(made[3])
    assert store.num_bytes <= 3 * made[0].num_bytes
    assert store.find(made[1].grammar) is made[1], "somebody holds it"
    dropped = made[1].grammar
    del made[1], compiled
    gc.collect()
    assert store.find(dropped) is None
    assert store.find(regex("a0")) is not None and store.find(regex("a3")) is not None


def test_many_grammars_do_not_fill_the_memory(compiler: GrammarCompiler, full: bool) -> None:
    """S-17 of the reliability requirements: 20,000 schemas, less than 100 MiB."""
    store = GrammarStore(64 * 2**20)

    def use(number: int) -> None:
        properties = {f"p{number}_{i}": {"type": "string", "maxLength": 5 + number % 40} for i in range(4)}
        compiled = compiler.compile(schema({"type": "object", "properties": properties}))
        store.add(compiled)
        compiled.new_matcher().compute_bitmask()

    for number in range(200):
        use(number)
    before = _resident_bytes()
    for number in range(200, 20_000 if full else 800):
        use(number)
    assert store.num_bytes <= 64 * 2**20
    assert _resident_bytes() - before < 100 * 2**20


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_without_an_end_of_sequence_token_grammars_are_refused(compiler: GrammarCompiler) -> None:
    from serving.vocabulary import Vocabulary

    endless = GrammarCompiler(
        Vocabulary(token_bytes=(b"a", b"b"), special_text={}, eos_token_ids=frozenset()),
        lambda text: [],
        vocab_size=2,
        eos_token_ids=[],
    )
    with pytest.raises(InvalidRequest, match="end-of-sequence"):
        endless.compile(regex("ab"))
