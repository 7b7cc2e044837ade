"""Admission, books and ends of the engine core, on the simulated worker."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from serving.batch import ScheduledBatch, StepResult
from serving.config import EngineConfig, KVGroupConfig
from serving.engine.core import EngineCore
from serving.errors import InvalidRequest, ModelError, NotFound, Overloaded, SessionRefused
from serving.grammar.admission import Compiler, GrammarAdmission
from serving.grammar.compiler import CompiledGrammar
from serving.grammar.store import GrammarStore
from serving.messages import AddRequest, SequenceOutput
from serving.sampling_params import Grammar, SamplingParams
from tests.unit.engine.simulated_worker import EOS, VOCAB, SimulatedWorker

GROUPS = [KVGroupConfig(name="full")]


class SimulatedExecutor:
    """The simulated worker behind the verbs of an executor."""

    vocab_size = VOCAB
    eos_token_ids = (EOS,)

    def __init__(self) -> None:
        self.worker = SimulatedWorker(GROUPS, 4)

    def launch(self, batch: ScheduledBatch) -> StepResult:
        return self.worker.execute(batch)

    def collect(self, step: StepResult) -> StepResult:
        return step

    def close(self) -> None:
        """It holds nothing."""


def _core(*, num_blocks: int = 40, compiler: Compiler | None = None, **changes: object) -> EngineCore:
    settings: dict[str, object] = {
        "model_dir": str(Path("model")), "model_id": "simulated", "revision": None, "device": "cpu",
        "dtype": "float32", "num_ranks": 1, "num_threads": 1, "block_size": 4, "max_batch_total_tokens": None,
        "memory_fraction": 0.9, "prefix_caching": True, "max_step_tokens": 16, "step_time_budget_s": 1.0,
        "max_num_seqs": 8, "max_queue_tokens": None, "max_concurrent_requests": 6, "max_best_of": 3,
        "max_input_tokens": 30, "max_total_tokens": 60, "deterministic": False,
    }  # fmt: skip
    config = EngineConfig(**settings | changes)
    grammars = GrammarAdmission(compiler, GrammarStore(10**6), timeout_s=config.grammar_timeout_s)
    return EngineCore(
        config,
        SimulatedExecutor(),
        groups=GROUPS,
        num_blocks=[num_blocks],
        warm_up_s=0.1,
        grammars=grammars,
    )


def _add(
    core: EngineCore, request_id: str = "front-1", prompt: list[int] | None = None, **params: object
) -> None:
    tokens = prompt if prompt is not None else [9, 10, 11]
    core.add_request(
        AddRequest(
            request_id=request_id, prompt_token_ids=tokens, params=SamplingParams(**{"seed": 1} | params)
        )
    )


def _run(core: EngineCore) -> dict[tuple[str, int], list[SequenceOutput]]:
    outputs: dict[tuple[str, int], list[SequenceOutput]] = {}
    while core.has_work():
        for output in core.step():
            outputs.setdefault((output.request_id, output.index), []).append(output)
    core.check()
    return outputs


@pytest.mark.parametrize(
    ("prompt", "params", "field", "says"),
    [
        ([], {}, "inputs", "at least 1 token"),
        ([1, VOCAB], {}, "inputs", f"[0, {VOCAB})"),
        ([-1], {}, "inputs", f"[0, {VOCAB})"),
        ([1] * 31, {}, "inputs", "at most 30 tokens, got 31"),
        ([1] * 30, {"max_new_tokens": 31}, "max_new_tokens", "at most 60, got 30 `inputs` tokens and 31"),
        ([1], {"n": 17}, "n", "at most 16"),
        ([1], {"temperature": float("nan")}, "temperature", "finite"),
        ([1], {"top_p": 0.0}, "top_p", "(0, 1]"),
        ([1], {"stop_token_ids": (VOCAB,)}, "stop_token_ids", str(VOCAB)),
        ([1], {"seed": 2**64}, "seed", "64-bit"),
        ([1], {"repetition_penalty": 0.0}, "repetition_penalty", "above 0"),
        ([1], {"relative_frequency_penalty": 2.5}, "relative_frequency_penalty", "between"),
    ],
)
def test_what_can_never_run_is_refused_by_name(
    prompt: list[int], params: dict[str, object], field: str, says: str
) -> None:
    core = _core()
    with pytest.raises(InvalidRequest) as caught:
        _add(core, prompt=prompt, **params)
    assert caught.value.field == field and says in caught.value.message
    assert not core.has_work()


def test_an_adapter_is_never_answered_by_the_base_model() -> None:
    request = AddRequest(
        request_id="front-1", prompt_token_ids=[1], params=SamplingParams(), adapter_id="mine"
    )
    with pytest.raises(NotFound, match="mine"):
        _core().add_request(request)


def test_a_cache_that_holds_less_than_the_context_lowers_the_limits() -> None:
    core = _core(num_blocks=6, max_input_tokens=None)
    ready = core.ready(architecture="any")
    assert (ready.max_total_tokens, ready.max_input_tokens) == (20, 19)
    with pytest.raises(InvalidRequest, match="at most 20"):
        _add(core, prompt=[1] * 10, max_new_tokens=11)
    _add(core, prompt=[1] * 10, max_new_tokens=10)
    assert _run(core)["front-1", 0][-1].finish_reason in ("length", "eos_token")
    with pytest.raises(ModelError, match="too few"):
        _core(num_blocks=1 + 1, block_size=1, max_input_tokens=None)


def test_concurrency_counts_sequences_and_recovers() -> None:
    core = _core()
    _add(core, "front-1", n=3)
    _add(core, "front-2", n=3)
    with pytest.raises(Overloaded) as caught:
        _add(core, "front-3")
    assert caught.value.retry_after_s >= 1.0
    _run(core)
    _add(core, "front-3")


def test_queue_is_bounded_in_tokens() -> None:
    core = _core(max_queue_tokens=40, max_num_seqs=1)
    _add(core, "front-1", prompt=[1] * 30)
    with pytest.raises(Overloaded):
        _add(core, "front-2", prompt=[2] * 30)
    core.step()
    _add(core, "front-2", prompt=[2] * 30)


def test_every_sequence_ends_once_and_the_books_balance() -> None:
    core = _core()
    _add(core, "a-1", max_new_tokens=5, n=2)
    _add(core, "a-2", prompt=[20] * 12, max_new_tokens=9)
    _add(core, "b-1", prompt=[30] * 8, max_new_tokens=20)
    core.step()
    core.abort("a-2")
    core.abort("a-2")
    core.abort("never-1")
    core.abort_front("b")
    outputs = _run(core)
    ends = {key: [o.finish_reason for o in news if o.finish_reason] for key, news in outputs.items()}
    assert all(len(reasons) == 1 for reasons in ends.values()) and len(ends) == 4
    assert ends["a-2", 0] == ends["b-1", 0] == ["abort"]
    stats = core.stats()
    assert stats.num_sequences == stats.num_finished + stats.num_aborted + stats.num_failed == 4
    assert stats.num_free_blocks == stats.num_blocks


def test_overlapped_steps_end_every_sequence_once() -> None:
    one_by_one, overlapped = _core(), _core(async_scheduling=True)
    ended = []
    for core in (one_by_one, overlapped):
        _add(core, "a-1", max_new_tokens=5, n=2)
        _add(core, "a-2", prompt=[20] * 12, max_new_tokens=9)
        _add(core, "b-1", prompt=[30] * 8, max_new_tokens=20)
        outputs = {key: (_tokens(news), news[-1].finish_reason) for key, news in _run(core).items()}
        ended.append(outputs)
        stats = core.stats()
        assert stats.num_sequences == stats.num_finished == 4
        assert stats.num_free_blocks == stats.num_blocks and not core.has_work()
    assert ended[0] == ended[1]


def test_what_ends_while_a_step_runs_is_told_once() -> None:
    core = _core(async_scheduling=True)
    _add(core, "a-1", max_new_tokens=12)
    _add(core, "a-2", prompt=[20] * 12, max_new_tokens=12)
    _add(core, "a-3", prompt=[4] * 20, max_new_tokens=12)
    core.step()
    core.step()
    core.abort("a-1")
    first = core.step()
    assert [o.request_id for o in first if o.finish_reason == "abort"] == ["a-1"]
    failed = core.fail_all("the server is stopping")
    assert {o.request_id for o in failed} == {"a-2", "a-3"}
    assert core.has_work(), "a step still runs"
    assert core.step() == [] and not core.has_work()
    core.check()
    stats = core.stats()
    assert stats.num_free_blocks == stats.num_blocks


def _tokens(news: list[SequenceOutput]) -> list[int]:
    return [token for output in news for token in output.token_ids]


def test_an_abort_of_one_sequence_leaves_its_siblings() -> None:
    core = _core()
    _add(core, "a-1", max_new_tokens=12, n=3)
    core.step()
    core.abort("a-1", 0)
    outputs = _run(core)
    assert outputs["a-1", 0][-1].finish_reason == "abort"
    assert {outputs["a-1", index][-1].finish_reason for index in (1, 2)} <= {"length", "eos_token"}


def test_front_ids_are_matched_whole() -> None:
    core = _core()
    _add(core, "front-1")
    _add(core, "front-11-1")
    core.abort_front("front")
    assert {key for key, news in _run(core).items() if news[-1].finish_reason == "abort"} == {("front-1", 0)}


def test_fail_all_gives_everyone_a_terminal_error() -> None:
    core = _core()
    _add(core, "a-1", n=2)
    _add(core, "a-2", prompt=[4] * 20)
    core.step()
    outputs = core.fail_all("the engine failed")
    assert {(o.request_id, o.index) for o in outputs} == {("a-1", 0), ("a-1", 1), ("a-2", 0)}
    assert all(
        o.finish_reason == "error" and o.error and o.error.message == "the engine failed" for o in outputs
    )
    core.check()
    assert not core.has_work()


def test_a_request_id_in_use_is_refused() -> None:
    core = _core()
    _add(core, "a-1")
    with pytest.raises(InvalidRequest, match="in use"):
        _add(core, "a-1")


class _HeldCompiler:
    """Compiles when told to; a source of `bad` is refused."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)

    def try_apart(self, grammar: Grammar, *, within_s: float) -> None:
        assert self.go.acquire(timeout=10.0)
        if grammar.source == "bad":
            raise InvalidRequest("`grammar` is refused: bad", field="grammar")

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        return CompiledGrammar(grammar=grammar, prototype=None, num_bytes=10)

    def close(self) -> None:
        self.go.release(10)


