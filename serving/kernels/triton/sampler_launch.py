"""Launches the sampler's kernels on buffers that stay where they are: a launch can be captured in a graph and replayed for
other logits and parameters in the same tensors. Knows tensors, not requests, and never waits for the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from serving.kernels.triton import sampler as kernels

_SCORED_AT_ONCE = 4096


@dataclass(slots=True, frozen=True)
class Steps:
    """Which kernels a step needs: what any of its rows asks for. `num_top` is the most likely tokens a row may get, those
    that tie with the last included; 0: none are collected."""

    draws: bool = False
    top_k: bool = False
    top_p: bool = False
    raw: bool = False
    num_top: int = 0


@dataclass(slots=True, frozen=True)
class DeviceSamples:
    """On the device: ids [R] int64, logprobs [R] float32. Row r has `num_top[r]` likeliest tokens, in the first columns of
    top_ids and top_logprobs [R, C]; where that exceeds C, more tokens tie than there was room for."""

    ids: Tensor
    logprobs: Tensor
    num_top: Tensor | None = None
    top_ids: Tensor | None = None
    top_logprobs: Tensor | None = None


class DeviceSampler:
    """For up to `max_rows` rows of a vocabulary; results are overwritten by the next launch."""

    def __init__(self, *, max_rows: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._tiles = triton.cdiv(vocab_size, kernels.TILE)
        self._tiles_padded = triton.next_power_of_2(self._tiles)

        def rows(dtype: torch.dtype, *size: int) -> Tensor:
            return torch.zeros((max_rows, *size), dtype=dtype, device=device)

        tiles = self._tiles
        self._best, self._raw_best = rows(torch.float32, tiles), rows(torch.float32, tiles)
        self._total, self._raw_total = rows(torch.float32, tiles), rows(torch.float32, tiles)
        self._best_id, self._ties = rows(torch.int32, tiles), rows(torch.int64, tiles)
        self._mass = rows(torch.float64, tiles)
        self._partials = [rows(torch.float64, tiles, kernels.FAN) for _ in range(2)]
        self._keys = [rows(torch.int64) for _ in range(2)]
        self._whole, self._tied_left, self._normalizers = (rows(torch.float64) for _ in range(3))
        self._last = {mode: rows(torch.int64) for mode in (kernels.TOP_K, kernels.TOP_P, kernels.TOP_N)}
        self._least = rows(torch.int64)
        self._ids, self._logprobs = rows(torch.int64), rows(torch.float32)
        self._num_top = rows(torch.int32)
        self._no_bits = torch.zeros((1, 1), dtype=torch.int32, device=device)

    def launch(
        self, logits: Tensor, params: Tensor, steps: Steps, *, bits: Tensor | None = None
    ) -> DeviceSamples:
        """logits [R, V], left as they are; params [max_rows, 9] int64, with the columns that `sampler` names; `bits` [M, W]
        int32, of which row r obeys the one in its column MASK (-1: none)."""
        count = logits.shape[0]
        given = bits if bits is not None else self._no_bits
        source = (logits, params, given, logits.stride(0), self._vocab_size, given.shape[1], self._tiles)
        flags = {"HAS_MASK": bits is not None, "TILE": kernels.TILE}
        grid = (count, self._tiles)
        kernels.peaks_kernel[grid](
            self._best, self._best_id, self._total, self._raw_best, self._raw_total, *source,
            WANTS_RAW=steps.raw, **flags,
        )  # fmt: skip
        if steps.draws:
            self._find_last(kernels.TOP_K, steps.top_k, steps, source, count)
            self._find_last(kernels.TOP_P, steps.top_p, steps, source, count)
            kernels.mass_kernel[grid](
                self._mass, self._ties, self._least, self._best, self._last[kernels.TOP_K], self._last[kernels.TOP_P],
                *source, TILES_PADDED=self._tiles_padded, **flags,
            )  # fmt: skip
        else:
            for unused in (self._least, self._last[kernels.TOP_P], self._tied_left):
                unused.zero_()
        kernels.draw_kernel[(count,)](
            self._ids, self._logprobs, self._normalizers, self._tied_left, self._best, self._best_id, self._total,
            self._raw_best, self._raw_total, self._mass, self._ties, self._least, self._whole, self._last[kernels.TOP_P],
            *source, TILES_PADDED=self._tiles_padded, WANTS_RAW=steps.raw, DRAWS=steps.draws, **flags,
        )  # fmt: skip
        samples = DeviceSamples(self._ids[:count], self._logprobs[:count])
        return self._with_top(samples, steps, source) if steps.num_top else samples

    def _with_top(self, samples: DeviceSamples, steps: Steps, source: tuple[Any, ...]) -> DeviceSamples:
        count = len(samples.ids)
        self._find_last(kernels.TOP_N, True, steps, source, count)
        capacity = triton.next_power_of_2(steps.num_top)
        packed = torch.empty((count, capacity), dtype=torch.int64, device=samples.ids.device)
        top_ids, top_logprobs = torch.empty_like(packed), torch.empty_like(packed, dtype=torch.float32)
        kernels.collect_kernel[(count,)](
            packed, self._num_top, self._best, self._raw_best, self._last[kernels.TOP_N], self._least,
            self._last[kernels.TOP_P], self._tied_left, *source,
            TILE=kernels.TILE, CAPACITY=capacity, HAS_MASK=source[2] is not self._no_bits, WANTS_RAW=steps.raw,
        )  # fmt: skip
        kernels.order_kernel[(count,)](
            top_ids, top_logprobs, packed, self._num_top, self._normalizers, CAPACITY=capacity
        )
        return DeviceSamples(samples.ids, samples.logprobs, self._num_top[:count], top_ids, top_logprobs)

    def _find_last(self, mode: int, asked: bool, steps: Steps, source: tuple[Any, ...], count: int) -> None:
        """Into `_last[mode]`: the key of the last token that a filter keeps."""
        if not asked:
            self._last[mode].zero_()
            return
        shared = {"MODE": mode, "FAN": kernels.FAN, "TILES_PADDED": self._tiles_padded}
        params = source[1]
        for level in range(kernels.LEVELS):
            new, old = level % 2, 1 - level % 2
            kernels.search_kernel[(count, self._tiles)](
                self._partials[new], self._keys[new], self._whole, self._partials[old], self._keys[old], self._best,
                self._last[kernels.TOP_K], self._least, *source,
                LEVEL=level, TILE=kernels.TILE, CHUNK=kernels.CHUNK, WANTS_RAW=steps.raw,
                HAS_MASK=source[2] is not self._no_bits, **shared,
            )  # fmt: skip
        last = (kernels.LEVELS - 1) % 2
        kernels.finish_kernel[(count,)](
            self._last[mode],
            self._partials[last],
            self._keys[last],
            self._whole,
            params,
            self._tiles,
            **shared,
        )


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """The log-probability of token targets[r] (int64) in row r of logits [R, V]: [R] float32, without a copy of the logits.

    The torch twin is `logits.float().log_softmax(-1)`, of which one entry per row is kept.
    """
    count, vocab_size = logits.shape
    logprobs = torch.empty(count, dtype=torch.float32, device=logits.device)
    if count:
        kernels.score_kernel[(count,)](
            logprobs, logits, targets, logits.stride(0), vocab_size, TILE=_SCORED_AT_ONCE, num_warps=8
        )
    return logprobs
