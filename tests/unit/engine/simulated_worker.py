"""A worker without tensors: it keeps, per KV slot, the token history that was written there, checks that every query
sees exactly its own history, and "samples" a hash of that history. Wrong block, row or copy arithmetic cannot hide."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from serving.batch import NewRow, SampledToken, ScheduledBatch, StepResult
from serving.config import KVGroupConfig
from serving.engine.kv_cache import KVCacheManager
from serving.engine.request import Request
from serving.engine.scheduler import Scheduler
from serving.engine.step_loops import OneByOne, Overlapped, Steps
from serving.engine.step_metrics import StepMetrics
from serving.messages import SequenceOutput
from serving.sampling_params import SamplingParams

VOCAB = 50
EOS = 7


def next_token(history: Sequence[int], seed: int) -> int:
    digest = hashlib.sha256(repr((list(history), seed)).encode()).digest()
    return int.from_bytes(digest[:4], "little") % VOCAB


def reference(prompt: list[int], *, max_output: int, seed: int) -> list[int]:
    history = list(prompt)
    while len(history) - len(prompt) < max_output:
        history.append(next_token(history, seed))
        if history[-1] == EOS:
            break
    return history[len(prompt) :]


@dataclass
class _Row:
    token_ids: list[int]
    num_computed: int
    tables: list[list[int]]
    seed: int
    num_prompt: int


@dataclass
class SimulatedWorker:
    groups: list[KVGroupConfig]
    block_size: int
    memory: list[dict[tuple[int, int], tuple[int, ...]]] = field(default_factory=list)
    rows: dict[int, _Row] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.memory = [{} for _ in self.groups]

    def execute(self, batch: ScheduledBatch) -> StepResult:
        for row in batch.released_rows:
            del self.rows[row]
        for new in batch.new_rows:
            self._begin(new)
        for copy in batch.block_copies:
            for offset in range(self.block_size):
                content = self.memory[copy.group].get((copy.source, offset))
                if content is not None:
                    self.memory[copy.group][copy.target, offset] = content
        sampled = []
        for scheduled in batch.rows:
            row = self.rows[scheduled.row]
            for table, blocks in zip(row.tables, scheduled.new_blocks, strict=False):
                table.extend(blocks)
            for _ in range(scheduled.num_tokens):
                self._compute(row)
            if scheduled.samples:
                assert row.num_computed == len(row.token_ids)
                row.token_ids.append(next_token(row.token_ids, row.seed))
                sampled.append(SampledToken(row=scheduled.row, token_id=row.token_ids[-1], logprob=-1.0))
        return StepResult(step=batch.step, sampled=sampled)

    def _begin(self, new: NewRow) -> None:
        assert new.row not in self.rows, "a row was given out twice"
        self.rows[new.row] = _Row(
            token_ids=list(new.token_ids),
            num_computed=new.num_computed_tokens,
            tables=[list(table) for table in new.block_tables],
            seed=new.seed,
            num_prompt=new.num_prompt_tokens,
        )

    def _compute(self, row: _Row) -> None:
        position = row.num_computed
        for group, table, memory in zip(self.groups, row.tables, self.memory, strict=True):
            block, offset = table[position // self.block_size], position % self.block_size
            assert block != 0, "wrote to the padding block"
            memory[block, offset] = tuple(row.token_ids[: position + 1])
            first = 0 if group.window is None else max(0, position - group.window + 1)
            for seen in range(first, position + 1):
                slot = (table[seen // self.block_size], seen % self.block_size)
                assert memory.get(slot) == tuple(row.token_ids[: seen + 1]), (
                    f"position {position} sees foreign KV"
                )
        row.num_computed += 1


class Simulation:
    """Scheduler + simulated worker, stepped by the test."""

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int = 4,
        windows: Sequence[int | None] = (None,),
        max_step_tokens: int = 16,
        max_num_seqs: int = 8,
        prefix_caching: bool = True,
        session_kv_fraction: float = 0.0,
        overlapped: bool = False,
    ) -> None:
        groups = [KVGroupConfig(name=f"group{i}", window=window) for i, window in enumerate(windows)]
        self.cache = KVCacheManager(
            groups,
            [num_blocks] * len(groups),
            block_size=block_size,
            prefix_caching=prefix_caching,
            session_kv_fraction=session_kv_fraction,
        )
        self.pins = self.cache.pins
        self.scheduler = Scheduler(
            self.cache, max_step_tokens=max_step_tokens, max_num_seqs=max_num_seqs, step_time_budget_s=1.0
        )
        self.worker = SimulatedWorker(groups, block_size)
        self.outputs: dict[tuple[str, int], list[int]] = {}
        self.terminal: dict[tuple[str, int], str] = {}
        self.batches: list[ScheduledBatch] = []
        steps = Steps(self.scheduler, self, metrics=StepMetrics(), account=len)  # type: ignore[arg-type]
        self._loop = Overlapped(steps) if overlapped else OneByOne(steps)

    def launch(self, batch: ScheduledBatch) -> StepResult:
        """The executor's verbs: what the worker writes now, the scheduler hears of when it collects."""
        self.batches.append(batch)
        return self.worker.execute(batch)

    def collect(self, step: StepResult) -> StepResult:
        return step

    def add(
        self,
        name: str,
        prompt: list[int],
        *,
        max_output: int = 8,
        seed: int = 0,
        n: int = 1,
        root: bytes = b"root",
        session_id: str = "",
    ) -> list[Request]:
        sequences = [
            Request(
                request_id=name,
                index=index,
                params=SamplingParams(n=n),
                seed=seed + index,
                token_ids=list(prompt),
                num_prompt_tokens=len(prompt),
                max_output_tokens=max_output,
                eos_token_ids=frozenset({EOS}),
                cache_root=root,
                arrival_s=0.0,
                session_id=session_id,
            )
            for index in range(n)
        ]
        for child in sequences[1:]:
            child.status = type(child.status).WAITING_FOR_FORK
        sequences[0].children = sequences[1:]
        self.scheduler.add(sequences[0])
        return sequences

    def step(self) -> bool:
        """False when nothing was planned and nothing is left to hear of."""
        num_planned, was_running = len(self.batches), self._loop.is_running
        for output in self._loop.step():
            self._take(output)
        self.scheduler.check()
        return len(self.batches) > num_planned or was_running

    def run(self, limit: int = 5000) -> None:
        for _ in range(limit):
            if not self.step():
                return
        raise AssertionError("the scheduler did not come to an end")

    def _take(self, output: SequenceOutput) -> None:
        key = (output.request_id, output.index)
        assert key not in self.terminal, "output after the terminal one"
        self.outputs.setdefault(key, []).extend(output.token_ids)
        if output.finish_reason is not None:
            self.terminal[key] = output.finish_reason
