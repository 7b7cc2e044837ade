"""Launches the sampler's kernels on buffers that stay where they are: a launch can be captured in a graph and replayed for
other logits and parameters in the same tensors. Knows tensors, not requests, and never waits for the device."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from serving.contracts import MAX_LIKELIEST, DeviceSamples, SamplerSteps
from serving.kernels.triton import sampler as kernels

_SCORED_AT_ONCE = 4096


class TritonSampler:
    """For up to `max_rows` rows of a vocabulary; results are overwritten by the next launch."""

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        self.max_rows, self.vocab_size = max_rows, vocab_size
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
        self, logits: Tensor, params: Tensor, steps: SamplerSteps, *, bits: Tensor | None = None
    ) -> DeviceSamples:
        """As `TokenSampler.launch`; of `bits`, line r obeys the one in its column MASK (-1: none)."""
        count = logits.shape[0]
        given = bits if bits is not None else self._no_bits
        # torch gives a lone row any stride, and another divisibility would be another build, in the middle of serving.
        stride = logits.stride(0) if count > 1 else self.vocab_size
        source = (logits, params, given, stride, self.vocab_size, given.shape[1], self._tiles)
        # Two builds of every kernel, not four: each is compiled before the first request.
        full = steps.raw or steps.likeliest or bits is not None
        grid = (count, self._tiles)
        kernels.peaks_kernel[grid](
            self._best, self._best_id, self._total, self._raw_best, self._raw_total, *source,
            TILE=kernels.TILE, HAS_MASK=full, WANTS_RAW=full,
        )  # fmt: skip
        if steps.draws:
            self._find_last(kernels.TOP_K, steps.top_k, full, source, count)
            self._find_last(kernels.TOP_P, steps.top_p, full, source, count)
            kernels.mass_kernel[grid](
                self._mass, self._ties, self._least, self._best, self._last[kernels.TOP_K], self._last[kernels.TOP_P],
                *source, TILE=kernels.TILE, TILES_PADDED=self._tiles_padded, HAS_MASK=full,
            )  # fmt: skip
        elif steps.likeliest:
            for unused in (self._least, self._last[kernels.TOP_P], self._tied_left):
                unused.zero_()
        kernels.draw_kernel[(count,)](
            self._ids, self._logprobs, self._normalizers, self._tied_left, self._best, self._best_id, self._total,
            self._raw_best, self._raw_total, self._mass, self._ties, self._least, self._whole, self._last[kernels.TOP_P],
            *source, TILE=kernels.TILE, TILES_PADDED=self._tiles_padded, HAS_MASK=full, WANTS_RAW=full, DRAWS=steps.draws,
        )  # fmt: skip
        samples = DeviceSamples(self._ids[:count], self._logprobs[:count])
        return self._with_top(samples, full, source) if steps.likeliest else samples

    def _with_top(self, samples: DeviceSamples, full: bool, source: tuple[Any, ...]) -> DeviceSamples:
        count = len(samples.ids)
        self._find_last(kernels.TOP_N, True, full, source, count)
        packed = torch.empty((count, MAX_LIKELIEST), dtype=torch.int64, device=samples.ids.device)
        top_ids, top_logprobs = torch.empty_like(packed), torch.empty_like(packed, dtype=torch.float32)
        kernels.collect_kernel[(count,)](
            packed, self._num_top, self._best, self._raw_best, self._last[kernels.TOP_N], self._least,
            self._last[kernels.TOP_P], self._tied_left, *source,
            TILE=kernels.TILE, CAPACITY=MAX_LIKELIEST, HAS_MASK=full, WANTS_RAW=full,
        )  # fmt: skip
        kernels.order_kernel[(count,)](
            top_ids, top_logprobs, packed, self._num_top, self._normalizers, CAPACITY=MAX_LIKELIEST
        )
        return DeviceSamples(samples.ids, samples.logprobs, self._num_top[:count], top_ids, top_logprobs)

    def _find_last(self, mode: int, asked: bool, full: bool, source: tuple[Any, ...], count: int) -> None:
        """Into `_last[mode]`: the key of the last token that a filter keeps."""
        if not asked:
            self._last[mode].zero_()
            return
        shared = {"MODE": mode, "FAN": kernels.FAN, "TILES_PADDED": self._tiles_padded}
        for level in range(kernels.LEVELS):
            new, old = level % 2, 1 - level % 2
            kernels.search_kernel[(count, self._tiles)](
                self._partials[new], self._keys[new], self._whole, self._partials[old], self._keys[old], self._best,
                self._last[kernels.TOP_K], self._least, *source, kernels.SHIFTS[level], kernels.SHIFTS[level - 1],
                LEVEL=min(level, kernels.LATER), TILE=kernels.TILE, CHUNK=kernels.CHUNK, WANTS_RAW=full, HAS_MASK=full,
                **shared,
            )  # fmt: skip
        last = (kernels.LEVELS - 1) % 2
        kernels.finish_kernel[(count,)](
            self._last[mode], self._partials[last], self._keys[last], self._whole, source[1], self._tiles, **shared
        )  # fmt: skip


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
