"""From a declaration and a folder to an `EngineCore` that can serve: facts, resolve, weights, warm-up, cache.

The composition root of the engine, shared by the engine process and by `LLM`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec

from serving import logs
from serving.config import EngineConfig, KVGroupConfig, ServerConfig, Stage
from serving.contracts import KVGroupSpec
from serving.engine.core import EngineCore
from serving.engine.executor import Executor, make_executor
from serving.engine.start_clock import StartClock
from serving.errors import DeviceError, InvalidRequest, ModelError
from serving.grammar.admission import GrammarAdmission
from serving.grammar.compiler import CompiledGrammar, GrammarCompiler
from serving.grammar.store import GrammarStore
from serving.grammar.trial import TrialProcesses, Unfinished
from serving.grammar.trial_process import Setting
from serving.kernels.cpu.native import library
from serving.resolve import read_device_facts, read_model_facts, resolve
from serving.sampling_params import Grammar
from serving.text.tokenizer import Tokenizer

_HOST_CACHE_BYTES = 2 * 2**30
_HOST_WARM_UP_TOKENS = (
    8  # threads are started and every weight is touched; what a host's memory can take is not asked
)
_REPORT_INTERVAL_S = 0.2

logger = logging.getLogger(__name__)


@dataclass(slots=True, frozen=True)
class Booted:
    core: EngineCore
    architecture: str


def boot(
    declared: ServerConfig,
    *,
    model_dir: str,
    model_id: str,
    revision: str | None = None,
    run_dir: Path | None = None,
    report: Callable[[Stage], None] = lambda stage: None,
    on_rank_death: Callable[[str], None] | None = None,
    clock: StartClock | None = None,
) -> Booted:
    """Load `model_dir` and make it ready. Raises `StartupError` subclasses, each one line with the fix.

    `run_dir` is a private folder for the ranks' rendezvous (a temporary one by default), `report` hears the stages,
    `on_rank_death` is called from a thread when a rank ends on its own. `clock` runs since the process began; by default
    it starts now.
    """
    clock = clock or StartClock()
    clock.mark("import")
    declared = msgspec.structs.replace(
        declared, model=msgspec.structs.replace(declared.model, model_id=model_id, revision=revision)
    )
    facts = read_model_facts(model_dir)
    config, decisions = resolve(declared, model_dir=model_dir, facts=facts, devices=read_device_facts())
    for decision in decisions:
        logs.event(
            logger,
            logging.INFO,
            "chosen",
            setting=decision.name,
            value=decision.value,
            reason=decision.reason,
        )
    clock.mark("config")
    executor = make_executor(config, run_dir=run_dir, on_rank_death=on_rank_death)
    clock.mark("worker")
    try:
        return Booted(core=_make_ready(config, executor, report, clock), architecture=facts.architecture)
    except BaseException:
        executor.close()
        raise


def _make_ready(
    config: EngineConfig, executor: Executor, report: Callable[[Stage], None], clock: StartClock
) -> EngineCore:
    report(Stage(stage="loading"))
    executor.load(LoadingReport(report))
    clock.mark("weights")
    grammars = _make_grammars(config, executor)
    report(Stage(stage="warm-up"))
    warm_up_s = _warm_up(config, executor)
    clock.mark("warm_up")
    free_bytes = executor.free_bytes()
    num_blocks = cache_blocks(config, executor.kv_groups, free_bytes)
    logs.event(
        logger,
        logging.INFO,
        "cache",
        num_blocks=num_blocks[0],
        tokens=(num_blocks[0] - 1) * config.block_size,
        free_mib=free_bytes >> 20,
        warm_up_s=warm_up_s,
    )
    executor.initialize_cache(num_blocks)
    groups = [KVGroupConfig(name=group.name, window=group.window) for group in executor.kv_groups]
    core = EngineCore(
        config, executor, groups=groups, num_blocks=num_blocks, warm_up_s=warm_up_s, grammars=grammars
    )
    clock.mark("cache")
    logs.event(logger, logging.INFO, "start", **clock.fields())
    return core


def _warm_up(config: EngineConfig, executor: Executor) -> float:
    """Seconds of the largest step: measured where its peak of memory has to be, estimated from a small step elsewhere."""
    largest = min(config.max_step_tokens, config.max_total_tokens)
    tokens = min(largest, _HOST_WARM_UP_TOKENS) if config.device == "cpu" else largest
    if tokens < largest:
        executor.warm_up(tokens)  # its first run starts threads and touches memory, and would say too much
    return executor.warm_up(tokens) * largest / tokens


class LoadingReport:
    """Tells how much of the weights this process has read, no more often than somebody could look."""

    def __init__(self, report: Callable[[Stage], None]) -> None:
        self._report = report
        self._told_s = float("-inf")

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s >= _REPORT_INTERVAL_S:
            self._told_s = now_s
            detail = f"{done_bytes / 1e9:.1f} of {total_bytes / 1e9:.1f} GB"
            self._report(Stage(stage="loading", detail=detail))


def _make_grammars(config: EngineConfig, executor: Executor) -> GrammarAdmission:
    store = GrammarStore(config.grammar_cache_bytes)
    executor.use_grammars(store)
    compiler = None
    if config.grammar_support:
        compiler = _BackgroundCompiler(
            config, vocab_size=executor.vocab_size, eos_token_ids=executor.eos_token_ids
        )
    return GrammarAdmission(compiler, store, timeout_s=config.grammar_timeout_s)


class _BackgroundCompiler:
    """A `GrammarCompiler` that is made while the engine warms up: nobody waits for the vocabulary before a grammar comes."""

    def __init__(self, config: EngineConfig, *, vocab_size: int, eos_token_ids: list[int]) -> None:
        def make() -> tuple[GrammarCompiler, TrialProcesses]:
            tokenizer = Tokenizer.from_dir(config.model_dir)
            vocabulary = tokenizer.vocabulary
            compiler = GrammarCompiler(
                vocabulary,
                lambda text: tokenizer.encode(text, add_special_tokens=False),
                vocab_size=vocab_size,
                eos_token_ids=eos_token_ids,
                kernels=library.load() if config.device == "cpu" else None,
            )
            setting = Setting(
                token_bytes=list(vocabulary.token_bytes),
                special_text=vocabulary.special_text,
                vocab_size=vocab_size,
                eos_token_ids=eos_token_ids,
                timeout_s=config.grammar_timeout_s,
            )
            return compiler, TrialProcesses(setting)

        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar-vocabulary")
        self._made: Future[tuple[GrammarCompiler, TrialProcesses]] = thread.submit(make)
        thread.shutdown(wait=False)

    def try_apart(self, grammar: Grammar, *, within_s: float) -> Unfinished | None:
        return self._parts()[1].check(grammar, within_s=within_s)

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        return self._parts()[0].compile(grammar)

    def close(self) -> None:
        if self._made.exception() is None:
            self._made.result()[1].close()

    def _parts(self) -> tuple[GrammarCompiler, TrialProcesses]:
        try:
            return self._made.result()
        except ModelError as error:
            # The engine serves token ids without a tokenizer; only grammars need one.
            raise InvalidRequest(
                "`grammar` is refused: this model has no tokenizer that grammars can be compiled for",
                field="grammar",
            ) from error


def cache_blocks(config: EngineConfig, groups: list[KVGroupSpec], free_bytes: int) -> list[int]:
    """Blocks per KV group, padding block included: as declared, else what the memory holds, never more than all
    running sequences could use. Every group gets the same number, so that none runs out before the others.

    A host is shared with other programs: undeclared, the cache takes a quarter of its free memory, at most 2 GiB.
    """
    bytes_per_block = config.block_size * sum(group.bytes_per_token for group in groups)
    affordable = free_bytes // bytes_per_block
    if config.max_batch_total_tokens is not None:
        wanted = -(-config.max_batch_total_tokens // config.block_size) + 1
    else:
        budget = min(free_bytes // 4, _HOST_CACHE_BYTES) if config.device == "cpu" else free_bytes
        useful = config.max_num_seqs * -(-config.max_total_tokens // config.block_size) + 1
        wanted = min(budget // bytes_per_block, useful)
    if wanted < 2 or wanted > max(affordable, 2):
        raise DeviceError(
            f"the KV cache needs {max(wanted, 2) * bytes_per_block >> 20} MiB for {max(wanted, 2)} blocks of "
            f"{config.block_size} tokens, {free_bytes >> 20} MiB are free: lower MAX_BATCH_TOTAL_TOKENS or "
            "MAX_BATCH_PREFILL_TOKENS, use more GPUs, or a smaller model"
        )
    return [wanted] * len(groups)