def _admitted(core: EngineCore, compiler: _HeldCompiler, count: int) -> dict[str, str]:
    """What became of the next `count` requests whose grammar is compiled now."""
    news = threading.Semaphore(0)
    core.call_on_compiled(news.release)
    compiler.go.release(count)
    admissions: dict[str, str] = {}
    while len(admissions) < count:
        assert news.acquire(timeout=10.0)
        for request_id, error in core.take_admissions():
            admissions[request_id] = "" if error is None else error.message
    return admissions


def test_a_grammar_is_compiled_while_others_run_and_then_admitted_or_refused() -> None:
    compiler = _HeldCompiler()
    core = _core(compiler=compiler)
    _add(core, "a-1", max_new_tokens=4)
    _add(core, "a-2", grammar=Grammar(kind="regex", source="good"), max_new_tokens=3)
    _add(core, "a-3", grammar=Grammar(kind="regex", source="bad"))
    assert set(_run(core)) == {("a-1", 0)} and core.take_admissions() == []
    with pytest.raises(InvalidRequest, match="in use"):
        _add(core, "a-2")
    assert _admitted(core, compiler, 2) == {"a-2": "", "a-3": "`grammar` is refused: bad"}
    assert set(_run(core)) == {("a-2", 0)}
    _add(core, "a-4", grammar=Grammar(kind="regex", source="good"), max_new_tokens=3)
    assert set(_run(core)) == {("a-4", 0)}, "compiled already: admitted at once"
    core.close()


