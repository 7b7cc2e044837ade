"""Runs one plan on this rank: rows, forward pass, logits, sampling. Names no model and no attention backend.

A step is launched and then collected. On a device of its own the host may launch the next step in between: what was sampled
stays on the device, where that step finds it, and the rows hold `UNKNOWN_TOKEN` until they are collected.

Be paranoid about new lines here: what differs between models, formats or backends belongs to the layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from serving.batch import BlockCopy, ScheduledBatch, StepResult
from serving.contracts import ForwardContext, GraphBackend, KVLayerCache
from serving.distributed import ParallelContext, broadcast_from_rank0
from serving.grammar.row_matchers import RowMasks, RowMatchers
from serving.grammar.store import GrammarStore
from serving.kernels.dispatch import Kernels
from serving.models.registry import Model
from serving.platform import Device
from serving.sampling.sampler import Sampler, SamplingRow
from serving.sampling.token_mask import TokenMasks
from serving.worker.decode_graphs import DecodeGraphs
from serving.worker.decode_inputs import PackedTokens
from serving.worker.device_sampling import DeviceSampling
from serving.worker.input_batch import UNKNOWN_TOKEN, InputBatch, StepInputs
from serving.worker.launched_step import LaunchedStep
from serving.worker.prompt_scores import PromptScores
from serving.worker.step_masks import PlacedMasks
from serving.worker.warm_up_steps import cached_step, largest_step, rows_in_every_way


class ModelRunner:
    def __init__(
        self,
        model: Model,
        *,
        device: Device,
        parallel: ParallelContext,
        block_size: int,
        max_num_seqs: int,
        max_blocks: int,
        kernels: Kernels,
        eos_token_ids: Sequence[int] = (),
        graphs: GraphBackend | None = None,
        overlapped: bool = False,
    ) -> None:
        """`max_blocks` per row and KV group. With `overlapped`, a step may be launched before the last one was collected."""
        self._model = model
        self._device = device
        self._parallel = parallel
        self._block_size = block_size
        self._max_num_seqs = max_num_seqs
        self._groups = [group.name for group in model.kv_groups]
        self._sampler = Sampler.of(kernels, eos_token_ids)
        self._on_device: DeviceSampling | None = None
        if kernels.device_sampler is not None and parallel.rank == 0:
            sampler = kernels.device_sampler(max_num_seqs, model.vocab_size, device.torch_device)
            self._on_device = DeviceSampling(sampler, device, eos_token_ids)
        self._grammars: GrammarStore | None = None
        self._matchers = RowMatchers(model.vocab_size, beside=device.torch_device.type != "cpu")
        self._placed = PlacedMasks()
        self._caches: list[KVLayerCache] = []
        self._inputs = InputBatch(
            max_num_seqs,
            self._groups,
            block_size=block_size,
            max_blocks=max_blocks,
            device=device,
            packer=kernels.decode_packer() if kernels.decode_packer and device.is_host else None,
        )
        self._prompt_scores = PromptScores(model, self._inputs, self._sampler)
        self._graph_backend = graphs
        self._graphs: DecodeGraphs | None = None
        self.graph_bytes = 0
        """What the captures will need beside the cache, measured in the warm-up."""
        self._reads_late = overlapped and not device.is_host
        self._last_ids = device.mirror(np.zeros(max_num_seqs, dtype=np.int64))
        self._first_token = torch.zeros(1, dtype=torch.int64, device=device.torch_device)
        self._unread: LaunchedStep | None = None
        self._collected_s = 0.0

    def initialize_cache(self, num_blocks: list[int]) -> None:
        """Allocate every layer's cache, zeroed: masked positions are multiplied by 0, which must not meet a NaN."""
        specs = {
            group.name: (group, count) for group, count in zip(self._model.kv_groups, num_blocks, strict=True)
        }
        for name in self._model.layer_groups:
            group, count = specs[name]
            shape = (count, self._block_size, group.num_kv_heads, group.head_dim)
            key, value = (self._device.growing_zeros(shape, group.dtype) for _ in range(2))
            self._caches.append(KVLayerCache(key=key, value=value))
        if self._graph_backend is not None:
            self._graphs = DecodeGraphs(self._graph_backend, self._inputs.decode, self._decode)

    @torch.inference_mode()
    def capture_graphs(self, limit_s: float) -> int:
        """Capture steps of decodes ahead of need, on all ranks alike. Returns how many there are."""
        if self._graphs is None:
            return 0
        return self._graphs.capture_all(limit_s=limit_s, agree=self._as_rank_0)

    def _as_rank_0(self, choice: bool) -> bool:
        flag = torch.tensor([int(choice)], device=self._device.torch_device)
        return bool(broadcast_from_rank0(flag, self._parallel).item())

    def use_grammars(self, grammars: GrammarStore) -> None:
        """Rank 0 gets the compiled grammars of the requests that it will run."""
        self._grammars = grammars

    def close(self) -> None:
        """Lets go of captures and cache: captures hold the runner, so nothing else would before Python collects garbage."""
        self._matchers.close()
        self._graphs = self._unread = None
        self._caches.clear()

    @torch.inference_mode()
    def warm_up(self, num_tokens: int) -> float:
        """Run the largest step without a cache: `num_tokens` of one row, then logits and samples of as many rows as can
        sample at once. Returns its seconds up to the logits; the caller may read the device's peak and `graph_bytes`."""
        if not self._device.is_host:
            # Compiling kernels is no part of a step's time.
            self._run_without_cache(num_tokens, min(num_tokens, self._max_num_seqs))
        self._device.synchronize()
        started_s = time.perf_counter()
        logits = self._run_without_cache(num_tokens, min(num_tokens, self._max_num_seqs))
        self._device.synchronize()
        seconds = time.perf_counter() - started_s
        if logits is not None and self._device.peak_bytes() > 0:
            # Where memory is measured, the peak has to include every filter on every row; few requests spend their time.
            self._sampler.sample(logits, rows_in_every_way(len(logits)))
        if logits is not None and self._on_device is not None:
            self._on_device.warm_up(logits)
        if self._graph_backend is not None and self._device.peak_bytes() > 0:
            self._device.reset_peak()
            held = self._device.peak_bytes()
            self._run_without_cache(self._max_num_seqs, self._max_num_seqs)
            # Once for the captures, which share it, and once for the run before the first one, on the captures' stream.
            self.graph_bytes = 2 * (self._device.peak_bytes() - held)
        return seconds

    def _run_without_cache(self, num_tokens: int, num_logits: int) -> Tensor | None:
        device = self._device.torch_device
        packed = largest_step(num_tokens, self._groups, block_size=self._block_size, device=device)
        context = ForwardContext(attention=packed.attention, caches=None)
        hidden = self._model.forward(packed.token_ids, packed.positions, context)
        return self._model.compute_logits(hidden[:num_logits])

    @torch.inference_mode()
    def warm_up_cache(self) -> None:
        """Run a step that reads the cache, so that what it needs is compiled before the first request. On all ranks."""
        device = self._device.torch_device
        self._forward(cached_step(self._groups, block_size=self._block_size, device=device))
        self._device.synchronize()

    @torch.inference_mode()
    def launch(self, batch: ScheduledBatch) -> LaunchedStep:
        """Everything up to the sampled ids, without waiting for them where they can be read late."""
        step = LaunchedStep(StepResult(step=batch.step, sampled=[]), started_s=time.perf_counter())
        if self._unread is not None and self._inputs.reads_tokens(batch):
            self._read(self._unread)
        self._inputs.apply(batch)
        for copy in batch.block_copies:
            self._copy_block(copy)
        inputs = self._inputs.pack(batch)
        masks = self._start_masks(batch, inputs)
        output = self._compute(inputs, step.result)
        if inputs.sampling:
            self._sample(output, inputs, masks, step)
        return step

    def collect(self, step: LaunchedStep) -> StepResult | None:
        """What the step gave; None on ranks > 0. Steps are collected in the order of their launch."""
        if step.ids is not None:
            self._read(step)
        if self._parallel.rank > 0:
            return None
        step.result.forward_s = time.perf_counter() - max(step.started_s, self._collected_s)
        self._collected_s = time.perf_counter()
        return step.result

    def _compute(self, inputs: StepInputs, result: StepResult) -> Tensor:
        """Logits of the sampling rows on rank 0."""
        if inputs.packed is None:
            self._inputs.decode.upload()
            num_rows = len(inputs.rows)
            captured = None if self._graphs is None else self._graphs.run(num_rows)
            return self._decode(self._inputs.decode_tokens(num_rows)) if captured is None else captured
        if self._prompt_scores.are_wanted(inputs):
            hidden = self._forward(inputs.packed)
            self._prompt_scores.score(hidden, inputs, result)
            hidden = hidden[inputs.last_tokens]
        else:
            # Where only a part of a prompt is computed nobody wants anything, and kernels want a row.
            hidden = self._forward(
                inputs.packed, inputs.last_tokens if inputs.sampling else self._first_token
            )
        if not inputs.sampling:
            return hidden
        logits = self._model.compute_logits(hidden)
        return hidden if logits is None else logits

    def _decode(self, packed: PackedTokens) -> Tensor:
        """A step in which every token samples: the logits of all, on rank 0."""
        hidden = self._forward(packed)
        logits = self._model.compute_logits(hidden)
        return hidden if logits is None else logits

    def _forward(self, packed: PackedTokens, wanted: Tensor | None = None) -> Tensor:
        packed.take_sampled(self._last_ids)
        context = ForwardContext(attention=packed.attention, caches=self._caches, wanted=wanted)
        return self._model.forward(packed.token_ids, packed.positions, context)

    def _start_masks(self, batch: ScheduledBatch, inputs: StepInputs) -> Callable[[], RowMasks] | None:
        """Bring the matchers to the rows of this step; their masks are computed while the model runs."""
        if self._grammars is None:
            return None
        for row in batch.released_rows:
            self._matchers.release(row)
        for new in batch.new_rows:
            if new.params.grammar is not None:
                compiled = self._grammars.find(new.params.grammar)
                if compiled is None:
                    raise RuntimeError(f"row {new.row} has a grammar that nobody compiled")
                self._matchers.begin(new.row, compiled, new.token_ids[new.num_prompt_tokens :])
        return self._matchers.start(inputs.sampling)

    def _sample(
        self, logits: Tensor, inputs: StepInputs, masks: Callable[[], RowMasks] | None, step: LaunchedStep
    ) -> None:
        """Rank 0 chooses; every rank learns the ids and appends them to its rows."""
        if self._device.is_host and self._parallel.size == 1:
            step.result.sampled = self._sampler.sample(logits, *self._choices(inputs, masks, step))
            self._append(step, inputs.sampling, [token.token_id for token in step.result.sampled])
            return
        if self._parallel.rank > 0:
            ids = torch.empty(len(inputs.sampling), dtype=torch.int64, device=self._device.torch_device)
        else:
            ids = self._choose(logits, inputs, masks, step)
        if self._parallel.size > 1:
            ids = broadcast_from_rank0(ids, self._parallel)
        step.ids, step.sampling = ids, inputs.sampling
        if not self._reads_late:
            self._read(step)
            return
        index = inputs.sampling_index
        if index is None:
            index = self._inputs.decode.row_numbers(len(inputs.sampling))
        self._last_ids.index_copy_(0, index, ids)
        self._inputs.append(inputs.sampling, [UNKNOWN_TOKEN] * len(inputs.sampling))
        step.rows = [self._inputs[row] for row in inputs.sampling]
        step.ends = [len(row.token_ids) for row in step.rows]
        self._unread = step

    def _choose(
        self, logits: Tensor, inputs: StepInputs, masks: Callable[[], RowMasks] | None, step: LaunchedStep
    ) -> Tensor:
        """The ids; where the device chooses for itself, nobody waits for them here."""
        rows, permitted = self._choices(inputs, masks, step)
        if self._on_device is not None:
            step.chosen = self._on_device.launch(logits, rows, permitted)
            if step.chosen is not None:
                return step.chosen.ids
        step.result.sampled = self._sampler.sample(logits, rows, permitted)
        return torch.tensor([token.token_id for token in step.result.sampled], device=logits.device)

    def _choices(
        self, inputs: StepInputs, masks: Callable[[], RowMasks] | None, step: LaunchedStep
    ) -> tuple[list[SamplingRow], TokenMasks | None]:
        """The rows that sample and what they may choose from."""
        rows = [self._inputs[row].sampling for row in inputs.sampling]
        if masks is None:
            return rows, None
        computed = masks()
        step.result.failed_rows = computed.failures
        return rows, self._placed.among(inputs.sampling, computed)

    @torch.inference_mode()
    def _read(self, step: LaunchedStep) -> None:
        """The ids of a step, which the device may still be computing."""
        if step.ids is None:
            return
        if step.chosen is None:
            sampled_ids = step.ids.tolist()
        else:
            step.result.sampled = step.chosen.read()
            sampled_ids = [token.token_id for token in step.result.sampled]
        step.ids = step.chosen = None
        if not self._reads_late:
            self._append(step, step.sampling, sampled_ids)
            return
        late = zip(step.sampling, step.rows, step.ends, sampled_ids, strict=True)
        alive = [(n, token_id) for n, row, end, token_id in late if self._inputs.learn(n, row, end, token_id)]
        self._note(step, [number for number, _ in alive], [token_id for _, token_id in alive])

    def _append(self, step: LaunchedStep, rows: list[int], token_ids: list[int]) -> None:
        self._inputs.append(rows, token_ids)
        self._note(step, rows, token_ids)

    def _note(self, step: LaunchedStep, rows: list[int], token_ids: list[int]) -> None:
        """What the rows have got goes into their grammars; a row that failed gets nothing."""
        self._matchers.note(rows, token_ids)
        failed = step.result.failed_rows
        if failed:
            step.result.sampled = [token for token in step.result.sampled if token.row not in failed]

    def _copy_block(self, copy: BlockCopy) -> None:
        for name, cache in zip(self._model.layer_groups, self._caches, strict=True):
            if name == self._groups[copy.group]:
                cache.key[copy.target] = cache.key[copy.source]
                cache.value[copy.target] = cache.value[copy.source]
