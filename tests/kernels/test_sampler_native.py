"""The compiled sampler against the torch sampler: same tokens, same log-probabilities, same likeliest tokens."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from serving.kernels.cpu.native import library
from serving.kernels.cpu.native.sampling import NativeSampler
from serving.sampling.sampler import Sampler, SamplingRow
from serving.sampling.token_mask import TokenMasks
from serving.sampling_params import Grammar, SamplingParams, Watermark

EOS = (6, 1)
GRAMMAR = Grammar(kind="regex", source="a")
VOCABULARIES = [8, 64, 1000, 5003]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def compiled_sampler() -> Sampler:
    loaded = library.load()
    assert loaded is not None, "the suite needs a C compiler: the sampler would go untested"
    return Sampler(EOS, native=lambda: NativeSampler(loaded))


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def compiled(request: pytest.FixtureRequest) -> Sampler:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    request.addfinalizer(lambda: torch.set_num_threads(before))
    return compiled_sampler()


def _row(params: SamplingParams, index: int, *, tokens: list[int], prompt: int = 3) -> SamplingRow:
    return SamplingRow(row=10 + index, params=params, seed=index, token_ids=tokens, num_prompt_tokens=prompt)


def _strided(rows: int, vocab: int, spread: float) -> Tensor:
    """Rows that do not adjoin, with what must not be read between them."""
    whole = torch.full((rows, vocab + 13), math.nan)
    whole[:, :vocab] = torch.randn(rows, vocab) * spread
    return whole[:, :vocab]


def _random_params(rng: random.Random, vocab: int) -> SamplingParams:
    def maybe(value: float, off: float) -> float:
        return value if rng.random() < 0.4 else off

    ids = rng.sample(range(vocab), min(vocab, 4))
    return SamplingParams(
        temperature=rng.choice([0.0, 0.0, 0.3, 0.7, 1.0, 1.0, 1.7]),
        top_k=int(maybe(rng.choice([1, 2, 5, 50, 400, vocab, 2 * vocab]), 0)),
        top_p=maybe(rng.choice([0.01, 0.5, 0.9, 0.95, 0.999]), 1.0),
        min_p=maybe(rng.choice([0.001, 0.05, 0.5, 1.0]), 0.0),
        typical_p=maybe(rng.choice([0.05, 0.5, 0.9, 0.99]), 1.0),
        repetition_penalty=maybe(rng.choice([0.7, 1.3]), 1.0),
        frequency_penalty=maybe(0.7, 0.0),
        presence_penalty=maybe(-0.4, 0.0),
        relative_frequency_penalty=maybe(1.3, 0.0),
        logit_bias=tuple((i, rng.choice([-100.0, 2.5])) for i in ids) if rng.random() < 0.3 else (),
        min_new_tokens=rng.choice([0, 0, 2, 100]),
        stop_token_ids=(0, 1),
        ignore_eos=rng.random() < 0.3,
        watermark=Watermark(gamma=0.3, delta=1.7) if rng.random() < 0.2 else None,
        grammar=GRAMMAR if rng.random() < 0.4 else None,
        top_n_tokens=rng.choice([0, 0, 1, 5, 20, vocab + 3]) if vocab < 3000 else rng.choice([0, 20]),
        raw_logprobs=rng.random() < 0.3,
    )


def _masks(rows: list[SamplingRow], vocab: int, words: int) -> TokenMasks | None:
    masked = [index for index, row in enumerate(rows) if row.params.grammar is not None]
    if not masked:
        return None
    bits = torch.randint(-(2**31), 2**31, (len(masked), words), dtype=torch.int32)
    bits[torch.rand(bits.shape) < 0.4] = 0
    bits[torch.rand(bits.shape) < 0.1] = -1
    bits[:, 0] |= 1 << random.Random(vocab).randrange(min(vocab, 31))
    return TokenMasks(rows=masked, bits=bits)


def _agree(compiled: Sampler, logits: Tensor, rows: list[SamplingRow], masks: TokenMasks | None) -> None:
    before = logits.clone()
    ours = compiled.sample(logits, rows, masks)
    assert torch.equal(logits, before), "the compiled sampler leaves logits as they are"
    twins = Sampler(EOS).sample(logits.clone(), rows, masks)
    for row, highest, our, twin in zip(rows, logits.abs().amax(-1).tolist(), ours, twins, strict=True):
        # The twin subtracts float32 numbers as large as these.
        size = (highest + 100.0 * bool(row.params.logit_bias)) / (row.params.temperature or 1.0)
        tolerance = 1e-6 + 2.5e-7 * size
        assert (our.row, our.token_id) == (twin.row, twin.token_id), row.params
        assert our.logprob == pytest.approx(twin.logprob, abs=tolerance), row.params
        assert our.top_ids == twin.top_ids, row.params
        assert our.top_logprobs == pytest.approx(twin.top_logprobs, abs=tolerance), row.params


@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_every_parameter(compiled: Sampler, vocab: int) -> None:
    """Random mixtures of everything, over steps in which rows stay, grow and are replaced."""
    rng = random.Random(vocab)
    rows: list[SamplingRow] = []
    for step in range(6):
        while len(rows) < 24:
            tokens = [rng.randrange(vocab) for _ in range(rng.randrange(3, 12))]
            rows.append(_row(_random_params(rng, vocab), 100 * step + len(rows), tokens=tokens))
        words = rng.choice([(vocab + 31) // 32, (vocab + 31) // 32 + 2, max(1, vocab // 64)])
        logits = _strided(len(rows), vocab, spread=rng.choice([0.5, 3.0, 12.0]))
        _agree(compiled, logits, rows, _masks(rows, vocab, words))
        for row in rows:
            row.token_ids.append(rng.randrange(vocab))
        rows = [row for row in rows if rng.random() < 0.7]
        rng.shuffle(rows)
