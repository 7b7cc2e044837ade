"""Tokens that are chosen on the device: what rows ask for is sent there, what was chosen is read when somebody waits for it.
Knows rows and their parameters, neither the model nor plans."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from serving import logs
from serving.batch import SampledToken
from serving.contracts import SamplerSteps, TokenSampler
from serving.platform import Device
from serving.sampling.device_params import DeviceParams, covers
from serving.sampling.sampler import SamplingRow
from serving.sampling.token_mask import TokenMasks
from serving.sampling_params import SamplingParams
from serving.worker.step_masks import StepMasks

_WARM_UPS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.0, top_n_tokens=5),
    SamplingParams(temperature=0.9, top_k=50, top_p=0.9, min_p=0.01),
    SamplingParams(temperature=0.9, top_k=50, top_p=0.9, min_p=0.01, top_n_tokens=5, raw_logprobs=True),
)
"""Between them every kernel, with and without masks."""


logger = logging.getLogger(__name__)


@dataclass(slots=True, frozen=True)
class ChosenTokens:
    """`ids` [R] int64 are on the device, until the next step is launched."""

    ids: Tensor
    rows: list[int]
    arrive: Callable[[], list[npt.NDArray[Any]]]

    def read(self) -> list[SampledToken]:
        """Once; waits for the device."""
        ids, logprobs, *tops = (array.tolist() for array in self.arrive())
        tokens = zip(self.rows, ids, logprobs, strict=True)
        if not tops:
            return [SampledToken(row=row, token_id=i, logprob=logprob) for row, i, logprob in tokens]
        return [
            SampledToken(
                row=row,
                token_id=i,
                logprob=logprob,
                top_ids=top_ids[:count],
                top_logprobs=top_logprobs[:count],
            )
            for (row, i, logprob), count, top_ids, top_logprobs in zip(tokens, *tops, strict=True)
        ]


class DeviceSampling:
    """`Sampler.sample` for rows that `covers` says it is for. Rows that stay from step to step cost next to nothing."""

    def __init__(self, sampler: TokenSampler, device: Device, eos_token_ids: Sequence[int] = ()) -> None:
        self._sampler = sampler
        self._device = device
        self._params = DeviceParams(sampler.max_rows)
        self._masks = StepMasks(eos_token_ids, vocab_size=sampler.vocab_size)
        self._known: dict[int, SamplingRow] = {}
        self._rows: list[SamplingRow] = []
        self._index = np.zeros(0, dtype=np.int64)
        self._steps = SamplerSteps()
        self._banning: list[int] = []
        self._covered = True

    def launch(
        self, logits: Tensor, rows: list[SamplingRow], masks: TokenMasks | None = None
    ) -> ChosenTokens | None:
        """logits [R, V] float32, left as they are. None: nothing was done, a row asks for what `Sampler` alone does."""
        if rows != self._rows:
            self._use(rows)
        if not self._covered:
            return None
        positions = [len(row.token_ids) - row.num_prompt_tokens for row in rows]
        bits, numbers = self._masks.of(rows, self._banning, masks)
        lines = self._params.lines(self._index, positions, numbers)
        staged = self._device.stage([lines, bits] if numbers else [lines])
        chosen = self._sampler.launch(logits, staged[0], self._steps, bits=staged[1] if numbers else None)
        wanted = [chosen.ids, chosen.logprobs]
        if chosen.num_top is not None and chosen.top_ids is not None and chosen.top_logprobs is not None:
            wanted += [chosen.num_top, chosen.top_ids, chosen.top_logprobs]
        return ChosenTokens(chosen.ids, [row.row for row in rows], self._device.fetch(wanted))

    def warm_up(self, logits: Tensor) -> None:
        """Compile what serving needs: as many rows as there are logits, of every kind."""
        for params in _WARM_UPS:
            rows = [
                SamplingRow(row, params, seed=0, token_ids=[0], num_prompt_tokens=1)
                for row in range(len(logits))
            ]
            chosen = self.launch(logits, rows)
            if chosen is None:
                raise RuntimeError(f"the device's sampler does not cover {params}")
            chosen.read()

    def _use(self, rows: list[SamplingRow]) -> None:
        self._rows = list(rows)
        self._covered = all(covers(row.params) for row in rows)
        if not self._covered:
            return
        for row in rows:
            if self._known.get(row.row) is not row:
                self._known[row.row] = row
                self._params.write(row.row, row.params, row.seed)
        self._index = np.array([row.row for row in rows], dtype=np.int64)
        self._banning = [line for line, row in enumerate(rows) if row.bans]
        wanted = [row.params for row in rows]
        self._steps = SamplerSteps(
            draws=any(not params.greedy for params in wanted),
            top_k=any(not params.greedy and params.top_k > 0 for params in wanted),
            top_p=any(not params.greedy and params.top_p < 1.0 for params in wanted),
            raw=any(row.params.raw_logprobs and _changes(row) for row in rows),
            likeliest=any(params.top_n_tokens > 0 for params in wanted),
        )


def _changes(row: SamplingRow) -> bool:
    """Is it chosen from another distribution than the model's?"""
    return not row.params.greedy or row.params.grammar is not None or row.bans


@contextlib.contextmanager
def compiling_ahead(
    make: Callable[[int, int, torch.device], TokenSampler] | None, *, vocab_size: int, device: Device
) -> Iterator[None]:
    """Compile what choosing tokens takes in a thread beside the body, which may copy but launches no kernels of ours. For
    rank 0: a new thread is on the first device."""
    if make is None:
        yield
        return
    thread = threading.Thread(target=_compile, args=(make, vocab_size, device), name="compiling")
    thread.start()
    try:
        yield
    finally:
        thread.join()


@torch.inference_mode()
def _compile(make: Callable[[int, int, torch.device], TokenSampler], vocab_size: int, device: Device) -> None:
    started_s = time.perf_counter()
    sampling = DeviceSampling(make(1, vocab_size, device.torch_device), device)
    sampling.warm_up(torch.zeros((1, vocab_size), device=device.torch_device))
    seconds = round(time.perf_counter() - started_s, 3)
    logs.event(logger, logging.INFO, "choice of tokens compiled", seconds=seconds)
