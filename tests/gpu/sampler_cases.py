"""Random rows for the GPU's sampler, run on any device and compared with the torch sampler on the CPU."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from serving.contracts import MAX_LIKELIEST, SamplerSteps
from serving.sampling.device_params import DeviceParams, covers
from serving.sampling.sampler import Sampler, SamplingRow
from serving.sampling.token_mask import TokenMasks
from serving.sampling_params import Grammar, SamplingParams

GRAMMAR = Grammar(kind="regex", source="a")


@dataclass(frozen=True)
class Case:
    vocab: int
    rows: int
    seed: int = 0
    greedy: bool = False
    ties: bool = False
    coarse: bool = False
    """Many more tokens tie than there is room for."""
    spread: float = 3.0


def random_params(rng: random.Random, vocab: int, greedy: bool) -> SamplingParams:
    def maybe(value: float, off: float) -> float:
        return value if rng.random() < 0.5 else off

    return SamplingParams(
        temperature=0.0 if greedy else rng.choice([0.0, 0.3, 0.7, 1.0, 1.7]),
        top_k=int(maybe(rng.choice([1, 2, 5, 50, vocab, 2 * vocab]), 0)),
        top_p=maybe(rng.choice([0.01, 0.5, 0.9, 0.999]), 1.0),
        min_p=maybe(rng.choice([0.001, 0.05, 0.5, 1.0]), 0.0),
        grammar=GRAMMAR if rng.random() < 0.3 else None,
        top_n_tokens=rng.choice([0, 1, 5, 20]),
        raw_logprobs=rng.random() < 0.3,
    )


def run(case: Case, device: str) -> list[str]:
    """What differs from the torch sampler, in words."""
    from serving.kernels.triton.sampler_launch import TritonSampler

    rng = random.Random(case.seed)
    torch.manual_seed(case.seed)
    logits = torch.full((case.rows, case.vocab + 8), math.nan)[:, : case.vocab]
    logits.copy_(torch.randn(case.rows, case.vocab) * case.spread)
    if case.ties:
        logits.copy_(logits.bfloat16().float())
    if case.coarse:
        logits.copy_(logits.round())
    rows = [
        SamplingRow(index, random_params(rng, case.vocab, case.greedy), rng.getrandbits(64), [1] * 9, 3 + index % 7)
        for index in range(case.rows)
    ]  # fmt: skip
    masked = [index for index, row in enumerate(rows) if row.params.grammar is not None]
    bits = torch.randint(-(2**31), 2**31, (len(masked), case.vocab // 32 + 1), dtype=torch.int32)
    bits[torch.rand(bits.shape) < 0.4] = 0
    bits[:, 0] |= 4
    masks = TokenMasks(masked, bits) if masked else None
    where = torch.device(device)
    params = DeviceParams(case.rows + 3)
    for row in rows:
        assert covers(row.params)
        params.write(row.row, row.params, row.seed)
    masked_lines = {line: number for number, line in enumerate(masked)}
    positions = [row.num_output_tokens for row in rows]
    lines = params.lines(np.arange(case.rows), positions, masked_lines)
    table = torch.from_numpy(lines).to(where)
    steps = SamplerSteps(
        draws=not case.greedy, top_k=not case.greedy, top_p=not case.greedy, raw=True, likeliest=True
    )
    sampler = TritonSampler(case.rows + 3, case.vocab, where)
    chosen = sampler.launch(logits.to(where), table, steps, bits=bits.to(where) if masked else None)
    expected = Sampler().sample(logits.clone(), rows, masks)
    return [
        text for row, want in zip(rows, expected, strict=True) for text in _differences(row, chosen, want)
    ]


def _differences(row: SamplingRow, chosen: object, want: object) -> list[str]:
    index = row.row
    found = []
    token_id, logprob = int(chosen.ids[index]), float(chosen.logprobs[index])
    if token_id != want.token_id:
        found.append(f"row {index}: token {token_id}, not {want.token_id}: {row.params}")
    elif abs(logprob - want.logprob) > 3e-5:
        found.append(f"row {index}: logprob {logprob}, not {want.logprob}: {row.params}")
    count = int(chosen.num_top[index])
    if count != len(want.top_ids):
        return [*found, f"row {index}: {count} likeliest, not {len(want.top_ids)}: {row.params}"]
    shown = min(count, MAX_LIKELIEST)
    ids, values = chosen.top_ids[index, :shown].tolist(), chosen.top_logprobs[index, :shown].cpu()
    same = torch.allclose(values, Tensor(want.top_logprobs[:shown]), atol=3e-5)
    if ids != want.top_ids[:shown] or not same:
        found.append(f"row {index}: {ids} {values}, not {want.top_ids} {want.top_logprobs}: {row.params}")
    return found


def worst_score(vocab: int, device: str) -> float:
    """The largest error of `token_logprobs`."""
    from serving.kernels.triton.sampler_launch import token_logprobs

    logits, targets = torch.randn(7, vocab) * 5, torch.randint(vocab, (7,))
    got = token_logprobs(logits.to(device), targets.to(device)).cpu()
    want = logits.double().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return float((got - want).abs().max())
