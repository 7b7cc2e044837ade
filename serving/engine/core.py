"""EngineCore: admission, the step, and the books. Owns the scheduler and the executor; knows neither text nor sockets."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from serving.config import EngineConfig, KVGroupConfig
from serving.engine.kv_cache import KVCacheManager, cache_root
from serving.engine.request import FINISH_REASONS, Request, RequestStatus, child_seed
from serving.engine.request_limits import RequestLimits
from serving.engine.scheduler import Scheduler
from serving.engine.sessions import SessionTable
from serving.engine.step_loops import OneByOne, Overlapped, StepLoop, Steps
from serving.engine.step_metrics import StepMetrics, engine_stats
from serving.errors import InvalidRequest, ModelError, Overloaded, RequestError, WireError
from serving.messages import AddRequest, EngineReady, EngineStats, SequenceOutput

if TYPE_CHECKING:
    from serving.engine.executor import Executor
    from serving.grammar.admission import GrammarAdmission
    from serving.grammar.compiler import CompiledGrammar

_MIN_STALL_LIMIT_S = 20.0


class EngineCore:
    """One model, ready to serve. `executor` must have loaded, warmed up and allocated its cache (see `boot`)."""

    def __init__(
        self,
        config: EngineConfig,
        executor: Executor,
        *,
        groups: list[KVGroupConfig],
        num_blocks: list[int],
        warm_up_s: float,
        grammars: GrammarAdmission,
    ) -> None:
        cache = KVCacheManager(
            groups,
            num_blocks,
            block_size=config.block_size,
            prefix_caching=config.prefix_caching,
            session_kv_fraction=config.session_kv_fraction,
        )
        self._config = config
        self._executor = executor
        self._grammars = grammars
        self._cache = cache
        self._scheduler = Scheduler(
            cache,
            max_step_tokens=config.max_step_tokens,
            max_num_seqs=config.max_num_seqs,
            step_time_budget_s=config.step_time_budget_s,
        )
        max_total_tokens = cache.max_tokens_alone(config.max_step_tokens, config.max_total_tokens)
        self._limits = RequestLimits(
            vocab_size=executor.vocab_size,
            max_input_tokens=min(config.max_input_tokens or max_total_tokens, max_total_tokens - 1),
            max_total_tokens=max_total_tokens,
            max_sequences=max(config.max_best_of, config.max_n),
        )
        if self._limits.max_input_tokens < 1:
            raise ModelError(
                f"the KV cache holds {max_total_tokens} tokens, too few for one request: free memory, or lower "
                f"MAX_BATCH_PREFILL_TOKENS (now {config.max_step_tokens})"
            )
        self._max_queue_tokens = config.max_queue_tokens or 4 * cache.num_blocks * config.block_size
        self._stall_limit_s = max(_MIN_STALL_LIMIT_S, 5.0 * warm_up_s)
        self._boot_seed = os.urandom(32)
        self.sessions = SessionTable(cache.pins, ttl_s=config.session_ttl_s, max_sessions=config.max_sessions)
        self._eos_token_ids = frozenset(executor.eos_token_ids)
        self._requests: dict[str, dict[int, Request]] = {}
        self._compiling: dict[str, AddRequest] = {}
        self._pending: list[SequenceOutput] = []
        self._counters = {name: 0 for name in _COUNTERS}
        self._step_metrics = StepMetrics()
        steps = Steps(self._scheduler, executor, metrics=self._step_metrics, account=self._account)
        self._loop: StepLoop = Overlapped(steps) if config.async_scheduling else OneByOne(steps)

    # ------------------------------------------------------------ requests

    def add_request(self, message: AddRequest, *, wait: bool = False) -> bool:
        """Admit or refuse. Raises `InvalidRequest`, `NotFound` or `SessionRefused` for what can never run, `Overloaded`
        for a full queue.

        False: its grammar has to be compiled first, and `take_admissions` will say what became of it. With `wait` it is
        compiled here instead.
        """
        self._limits.check(message)
        self._check_load(message)
        if message.session_id:
            self.sessions.use(message.session_id)
        grammar = message.params.grammar
        compiled = None
        if grammar is not None:
            compiled = self._grammars.compile_now(grammar) if wait else self._grammars.find(grammar)
            if compiled is None:
                self._grammars.request(grammar)
                self._compiling[message.request_id] = message
                return False
        self._begin(message, compiled)
        return True

    def call_on_compiled(self, call: Callable[[], None]) -> None:
        """`call` whenever a grammar was compiled, in another thread: then `take_admissions` has news."""
        self._grammars.call_on_verdict(call)

    def take_admissions(self) -> list[tuple[str, RequestError | None]]:
        """Request ids whose grammar was compiled since the last call: admitted, or refused with the error."""
        admissions: list[tuple[str, RequestError | None]] = []
        for verdict in self._grammars.take():
            waiting = [key for key, m in self._compiling.items() if m.params.grammar == verdict.grammar]
            for request_id in waiting:
                message = self._compiling.pop(request_id)
                if verdict.error is None:
                    self._begin(message, verdict.compiled)
                admissions.append((request_id, verdict.error))
        return admissions

    def _begin(self, message: AddRequest, compiled: CompiledGrammar | None) -> None:
        params = message.params
        seed = params.seed if params.seed is not None else int.from_bytes(os.urandom(8), "little")
        num_prompt = len(message.prompt_token_ids)
        max_output = params.max_new_tokens or self._limits.max_total_tokens - num_prompt
        root = cache_root(self._boot_seed, salt=message.cache_salt)
        now_s = time.monotonic()
        sequences = [
            Request(
                request_id=message.request_id,
                index=index,
                params=params,
                seed=child_seed(seed, index),
                token_ids=list(message.prompt_token_ids),
                num_prompt_tokens=num_prompt,
                max_output_tokens=max_output,
                eos_token_ids=self._eos_token_ids,
                cache_root=root,
                arrival_s=now_s,
                status=RequestStatus.WAITING if index == 0 else RequestStatus.WAITING_FOR_FORK,
                compiled_grammar=compiled,
                session_id=message.session_id,
            )
            for index in range(params.n)
        ]
        sequences[0].children = sequences[1:]
        self._requests[message.request_id] = {request.index: request for request in sequences}
        self._counters["num_sequences"] += params.n
        self._counters["num_prompt_tokens"] += num_prompt
        self._scheduler.add(sequences[0])

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End one sequence, or all of a request, with finish reason `abort`. Unknown ids are ignored: the request may
        have ended while the message was under way."""
        self._compiling.pop(request_id, None)
        group = self._requests.get(request_id, {})
        for request in [r for i, r in group.items() if index is None or i == index]:
            self._scheduler.abort(request)
            self._counters["num_aborted"] += 1
            self._close(request)

    def abort_front(self, front_id: str) -> None:
        """A front is gone: so are its requests."""
        for request_id in [
            key for key in (*self._requests, *self._compiling) if key.rpartition("-")[0] == front_id
        ]:
            self.abort(request_id)

    def fail_all(self, reason: str) -> list[SequenceOutput]:
        """End everything with a generation error; the outputs must still be delivered."""
        for group in list(self._requests.values()):
            for request in list(group.values()):
                self._scheduler.fail(request)
                self._counters["num_failed"] += 1
                self._close(request, WireError(error_type="generation", message=reason))
        for request_id in self._compiling:
            error = WireError(error_type="generation", message=reason)
            self._pending.append(SequenceOutput(request_id=request_id, finish_reason="error", error=error))
        self._compiling.clear()
        return self._take_pending()

    def has_work(self) -> bool:
        return bool(self._requests or self._pending or self._loop.is_running)

    # ------------------------------------------------------------ the step

    def step(self) -> list[SequenceOutput]:
        """Schedule, execute, update. Returns the news of all requests, those that ended since the last step included. When
        steps overlap, they are those of the step before."""
        outputs = self._loop.step()
        return self._take_pending() + outputs

    # ------------------------------------------------------------ facts

    def ready(self, *, architecture: str, planning_core: int | None = None) -> EngineReady:
        config = self._config
        return EngineReady(
            model_id=config.model_id,
            model_dir=config.model_dir,
            revision=config.revision,
            device=config.device,
            dtype=config.dtype,
            num_ranks=config.num_ranks,
            vocab_size=self._executor.vocab_size,
            eos_token_ids=sorted(self._eos_token_ids),
            max_input_tokens=self._limits.max_input_tokens,
            max_total_tokens=self._limits.max_total_tokens,
            max_step_tokens=config.max_step_tokens,
            max_num_seqs=config.max_num_seqs,
            num_blocks=self._cache.num_blocks,
            block_size=config.block_size,
            stall_limit_s=self._stall_limit_s,
            architecture=architecture,
            planning_core=planning_core,
        )

    def share_of_cache_ever_used(self) -> float:
        """0 to 1, from its beginning on. Safe in other threads."""
        return self._cache.share_ever_used

    def stats(self) -> EngineStats:
        step = self._step_metrics.stats(
            running_max_tokens=self._scheduler.running_max_tokens,
            capacity_tokens=self._cache.num_blocks * self._config.block_size,
            max_sequences=self._config.max_concurrent_requests,
        )
        return engine_stats(
            self._scheduler,
            step,
            self._counters,
            grammar=self._grammars.stats(),
            num_sessions=len(self.sessions),
        )

    def check(self) -> None:
        """Raise if blocks or rows are not where the living requests say they are."""
        self._scheduler.check()

    def close(self) -> None:
        self._grammars.close()
        self._executor.close()

    # ------------------------------------------------------------ admission arithmetic

    def _check_load(self, message: AddRequest) -> None:
        if message.request_id in self._requests or message.request_id in self._compiling:
            raise InvalidRequest(f"request id {message.request_id!r} is in use", field="request_id")
        num_active = sum(len(group) for group in self._requests.values())
        num_active += sum(compiling.params.n for compiling in self._compiling.values())
        num_waiting_tokens = self._scheduler.num_waiting_tokens
        too_many = num_active + message.params.n > self._config.max_concurrent_requests
        too_long = num_waiting_tokens > 0 and (
            num_waiting_tokens + len(message.prompt_token_ids) > self._max_queue_tokens
        )
        if too_many or too_long:
            drain_s = num_waiting_tokens * (self._scheduler.seconds_per_token or 0.0)
            raise Overloaded("Model is overloaded", retry_after_s=max(1.0, drain_s))

    # ------------------------------------------------------------ books

    def _account(self, outputs: list[SequenceOutput]) -> int:
        """Returns the number of tokens in `outputs`."""
        num_tokens = 0
        for output in outputs:
            num_tokens += len(output.token_ids)
            if output.finish_reason is not None:
                self._counters["num_finished" if output.error is None else "num_failed"] += 1
                if output.error is not None:
                    self._forget_grammar(self._requests[output.request_id][output.index])
                self._forget(output.request_id, output.index)
        self._counters["num_generated_tokens"] += num_tokens
        return num_tokens

    def _close(self, request: Request, error: WireError | None = None) -> None:
        self._pending.append(
            SequenceOutput(
                request_id=request.request_id,
                index=request.index,
                finish_reason=FINISH_REASONS[request.status],
                error=error,
            )
        )
        self._forget(request.request_id, request.index)

    def _forget_grammar(self, request: Request) -> None:
        """It gave up, perhaps only because its automaton had grown with use: the next request gets a fresh one."""
        if request.params.grammar is not None:
            self._grammars.store.discard(request.params.grammar)

    def _forget(self, request_id: str, index: int) -> None:
        group = self._requests[request_id]
        del group[index]
        if not group:
            del self._requests[request_id]

    def _take_pending(self) -> list[SequenceOutput]:
        pending, self._pending = self._pending, []
        return pending


_COUNTERS = (
    "num_sequences", "num_finished", "num_failed", "num_aborted",
    "num_prompt_tokens", "num_generated_tokens",
)  # fmt: skip
