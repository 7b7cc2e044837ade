"""One rank: device, ranks' group, model and runner, behind the few verbs an executor uses."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch

from serving import logs
from serving.batch import ScheduledBatch, StepResult
from serving.config import EngineConfig
from serving.contracts import KVGroupSpec
from serving.distributed import ParallelContext, init_parallel
from serving.grammar.store import GrammarStore
from serving.kernels.cpu.native.placement import place_threads
from serving.kernels.dispatch import select_kernels
from serving.kernels.small_sums import choose_small_sums
from serving.models.hf_config import read_decoder_config
from serving.models.registry import Model, load_model
from serving.platform import get_device
from serving.worker.choose_graphs import choose_graphs
from serving.worker.device_sampling import compiling_ahead
from serving.worker.launched_step import LaunchedStep
from serving.worker.model_runner import ModelRunner

_CAPTURE_LIMIT_S = 5.0
_KV_DTYPES = {"fp8_e4m3": torch.float8_e4m3fn}

logger = logging.getLogger(__name__)


class Worker:
    """`rendezvous` is the file in a private folder where the ranks meet; unused with one rank."""

    def __init__(self, config: EngineConfig, *, rank: int, rendezvous: Path) -> None:
        self._config = config
        if config.device == "cpu":
            torch.set_num_threads(config.num_threads)
        self._device = get_device(config.device, rank)
        self._parallel = self._with_small_sums(
            init_parallel(rank, config.num_ranks, self._device, rendezvous)
        )
        self._model: Model | None = None
        self._runner: ModelRunner | None = None

    def _with_small_sums(self, parallel: ParallelContext) -> ParallelContext:
        """On GPUs small sums may leave the process group; `deterministic` takes all sums in one way, whatever their size."""
        config, device = self._config, self._device
        if parallel.group is None or device.is_host or config.deterministic or not config.one_shot_all_reduce:
            return parallel
        chosen = choose_small_sums(device.peer_memory, parallel, device.torch_device)
        return dataclasses.replace(parallel, small_sums=chosen)

    def load(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Read this rank's shard. `progress(done, total)` counts bytes. Raises `ModelError`."""
        config = self._config
        if config.device == "cpu":
            cores = place_threads(config.num_threads, rank=self._parallel.rank, num_ranks=config.num_ranks)
            if cores:
                held, why = ",".join(map(str, cores)), "one each, as they fill the machine"
                logs.event(logger, logging.INFO, "compute threads", cores=held, reason=why)
        kernels = select_kernels(self._device.torch_device, deterministic=config.deterministic)
        vocab_size = read_decoder_config(config.model_dir).vocab_size
        make = kernels.device_sampler if self._parallel.rank == 0 else None
        with compiling_ahead(make, vocab_size=vocab_size, device=self._device):
            self._model = load_model(
                config.model_dir,
                dtype=getattr(torch, config.dtype),
                device=self._device,
                parallel=self._parallel,
                deterministic=config.deterministic,
                block_size=config.block_size,
                kv_cache_dtype=_KV_DTYPES.get(config.kv_cache_dtype),
                max_positions=config.max_total_tokens,
                progress=progress,
            )
        self._runner = ModelRunner(
            self._model,
            device=self._device,
            parallel=self._parallel,
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            max_blocks=-(-config.max_total_tokens // config.block_size),
            kernels=kernels,
            eos_token_ids=self.eos_token_ids,
            graphs=choose_graphs(config, self._device),
            overlapped=config.async_scheduling,
        )

    @property
    def kv_groups(self) -> list[KVGroupSpec]:
        return self._loaded.kv_groups

    @property
    def vocab_size(self) -> int:
        return self._loaded.vocab_size

    @property
    def eos_token_ids(self) -> list[int]:
        return list(read_decoder_config(self._config.model_dir).eos_token_ids)

    def warm_up(self, num_tokens: int) -> float:
        """Seconds of the largest step. Afterwards `free_bytes` counts its peak as used."""
        return self._ready.warm_up(num_tokens)

    def free_bytes(self) -> int:
        """What the KV cache can take: the share of the device we may use, minus what is used, minus the peak of the
        largest step; on a CPU, this rank's share of the free memory."""
        device, config = self._device, self._config
        if config.device == "cpu":
            return device.free_bytes() // config.num_ranks
        # The allocator still holds the peak of the warm-up, so the device counts it as used.
        used = device.total_bytes() - device.free_bytes()
        used += self._ready.graph_bytes
        return max(0, int(device.total_bytes() * config.memory_fraction) - used)

    def initialize_cache(self, num_blocks: list[int]) -> None:
        """Where a capture takes long, those of decode steps are made now rather than in the first requests."""
        self._ready.initialize_cache(num_blocks)
        if self._device.is_host:
            return
        started_s = time.perf_counter()
        self._ready.warm_up_cache()
        logs.event(
            logger, logging.INFO, "cached step warmed up", seconds=round(time.perf_counter() - started_s, 3)
        )
        started_s = time.perf_counter()
        if count := self._ready.capture_graphs(_CAPTURE_LIMIT_S):
            seconds = round(time.perf_counter() - started_s, 3)
            logs.event(logger, logging.INFO, "decode steps captured", sizes=count, seconds=seconds)

    def use_grammars(self, grammars: GrammarStore) -> None:
        """Rank 0: where the compiled grammars of its requests are found."""
        self._ready.use_grammars(grammars)

    def launch(self, batch: ScheduledBatch) -> LaunchedStep:
        return self._ready.launch(batch)

    def collect(self, step: LaunchedStep) -> StepResult | None:
        """The result of a launched step; None on ranks > 0."""
        return self._ready.collect(step)

    def close(self) -> None:
        """Let go of model and cache, so that the device's memory can be used again."""
        if self._runner is not None:
            self._runner.close()
        self._model = self._runner = None
        self._device.empty_cache()

    @property
    def _loaded(self) -> Model:
        if self._model is None:
            raise RuntimeError("the worker has not loaded a model")
        return self._model

    @property
    def _ready(self) -> ModelRunner:
        if self._runner is None:
            raise RuntimeError("the worker has not loaded a model")
        return self._runner