def test_requests_that_leave_or_fail_while_compiling_never_start() -> None:
    compiler = _HeldCompiler()
    core = _core(compiler=compiler)
    for request_id in ("a-1", "b-1", "c-1"):
        _add(core, request_id, grammar=Grammar(kind="regex", source=request_id), n=2)
    with pytest.raises(Overloaded):
        _add(core, "d-1")
    core.abort("a-1")
    core.abort_front("b")
    failed = core.fail_all("the server is stopping")
    assert [(o.request_id, o.finish_reason) for o in failed] == [("c-1", "error")]
    compiler.go.release(3)
    core.close()
    assert core.take_admissions() == [] and not core.has_work()


def test_grammars_that_are_switched_off_are_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="switched off") as caught:
        _add(_core(), grammar=Grammar(kind="regex", source="a"))
    assert caught.value.field == "grammar"


def test_a_row_whose_grammar_gives_up_ends_alone() -> None:
    core = _core()
    _add(core, "a-1", max_new_tokens=30)
    _add(core, "a-2", prompt=[20] * 5, max_new_tokens=30)
    worker = core._executor.worker
    execute = worker.execute

    def failing(batch: ScheduledBatch) -> StepResult:
        result = execute(batch)
        gone = result.sampled.pop(0)
        result.failed_rows = {gone.row: "too many items"}
        return result

    worker.execute = failing
    first = core.step()
    worker.execute = execute
    ended = [output for output in first if output.finish_reason == "error"]
    assert len(ended) == 1 and ended[0].error and "too complex" in ended[0].error.message
    others = _run(core)
    assert {news[-1].finish_reason for news in others.values()} <= {"length", "eos_token"}
    stats = core.stats()
    assert (stats.num_failed, stats.num_finished) == (1, 1)


