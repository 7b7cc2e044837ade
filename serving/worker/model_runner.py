"""Runs one plan on this rank: rows, forward pass, logits, sampling. Names no model and no attention backend.

Be paranoid about new lines here: what differs between models, formats or backends belongs to the layers.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from serving.batch import BlockCopy, SampledToken, ScheduledBatch, StepResult
from serving.contracts import AttentionMetadata, ForwardContext, KVLayerCache
from serving.distributed import ParallelContext, broadcast_from_rank0
from serving.models.registry import Model
from serving.platform import Device
from serving.sampling.sampler import Sampler, SamplingRow
from serving.sampling_params import SamplingParams
from serving.worker.input_batch import InputBatch, StepInputs

_LOGIT_ROWS = 256
"""Rows of logits made at once for prompt log-probabilities: bounds the memory of prompt_length x vocabulary."""

_EVERY_WAY = SamplingParams(
    temperature=0.9, top_k=50, top_p=0.9, typical_p=0.9, repetition_penalty=1.1, top_n_tokens=5
)
"""Parameters that use all of the sampler."""


class ModelRunner:
    def __init__(
        self, model: Model, *, device: Device, parallel: ParallelContext, block_size: int, max_num_seqs: int
    ) -> None:
        self._model = model
        self._device = device
        self._parallel = parallel
        self._block_size = block_size
        self._max_num_seqs = max_num_seqs
        self._groups = [group.name for group in model.kv_groups]
        self._sampler = Sampler()
        self._caches: list[KVLayerCache] = []
        self._inputs = InputBatch(
            max_num_seqs, self._groups, block_size=block_size, device=device.torch_device
        )

    def initialize_cache(self, num_blocks: list[int]) -> None:
        """Allocate every layer's cache, zeroed: masked positions are multiplied by 0, which must not meet a NaN."""
        specs = {
            group.name: (group, count) for group, count in zip(self._model.kv_groups, num_blocks, strict=True)
        }
        for name in self._model.layer_groups:
            group, count = specs[name]
            shape = (count, self._block_size, group.num_kv_heads, group.head_dim)
            key, value = (self._device.zeros(shape, group.dtype) for _ in range(2))
            self._caches.append(KVLayerCache(key=key, value=value))

    @torch.inference_mode()
    def warm_up(self, num_tokens: int) -> float:
        """Run the largest step without a cache: `num_tokens` of one row, then logits and samples of as many rows as can
        sample at once. Returns its seconds; the device's peak memory is the caller's to read."""
        device = self._device.torch_device
        self._device.synchronize()
        started_s = time.perf_counter()
        positions = torch.arange(num_tokens, device=device)
        metadata = AttentionMetadata(
            query_start=torch.tensor([0, num_tokens], dtype=torch.int32, device=device),
            seq_lens=torch.tensor([num_tokens], dtype=torch.int32, device=device),
            block_tables=torch.zeros((1, 1), dtype=torch.int32, device=device),
            slot_mapping=torch.zeros(num_tokens, dtype=torch.int64, device=device),
            query_lens_list=[num_tokens],
            seq_lens_list=[num_tokens],
            block_size=self._block_size,
        )
        context = ForwardContext(attention={name: metadata for name in self._groups}, caches=None)
        hidden = self._model.forward(torch.zeros_like(positions), positions, context)
        logits = self._model.compute_logits(hidden[: min(num_tokens, self._max_num_seqs)])
        if logits is not None and self._device.peak_bytes() > 0:
            # Where memory is measured, the peak has to include every filter on every row.
            rows = [
                SamplingRow(row, _EVERY_WAY, seed=0, token_ids=[0], num_prompt_tokens=1)
                for row in range(len(logits))
            ]
            self._sampler.sample(logits, rows)
        self._device.synchronize()
        return time.perf_counter() - started_s

    @torch.inference_mode()
    def execute(self, batch: ScheduledBatch) -> StepResult | None:
        """One step; None on ranks > 0."""
        started_s = time.perf_counter()
        self._inputs.apply(batch)
        for copy in batch.block_copies:
            self._copy_block(copy)
        inputs = self._inputs.pack(batch)
        context = ForwardContext(attention=inputs.attention, caches=self._caches)
        hidden = self._model.forward(inputs.token_ids, inputs.positions, context)
        prompt_logprobs = self._prompt_logprobs(hidden, inputs)
        sampled = self._sample(hidden, inputs)
        if self._parallel.rank > 0:
            return None
        return StepResult(
            step=batch.step,
            sampled=sampled,
            prompt_logprobs=prompt_logprobs,
            forward_s=time.perf_counter() - started_s,
        )

    def _sample(self, hidden: Tensor, inputs: StepInputs) -> list[SampledToken]:
        """Rank 0 chooses; every rank learns the ids and appends them to its rows."""
        if not inputs.sampling:
            return []
        logits = self._model.compute_logits(hidden[inputs.last_tokens])
        sampled: list[SampledToken] = []
        if logits is None:
            ids = torch.empty(len(inputs.sampling), dtype=torch.int64, device=self._device.torch_device)
        else:
            sampled = self._sampler.sample(logits, [self._sampling_row(row) for row in inputs.sampling])
            ids = torch.tensor([token.token_id for token in sampled], device=self._device.torch_device)
        if self._parallel.size > 1:
            ids = broadcast_from_rank0(ids, self._parallel)
        self._inputs.append(inputs.sampling, ids.tolist())
        return sampled

    def _sampling_row(self, row: int) -> SamplingRow:
        state = self._inputs[row]
        return SamplingRow(
            row=row,
            params=state.params,
            seed=state.seed,
            token_ids=state.token_ids,
            num_prompt_tokens=state.num_prompt_tokens,
        )

    def _prompt_logprobs(self, hidden: Tensor, inputs: StepInputs) -> dict[int, list[float]]:
        """For rows that ask: log-probability of the prompt token after each prompt token of this step."""
        results: dict[int, list[float]] = {}
        start = 0
        for scheduled in inputs.rows:
            row = self._inputs[scheduled.row]
            first = row.num_computed_tokens - scheduled.num_tokens
            count = min(scheduled.num_tokens, row.num_prompt_tokens - 1 - first)
            if row.params.prompt_logprobs and count > 0:
                targets = row.token_ids[first + 1 : first + 1 + count]
                results[scheduled.row] = self._logprobs_of(hidden[start : start + count], targets)
            start += scheduled.num_tokens
        return results

    def _logprobs_of(self, hidden: Tensor, targets: list[int]) -> list[float]:
        values: list[float] = []
        for first in range(0, len(targets), _LOGIT_ROWS):
            logits = self._model.compute_logits(hidden[first : first + _LOGIT_ROWS])
            if logits is not None:
                chosen = torch.tensor(targets[first : first + _LOGIT_ROWS], device=logits.device).unsqueeze(
                    -1
                )
                values += torch.log_softmax(logits, dim=-1).gather(-1, chosen).squeeze(-1).tolist()
        return values

    def _copy_block(self, copy: BlockCopy) -> None:
        for name, cache in zip(self._model.layer_groups, self._caches, strict=True):
            if name == self._groups[copy.group]:
                cache.key[copy.target] = cache.key[copy.source]
                cache.value[copy.target] = cache.value[copy.source]
