"""Decides, step by step, how many tokens of which request are computed next. Plain Python: no torch, no clock (times are
passed in), no environment.

There is no prefill or decode phase: each request has tokens that are known but not computed, and a step computes some of
them. A new prompt, the rest of a chunked prompt, a request that resumes after preemption and a decode differ only in that
number. Requests that need one token always run; longer ones get what the step has left for them, one after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

from serving.batch import NewRow, ScheduledBatch, ScheduledRow, StepResult
from serving.buckets import DURATION_S, BucketCounts
from serving.engine.kv_cache import KVCacheManager
from serving.engine.plans_in_flight import PlansInFlight
from serving.engine.prompt_budget import PromptBudget, in_order
from serving.engine.request import Request, RequestStatus
from serving.engine.rows import Rows
from serving.engine.shared_prefixes import PrefixesUnderWay
from serving.engine.step_cost import StepCost, StepLoad
from serving.errors import GenerationFailed, to_wire
from serving.messages import SequenceOutput, TopToken

_MAX_WAITING_CLAIMS = 16
_MAX_PASSED = 256
"""Waiting requests that a step looks past, since they await a prefix: bounds the time it takes."""


class Scheduler:
    def __init__(
        self, cache: KVCacheManager, *, max_step_tokens: int, max_num_seqs: int, step_time_budget_s: float
    ) -> None:
        self.cache = cache
        self.num_preemptions = 0
        self.num_cached_tokens = 0
        self.queue_s = BucketCounts(DURATION_S)
        self._max_step_tokens = max_step_tokens
        self._step_time_budget_s = step_time_budget_s
        self._cost = StepCost()
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._forking: list[Request] = []
        self._rows = Rows(max_num_seqs)
        self._under_way = PrefixesUnderWay(cache)
        self._step = 0
        self._in_flight = PlansInFlight()

    # ------------------------------------------------------------ queue

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._forking)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def running_max_tokens(self) -> int:
        """What the running sequences may grow to, prompts included."""
        return sum(request.num_prompt_tokens + request.max_output_tokens for request in self._running)

    @property
    def num_waiting_tokens(self) -> int:
        return sum(request.num_uncomputed_tokens for request in self._waiting)

    @property
    def seconds_per_token(self) -> float | None:
        return self._cost.seconds_per_token

    def add(self, request: Request) -> None:
        """Queue a sequence and, behind it, the children that will fork from it."""
        self._waiting.append(request)
        self._forking.extend(request.children)

    def abort(self, request: Request) -> None:
        """End a sequence now, whatever it is doing. Its children go on by themselves."""
        self._finish(request, RequestStatus.ABORT)

    def fail(self, request: Request) -> None:
        self._finish(request, RequestStatus.ERROR)

    def requests(self) -> Iterator[Request]:
        """All sequences that have not ended."""
        yield from self._running
        yield from self._waiting
        yield from self._forking

    # ------------------------------------------------------------ one step

    def schedule(self, now_s: float) -> ScheduledBatch | None:
        """Plan the next step, or None if nothing can run. The counters of the planned requests advance here, so that
        the next plan may be made before this one's result is known: every plan is executed, in order, and updated once."""
        counts: dict[Request, int] = {}
        self._under_way.look_at(self._running if self._waiting else ())
        new_rows: list[NewRow] = []
        new_blocks: dict[Request, list[list[int]]] = {}
        preemptions_before = self.num_preemptions
        for request, num_tokens in self._wishes().items():
            self._give(request, num_tokens, counts, new_blocks)
        has_room = self.num_preemptions == preemptions_before or not counts
        if has_room and self._waiting and self._rows.num_free:
            self._admit(self._budget(counts), counts, new_rows, now_s)
        if not counts and self._running:
            # All wishes ended in preemption or went to claims that could not start: the oldest can always go on.
            oldest = self._running[0]
            num_tokens = self._budget({}).fitting(oldest.num_computed_tokens, oldest.num_uncomputed_tokens)
            if num_tokens:
                self._give(oldest, num_tokens, counts, new_blocks)
        if not counts:
            return None
        self._step += 1
        copies = self.cache.take_forks(counts) if new_rows else []
        load = StepLoad.of(counts) if self._cost.wants(len(counts), sum(counts.values())) else None
        rows = [_plan_row(request, count, new_blocks.get(request, [])) for request, count in counts.items()]
        self._in_flight.add(counts, load)
        return ScheduledBatch(
            step=self._step,
            rows=rows,
            new_rows=new_rows,
            released_rows=self._rows.take_released(),
            block_copies=copies,
        )

    def update(self, batch: ScheduledBatch, result: StepResult, now_s: float) -> list[SequenceOutput]:
        """Take in what a step produced, in the order of the plans. Results of requests that ended, or were preempted, after
        it was planned are dropped."""
        plan, load = self._in_flight.take()
        if load is not None:
            self._cost.observe(load, result.forward_s)
        by_row = {}
        for request, num_computed_tokens in plan.items():
            by_row[request.row] = request
            self.cache.advance(request, num_computed_tokens)
        _take_prompt_scores(by_row, result)
        outputs = [
            self._fail_grammar(by_row[row], reason, now_s)
            for row, reason in result.failed_rows.items()
            if row in by_row
        ]
        for sampled in result.sampled:
            if sampled.row not in by_row:
                continue
            request = by_row[sampled.row]
            request.num_pending_tokens -= 1
            request.append(sampled.token_id)
            wants_top = request.params.top_n_tokens > 0
            outputs.append(
                request.output(
                    token_ids=[sampled.token_id],
                    logprobs=[sampled.logprob],
                    top_tokens=[_top_tokens(sampled.top_ids, sampled.top_logprobs)] if wants_top else None,
                    now_s=now_s,
                )
            )
            if request.children:
                self._fork_children(request)
            if request.status.finished:
                self._finish(request, request.status)
        return outputs

    def check(self) -> None:
        """Invariants of queue, rows and blocks; called when idle and by tests after each step."""
        self.cache.check(self.requests())
        self._rows.check(self._running)

    # ------------------------------------------------------------ planning

    def _wishes(self) -> dict[Request, int]:
        """Tokens each running request should get: one for decodes, and for prompts, in their order, what the budget allows.
        The next requests in the queue have a place in that order: a very long prompt does not keep short ones waiting.
        """
        wishes: dict[Request, int] = {}
        prompts: list[Request] = []
        for request in self._running:
            num_missing = request.num_uncomputed_tokens
            if num_missing == 1:
                wishes[request] = 1
            elif num_missing:
                prompts.append(request)
        if not prompts:
            return wishes
        waiting = (request for request in self._waiting if not self._under_way.awaited_by(request))
        prompts += islice(waiting, min(self._rows.num_free, _MAX_WAITING_CLAIMS))
        wishes |= self._budget(wishes).share(in_order(prompts, self._step))
        return {request: wishes[request] for request in self._running if request in wishes}

    def _budget(self, counts: dict[Request, int]) -> PromptBudget:
        """For prompts, in a step that computes `counts` already."""
        num_running = sum(1 for request in self._running if request.num_uncomputed_tokens > 1)
        return PromptBudget(
            self._cost,
            StepLoad.of(counts),
            num_prompts=num_running + min(len(self._waiting), self._rows.num_free),
            max_tokens=self._max_step_tokens,
            max_step_s=self._step_time_budget_s,
        )

    def _admit(
        self, budget: PromptBudget, counts: dict[Request, int], new_rows: list[NewRow], now_s: float
    ) -> None:
        """Start waiting requests in order while budget, rows and blocks last. The head of the queue blocks the rest:
        a big request is not overtaken for ever. Only who awaits a prefix lets others pass."""
        passed: list[Request] = []
        while self._waiting and self._rows.num_free and len(passed) < _MAX_PASSED:
            request = self._waiting[0]
            if self._under_way.awaited_by(request):
                passed.append(self._waiting.popleft())
                continue
            if not request.block_tables:
                self.cache.begin(request)
            num_tokens = budget.fitting(request.num_computed_tokens, request.num_uncomputed_tokens)
            if not num_tokens:
                self._put_back(request)
                break
            if not self._has_room(request) or self.cache.allocate(request, num_tokens) is None:
                self._put_back(request)
                if self._running or not self._reclaim_forks():
                    break
                continue
            self._waiting.popleft()
            self._start(request, now_s)
            self._under_way.add(request)
            budget.spend(request.num_computed_tokens, num_tokens)
            counts[request] = num_tokens
            new_rows.append(_new_row(request))
        self._waiting.extendleft(reversed(passed))

    def _has_room(self, request: Request) -> bool:
        """Admit only what can compute its whole prompt now, unless nothing else is running: starting a prompt just to
        preempt it wastes the work."""
        return not self._running or self.cache.make_room(request, self._max_step_tokens)

    def _put_back(self, request: Request) -> None:
        """Blocks of a prefix hit must not be held by a request that does not run; a fork keeps its parent's."""
        if not request.fork_blocks:
            self.cache.free(request)

    def _reclaim_forks(self) -> bool:
        """Take the blocks that waiting forks hold: they can compute their prompt themselves."""
        holders = [request for request in self._waiting if request.block_tables]
        for request in holders:
            self.cache.free(request)
        return bool(holders)

    def _start(self, request: Request, now_s: float) -> None:
        self._rows.give(request)
        request.status = RequestStatus.RUNNING
        if request.first_scheduled_s is None:
            request.first_scheduled_s = now_s
            # Children wait for their parent, not for room, and what they share is no hit.
            if request.index == 0:
                self.queue_s.observe(now_s - request.arrival_s)
                self.num_cached_tokens += request.num_cached_tokens
        self._running.append(request)

    def _give(
        self,
        request: Request,
        num_tokens: int,
        counts: dict[Request, int],
        new_blocks: dict[Request, list[list[int]]],
    ) -> None:
        """Plan `num_tokens` of `request`, with blocks taken if need be from the request that started last; when that is
        the request itself, it is preempted."""
        while request.status == RequestStatus.RUNNING:
            blocks = self.cache.allocate(request, num_tokens)
            if blocks is not None:
                counts[request], new_blocks[request] = num_tokens, blocks
                return
            if not self._reclaim_forks():
                victim = self._running[-1]
                counts.pop(victim, None)
                self._preempt(victim)

    def _preempt(self, request: Request) -> None:
        """Back to the head of the queue; everything it had computed is computed again, unless the prefix cache kept it."""
        self._running.remove(request)
        self._in_flight.forget(request)
        self._rows.release(request)
        self.cache.free(request)
        request.status = RequestStatus.WAITING
        request.prompt_logprobs.clear()
        request.prompt_top_tokens.clear()
        self._waiting.appendleft(request)
        self.num_preemptions += 1

    # ------------------------------------------------------------ ends and forks

    def _fork_children(self, request: Request) -> None:
        """The prompt has been computed (this was the first sample): let the children share it."""
        for child in request.children:
            if child.status == RequestStatus.WAITING_FOR_FORK:
                self._forking.remove(child)
                child.status = RequestStatus.WAITING
                if not child.params.prompt_logprobs:
                    self.cache.fork(request, child)
                self._waiting.appendleft(child)
        request.children = []

    def _finish(self, request: Request, status: RequestStatus) -> None:
        for child in request.children:
            if child.status == RequestStatus.WAITING_FOR_FORK:
                self._forking.remove(child)
                child.status = RequestStatus.WAITING
                self._waiting.append(child)
        request.children = []
        if request in self._running:
            self._running.remove(request)
            self._in_flight.forget(request)
            self._rows.release(request)
        elif request in self._waiting:
            self._waiting.remove(request)
        elif request in self._forking:
            self._forking.remove(request)
        self.cache.keep_for_session(request)
        self.cache.free(request)
        request.status = status

    def _fail_grammar(self, request: Request, reason: str, now_s: float) -> SequenceOutput:
        """The grammar of a running sequence gave up: only that sequence ends."""
        self._fork_children(request)
        self._finish(request, RequestStatus.ERROR)
        cause = GenerationFailed(f"the grammar is too complex for this text: {reason}")
        return request.output(token_ids=[], logprobs=[], top_tokens=None, now_s=now_s, error=to_wire(cause))