def test_cached_tokens_are_those_of_the_prefix_cache() -> None:
    core = _core()
    prompt = list(range(9, 18))
    _add(core, prompt=prompt, n=3, max_new_tokens=4)
    _run(core)
    assert core.stats().num_cached_tokens == 0  # what sequences of one request share is no hit
    _add(core, "front-2", prompt=prompt, n=3, max_new_tokens=4)
    core.step()
    core.abort("front-2")  # as after a stop string
    _run(core)
    assert core.stats().num_cached_tokens == 8


def test_turns_of_a_session_hit_what_it_keeps_and_nobody_elses() -> None:
    core = _core(num_blocks=60, max_input_tokens=50, session_kv_fraction=0.5)

    def turn(number: int, prompt: list[int], session_id: str) -> int:
        params = SamplingParams(seed=1, max_new_tokens=4)
        name = f"front-{number}"
        core.add_request(
            AddRequest(request_id=name, prompt_token_ids=prompt, params=params, session_id=session_id)
        )
        return _run(core)[name, 0][-1].num_cached_tokens

    session_id = core.sessions.open(0.0)
    assert turn(1, list(range(8, 32)), session_id) == 0
    stats = core.stats()
    assert (stats.session.num_open, stats.session.num_pinned_tokens) == (1, 24)
    assert stats.num_free_blocks == stats.num_blocks, "what only sessions keep is free"
    for number in range(2, 20):
        assert turn(number, [number + 20] * 44, "") == 0
    assert turn(20, list(range(8, 32)), session_id) == 20
    core.sessions.close(session_id)
    with pytest.raises(SessionRefused):
        turn(21, [9], session_id)
    core.check()
    assert not core.has_work() and core.stats().session.num_pinned_blocks == 0