def _plan_row(request: Request, num_tokens: int, new_blocks: list[list[int]]) -> ScheduledRow:
    samples = request.num_uncomputed_tokens == num_tokens
    request.num_computed_tokens += num_tokens
    request.num_pending_tokens += samples
    return ScheduledRow(row=request.row, num_tokens=num_tokens, samples=samples, new_blocks=new_blocks)


def _take_prompt_scores(by_row: dict[int, Request], result: StepResult) -> None:
    for row, logprobs in result.prompt_logprobs.items():
        if row in by_row:
            by_row[row].prompt_logprobs.extend(logprobs)
    for row, tops in result.prompt_top_tokens.items():
        if row in by_row:
            by_row[row].prompt_top_tokens.extend(_top_tokens(ids, values) for ids, values in tops)


def _top_tokens(ids: list[int], logprobs: list[float]) -> list[TopToken]:
    return [TopToken(i, p) for i, p in zip(ids, logprobs, strict=True)]


def _new_row(request: Request) -> NewRow:
    return NewRow(
        row=request.row,
        token_ids=list(request.token_ids),
        num_prompt_tokens=request.num_prompt_tokens,
        num_computed_tokens=request.num_computed_tokens,
        block_tables=[list(table) for table in request.block_tables],
        params=request.params,
        seed=request.seed,
        adapter_slot=request.adapter_slot,
    )
